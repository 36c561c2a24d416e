"""MLflow as `mfdiff-platform ui` starts it, seen by somebody who should not be there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.experiment_view import share_views
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.ui import require_free

EXPERIMENT = "mfdiff-studies"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def listeners(port: int) -> set[str]:
    """Addresses on which anybody listens at ``port``, as `ss -ltn` tells."""
    found = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    return {c.laddr.ip for c in found if c.laddr and c.laddr.port == port}


@pytest.fixture(scope="module")
def store_(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> TrackingStore:
    folder = tmp_path_factory.mktemp("ui")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    (folder / "secret.txt").write_text("patients")
    store = TrackingStore(folder, f"sqlite:///{folder}/mlflow.db")
    store.find_or_create(EXPERIMENT, "a", tags={"kind": "study"}).log_text("hello", "notes/a.txt")
    share_views(store, EXPERIMENT, "a")
    return store


@pytest.fixture(scope="module")
def port(store_: TrackingStore) -> Iterator[int]:
    """The server, up; stopped by Ctrl-C as a user would."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    program = "from mfdiff_platform.cli import main; main()"
    command = [sys.executable, "-c", program, "ui", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workspace", str(store_.workspace)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
            break
        except OSError:
            time.sleep(0.3)
    assert process.stdout is not None
    for name, view in (("studies", "mfdiff"), ("a", "mfdiff-a"), ("pretraining", "mfdiff")):
        line = process.stdout.readline().strip()
        assert line.startswith(f"{name}  http://127.0.0.1:{port}/#/experiments/")
        assert line.endswith(f"&viewStateShareKey={view}")
    assert process.stdout.readline().startswith(f"models  http://127.0.0.1:{port}/#/models")
    yield port
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)


def status(port: int, path: str, method: str = "GET", body: str = "", **headers: str) -> int:
    """Status of a request whose path goes out as it is, dots and all."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() or None)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
def test_the_server_listens_on_loopback_only(port: int) -> None:
    assert listeners(port) == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "10.0.0.7:{port}"])
def test_foreign_host_headers_get_403(port: int, host: str) -> None:
    search = "/ajax-api/2.0/mlflow/experiments/search"
    assert status(port, f"{search}?max_results=5", Host=host.format(port=port)) == 403
    assert status(port, f"{search}?max_results=5", Host=f"127.0.0.1:{port}") == 200


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1.evil.example", "null"])
def test_foreign_origins_change_nothing(port: int, store_: TrackingStore, origin: str) -> None:
    make, body = "/api/2.0/mlflow/experiments/create", '{"name": "planted"}'
    assert status(port, make, "POST", body, Origin=origin) == 403
    assert store_.client.get_experiment_by_name("planted") is None


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["http://evil.example", "https://localhost:{port}", "null"])
def test_foreign_origins_read_nothing_either(port: int, origin: str) -> None:
    search = "/ajax-api/2.0/mlflow/experiments/search?max_results=5"
    for path in ("/", search):
        assert status(port, path, Origin=origin.format(port=port)) == 403
        assert status(port, path, Origin=f"http://127.0.0.1:{port}") == 200


@pytest.mark.slow
@pytest.mark.parametrize("field", ["artifact_location", "artifactLocation"])
def test_no_experiment_lies_outside_the_workspace(
    port: int, store_: TrackingStore, field: str
) -> None:
    for make in ("/api/2.0/mlflow/experiments/create", "/ajax-api/2.0/mlflow/experiments/create/"):
        body = json.dumps({"name": "planted", field: "file:///etc"})
        assert status(port, make, "POST", body) == 403
    assert store_.client.get_experiment_by_name("planted") is None
    make, body = (
        "/api/2.0/mlflow/experiments/create",
        json.dumps({"name": f"with {field}", field: ""}),
    )
    assert status(port, make, "POST", body) == 200
    assert store_.client.get_experiment_by_name(f"with {field}") is not None


@pytest.mark.slow
def test_the_assistant_that_runs_programs_is_off(port: int) -> None:
    assert status(port, "/ajax-api/3.0/mlflow/assistant/status") == 403


@pytest.mark.slow
def test_artifact_paths_that_climb_get_4xx(port: int, store_: TrackingStore) -> None:
    run_id = store_.find_or_create(EXPERIMENT, "a").run_id
    experiment = store_.get_or_create_experiment(EXPERIMENT)
    secret = str(store_.workspace / "secret.txt")
    climbs = ["../../../../secret.txt", "..%2f..%2f..%2f..%2fsecret.txt", "%252e%252e/secret.txt"]
    climbs += [
        "/etc/passwd",
        urllib.parse.quote(secret, safe=""),
        "notes/../../../x",
        "file:///etc",
    ]
    assert status(port, f"/get-artifact?run_uuid={run_id}&path=notes/a.txt") == 200
    for climb in climbs:
        for path in (
            f"/get-artifact?run_uuid={run_id}&path={climb}",
            f"/ajax-api/2.0/mlflow/artifacts/list?run_id={run_id}&path={climb}",
            f"/ajax-api/2.0/mlflow-artifacts/artifacts/{climb}",
            f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run_id}/artifacts/{climb}",
        ):
            assert 400 <= status(port, path) < 500, path


def test_shared_views_are_tags_that_mlflow_s_pages_read(store_: TrackingStore) -> None:
    experiment = store_.client.get_experiment(store_.get_or_create_experiment(EXPERIMENT))
    for key, wanted in (
        ("mfdiff", ""),
        ("mfdiff-a", "tags.kind = 'trial' AND tags.study = 'a'"),
    ):
        view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
        assert view["searchFilter"] == wanted
        assert "tags.`gain_over_paper_db`" in view["selectedColumns"]
        store_.client.search_runs([experiment.experiment_id], view["searchFilter"])


@pytest.mark.ray
def test_the_ray_dashboard_listens_on_loopback_only(ray_cluster: Cluster) -> None:
    import ray

    address = ray._private.worker.global_worker.node.address_info["webui_url"]
    assert address, "the tests' cluster runs with its dashboard"
    port = int(address.rsplit(":", 1)[1])
    assert listeners(port) == {"127.0.0.1"}


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="is taken; give another: --port"):
            require_free(other.getsockname()[1])
    require_free(free_port())
