"""A registered version as MLflow loads it, in this process and behind its scoring server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.model import RestorationModel
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.tracking import TrackingStore

Stack = npt.NDArray[np.float32]


@pytest.fixture
def served(store: TrackingStore, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The registered model, loaded by MLflow with pickles forbidden."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    run_id = store.find_or_create("studies", "a").run_id
    models = SiteModels(store)
    models.register_candidate("toy", tiny_bundle.folder, run_id, {}, "card")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.address.uri)
    return mlflow.pyfunc.load_model("models:/mfdiff-toy@candidate")


@pytest.fixture
def scan(dataset: Dataset) -> dict[str, Stack]:
    """Test slices in physical units."""
    test = dataset.part("test")
    scale = test.scale.numpy()[:, None, None]
    return {"lpet": test.x_p[:, 0].numpy() * scale, "mr": test.x_m[:, 0].numpy() * 300}


def test_mlflow_loads_and_runs_the_registered_model(
    served: Any, scan: dict[str, Stack], dataset: Dataset, tiny_model: RestorationModel
) -> None:
    restored = served.predict(scan)
    assert restored.shape == scan["lpet"].shape
    assert restored.dtype == np.float32
    test = dataset.part("test")
    keys = [str(row) for row in range(len(test))]
    own = tiny_model.restore(test.x_p, test.x_m, keys).x_s[:, 0].numpy()
    own *= test.scale.numpy()[:, None, None]
    assert np.corrcoef(restored.ravel(), own.ravel())[0, 1] > 0.99
    assert restored.sum() == pytest.approx(own.sum(), rel=0.02)


def test_units_do_not_matter_and_batches_do_not_either(served: Any, scan: dict[str, Stack]) -> None:
    whole = served.predict(scan)
    one = served.predict({name: images[2:3] for name, images in scan.items()})
    np.testing.assert_allclose(one[0], whole[2], rtol=1e-3, atol=1e-3 * whole.max())
    other = served.predict({"lpet": scan["lpet"], "mr": 7 * scan["mr"]})
    np.testing.assert_allclose(other, whole, rtol=1e-3, atol=1e-3 * whole.max())


def test_the_seed_is_a_parameter(served: Any, scan: dict[str, Stack]) -> None:
    again = [served.predict(scan, params={"seed": seed}) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_inputs_that_do_not_fit_the_signature_are_refused(
    served: Any, scan: dict[str, Stack]
) -> None:
    from mlflow.exceptions import MlflowException

    for wrong in (
        {"lpet": scan["lpet"]},
        {name: images[:, :16] for name, images in scan.items()},
        {name: images[0] for name, images in scan.items()},
    ):
        with pytest.raises(MlflowException):
            served.predict(wrong)
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match="finite and not negative"):
            served.predict(scan | {"lpet": np.full_like(scan["lpet"], bad)})
    with pytest.raises(ValueError, match="alike"):
        served.predict({"lpet": scan["lpet"], "mr": scan["mr"][:1]})


def test_a_version_holds_no_code_no_pickle_and_no_path_of_this_machine(
    served: Any, store: TrackingStore, tmp_path: Path
) -> None:
    (mlmodel,) = tmp_path.glob("artifacts/**/MLmodel")
    files = [path for path in mlmodel.parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".safetensors", ".json", ".yaml", ".txt"}
    texts = [path for path in files if path.suffix != ".safetensors"]
    assert not any(str(tmp_path) in path.read_text() for path in texts)
    assert "loader_module: mfdiff_platform.serving" in mlmodel.read_text()


@pytest.mark.slow
def test_the_scoring_server_answers_on_loopback_and_refuses_what_does_not_fit(
    served: Any, store: TrackingStore, tmp_path: Path
) -> None:
    (example,) = tmp_path.glob("artifacts/**/serving_input_example.json")
    with serving(store) as address:
        status, answer = post(address, example.read_bytes())
        assert status == 200
        lpet = np.array(json.loads(example.read_text())["inputs"]["lpet"])
        restored = np.array(json.loads(answer)["predictions"])
        assert restored.shape == lpet.shape
        assert np.isfinite(restored).all()
        for wrong in (b"{}", b"no JSON", b'{"inputs": {"lpet": [[[1]]], "mr": [[[1]]]}}'):
            status, answer = post(address, wrong)
            assert 400 <= status < 500, wrong
        found = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
        port = int(address.rsplit(":", 1)[1])
        assert {c.laddr.ip for c in found if c.laddr and c.laddr.port == port} == {"127.0.0.1"}


@contextmanager
def serving(store: TrackingStore) -> Iterator[str]:
    """`mlflow models serve` as a user starts it; its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", "models:/mfdiff-toy@candidate", "--port", port]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": store.address.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # As an activated environment has it: MLflow starts `uvicorn` by its name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/ping", timeout=5).read()
                break
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def post(address: str, body: bytes) -> tuple[int, bytes]:
    """Status and answer of a request for predictions."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as fault:
        return fault.code, fault.read()


def test_the_input_example_fits_the_model_and_is_made_up(served: Any, tmp_path: Path) -> None:
    (stored,) = tmp_path.glob("artifacts/**/serving_input_example.json")
    inputs = {
        name: np.array(values, dtype=np.float32)
        for name, values in json.loads(stored.read_text())["inputs"].items()
    }
    assert set(np.unique(inputs["lpet"])) == {0, 1, 4}
    assert np.isfinite(served.predict(inputs)).all()
