from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mfdiff_core
from mfdiff_core.errors import BundleError, ConfigError, MfdiffError
from mfdiff_platform import durable
from mfdiff_platform import spool as spool_module
from mfdiff_platform.errors import EXIT_CODES, GateError, TrackingError, exit_code
from mfdiff_platform.names import check_key, check_name
from mfdiff_platform.run import Run, run_of
from mfdiff_platform.spool import Operation, Spool
from mfdiff_platform.store_address import StoreAddress
from mfdiff_platform.tracking import TrackingStore, ui_command, ui_link

EXPERIMENT = "studies"
NOWHERE = "http://127.0.0.1:9"


def history(run: Run, metric: str) -> list[tuple[int, float]]:
    found = run.store.client.get_metric_history(run.run_id, metric)
    return sorted((point.step, point.value) for point in found)


def all_runs(store: TrackingStore) -> list[Any]:
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    return list(store.client.search_runs(experiments))


def data(run: Run) -> Any:
    return run.store.client.get_run(run.run_id)


def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (320, 200)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def out_of_reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def knock(address: StoreAddress) -> None:
        raise ConnectionRefusedError("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(StoreAddress, "knock", knock)
        yield


# Names and exit codes


def test_every_listed_fault_has_its_own_exit_code() -> None:
    assert sorted(EXIT_CODES.values()) == [2, 3, 4, 5, 6, 7]
    assert exit_code(GateError()) == 6
    assert exit_code(TrackingError()) == 7


def test_a_fault_without_entry_takes_the_code_of_its_parent_else_1() -> None:
    assert exit_code(BundleError()) == 4
    assert exit_code(MfdiffError()) == 1
    assert exit_code(ZeroDivisionError()) == 1


@pytest.mark.parametrize("name", ["ood3", "site_A-2.1", "x" * 64, "_"])
def test_plain_names_pass(name: str) -> None:
    assert check_name("domain", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".hidden",
        "..",
        "a/b",
        "../../x",
        "a\0b",
        "x" * 65,
        "é",
        "a\n",
        ";rm",
        "<b>",
        "-rf",
        "a b",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="domain name"):
        check_name("domain", name)


def test_a_key_is_names_joined_by_slashes() -> None:
    assert check_key("first-study/0003") == "first-study/0003"
    for key in ("a//b", "/a", "a/", "a/../b", "it's"):
        with pytest.raises(ConfigError):
            check_key(key)


# The store


def test_importing_tracking_registry_ledger_and_space_loads_no_heavy_library() -> None:
    modules = "tracking registry ledger search_space"
    code = (
        f"import sys, importlib\nfor m in {modules.split()}:"
        " importlib.import_module('mfdiff_platform.' + m)\n"
        "print(*({'mlflow', 'torch', 'ray', 'optuna', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_default_store_is_a_patient_database_in_the_workspace(store: TrackingStore) -> None:
    assert store.address.uri == f"sqlite:///{store.workspace}/mlflow.db?timeout=60"


def test_the_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.site:5000")
    address = TrackingStore(tmp_path).address
    assert address.uri == "https://user:secret@mlflow.site:5000"
    assert address.shown == "https://mlflow.site:5000"


def test_a_relative_database_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = StoreAddress.find(tmp_path, "sqlite:///here.db?timeout=5")
    assert address.uri == f"sqlite:///{tmp_path}/here.db?timeout=5"


@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"]
)
def test_stores_that_cannot_work_are_refused_at_once(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingError, match="sqlite:///FILE"):
        TrackingStore(tmp_path, uri)


def test_a_server_that_is_down_is_told_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9 cannot be used.*MLFLOW_TRACKING_URI"):
        TrackingStore(tmp_path, NOWHERE).prepare()
    assert time.monotonic() - began < 5


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Address of a server that takes every call and answers none."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers_is_told_within_seconds(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfdiff_platform.tracking._ANSWER_S", 1.0)
    began = time.monotonic()
    with pytest.raises(TrackingError, match="cannot be used: no answer within 1 s"):
        TrackingStore(tmp_path, silent_server).prepare()
    assert time.monotonic() - began < 10


def test_an_interrupted_run_does_not_wait_for_a_server_that_never_answers(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfdiff_platform.run._HURRY_S", 1.0)
    run = run_of(TrackingStore(tmp_path, silent_server), EXPERIMENT, "a")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), run.watched():
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(TrackingError, match="not a database"):
        TrackingStore(tmp_path, f"sqlite:///{tmp_path}/mlflow.db").prepare()


def test_several_nodes_need_a_server(store: TrackingStore, tmp_path: Path) -> None:
    store.require_server(1)
    TrackingStore(tmp_path, NOWHERE).require_server(2)
    with pytest.raises(TrackingError, match="2 nodes cannot share"):
        store.require_server(2)


def test_an_experiment_is_created_once_with_an_absolute_place(store: TrackingStore) -> None:
    first = store.get_or_create_experiment(EXPERIMENT)
    again = TrackingStore(store.workspace).get_or_create_experiment(EXPERIMENT)
    assert first == again != "0"
    place = store.client.get_experiment(first).artifact_location
    assert place == (store.workspace / "artifacts" / EXPERIMENT).as_uri()


def test_a_deleted_experiment_comes_back(store: TrackingStore) -> None:
    name = store.get_or_create_experiment(EXPERIMENT)
    store.client.delete_experiment(name)
    assert TrackingStore(store.workspace).get_or_create_experiment(EXPERIMENT) == name


def test_a_store_travels_to_another_process(store: TrackingStore) -> None:
    store.prepare()
    there = pickle.loads(pickle.dumps(store))
    there.find_or_create(EXPERIMENT, "a").log_metrics({"psnr": 1}, 0)
    assert history(store.find_or_create(EXPERIMENT, "a"), "psnr") == [(0, 1)]


# Runs


def test_a_key_has_one_run_for_ever(store: TrackingStore) -> None:
    first = store.find_or_create(EXPERIMENT, "study/0001", "trial 1")
    first.finish("failed", "killed")
    again = TrackingStore(store.workspace).find_or_create(EXPERIMENT, "study/0001")
    assert first.run_id == again.run_id
    assert len(all_runs(store)) == 1
    assert data(again).info.status == "RUNNING"


def test_a_run_says_which_code_wrote_it(store: TrackingStore) -> None:
    told = data(store.find_or_create("studies", "a")).data.tags["code"]
    assert re.fullmatch(re.escape(mfdiff_core.__version__) + r", sha256 [0-9a-f]{12}", told)


def test_the_same_key_in_another_experiment_is_another_run(store: TrackingStore) -> None:
    ids = {store.find_or_create(name, "a").run_id for name in ("one", "two")}
    assert len(ids) == 2


def test_an_experiment_is_given_by_name_not_by_id(store: TrackingStore) -> None:
    with pytest.raises(ConfigError, match="give its name"):
        store.find_or_create(store.get_or_create_experiment(EXPERIMENT), "a")


def test_a_child_shows_under_its_parent(store: TrackingStore) -> None:
    parent = store.create_run(EXPERIMENT, "study")
    child = store.create_run(EXPERIMENT, "trial", {"domain": "ood3"}, parent)
    assert data(child).data.tags["mlflow.parentRunId"] == parent.run_id
    assert data(child).data.tags["domain"] == "ood3"
    assert data(child).info.run_name == "trial"


def test_looking_for_a_run_leaves_it_as_it_is(store: TrackingStore) -> None:
    assert store.find(EXPERIMENT, "a") is None
    store.find_or_create(EXPERIMENT, "a").finish("finished")
    found = store.find(EXPERIMENT, "a")
    assert found is not None
    assert found.info.status == "FINISHED"


def test_steps_logged_again_after_a_resume_are_left_out(store: TrackingStore) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    for step in range(4):
        run.log_metrics({"psnr": float(step)}, step)
    resumed = TrackingStore(store.workspace).find_or_create(EXPERIMENT, "a")
    for step in range(2, 6):
        resumed.log_metrics({"psnr": 10.0 + step, "ssim": 0.5}, step)
    assert history(run, "psnr") == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 14), (5, 15)]
    assert [step for step, _ in history(run, "ssim")] == [2, 3, 4, 5]


def test_parameters_are_set_once_and_changes_are_told(store: TrackingStore) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    run.log_config({"lr": 1e-4, "freeze": "none"} | {f"p{i}": i for i in range(120)})
    run.log_config({"lr": 3e-4, "freeze": "none", "ema": 0.99})
    assert data(run).data.params["lr"] == "0.0001"
    assert data(run).data.params["ema"] == "0.99"
    assert len(data(run).data.params) == 123
    assert data(run).data.tags["config_changed"] == "lr: 0.0001 -> 0.0003"


def test_long_parameters_are_cut_but_stay_distinct(store: TrackingStore) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    run.log_config({"a": "x" * 9000 + "a", "b": "x" * 9000 + "b"})
    params = data(run).data.params
    assert len(params["a"]) == len(params["b"]) == 500
    assert params["a"] != params["b"]
    assert "[9001 characters" in params["a"]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("finished", "FINISHED"),
        ("pruned", "KILLED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
    ],
)
def test_the_end_of_a_run_is_told_to_machines_and_people(
    store: TrackingStore, state: Any, status: str
) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    run.finish(state, "loss was\nnot finite")
    assert data(run).info.status == status
    assert data(run).data.tags["state"] == f"{state}: loss was not finite"


def test_artifacts_arrive_where_they_are_put(store: TrackingStore, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "weights.safetensors").write_bytes(b"w")
    run = store.find_or_create(EXPERIMENT, "a")
    run.log_dir(bundle, "checkpoints/best")
    run.log_file(bundle / "weights.safetensors", "files")
    run.log_text("hello", "notes/a.txt")
    run.log_table([{"subject": "s1", "psnr": 30.5}], "tables/subjects.json")
    run.log_image(png(), "best")
    run.log_image(png(), "validation/slice", step=3)
    run.log_image(png(), "validation/slice", step=3)
    artifacts = Path(data(run).info.artifact_uri.removeprefix("file://"))
    found = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    series = {name for name in found if name.startswith("images/validation~slice+step+3+")}
    assert {Path(name).suffix for name in series} == {".png", ".webp"}
    assert found - series == {
        "checkpoints/best/weights.safetensors",
        "files/weights.safetensors",
        "notes/a.txt",
        "tables/subjects.json",
        "images/best.png",
    }
    table = json.loads((artifacts / "tables/subjects.json").read_text())
    assert table == {"columns": ["subject", "psnr"], "data": [["s1", 30.5]]}


def test_artifact_folders_stay_inside_the_run(store: TrackingStore, tmp_path: Path) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    for folder in ("../x", "/etc"):
        with pytest.raises(ValueError, match="relative path"):
            run.log_file(Path(__file__), folder)
    with pytest.raises(FileNotFoundError):
        run.log_file(tmp_path / "missing.txt")


def test_datasets_and_notes_reach_the_run(store: TrackingStore) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    run.log_dataset("ood3", "ab" * 32, "training")
    run.log_dataset("ood3", "ab" * 32, "training")
    run.note("# Study")
    (used,) = data(run).inputs.dataset_inputs
    assert used.dataset.name == "ood3"
    assert json.loads(used.dataset.profile) == {"fingerprint": "ab" * 32}
    assert used.tags[0].value == "training"
    assert data(run).data.tags["mlflow.note.content"] == "# Study"


# A store out of reach


def write_everything(run: Run, folder: Path) -> None:
    """What a trial writes about itself."""
    folder.mkdir(exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    run.log_config({"lr": 1e-4})
    run.log_dataset("ood3", "abc", "training")
    for step in range(6):
        run.log_metrics({"psnr": float(step), "ssim": 0.1 * step}, step)
    run.log_dir(folder, "checkpoints/best")
    run.log_text("done", "log.txt")
    run.finish("finished")


def content(run: Run) -> dict[str, Any]:
    """All that MLflow knows of a run, without times and ids."""
    found = data(run)
    artifacts = Path(found.info.artifact_uri.removeprefix("file://"))
    tags = {k: v for k, v in found.data.tags.items() if k != "mlflow.parentRunId"}
    return {
        "params": found.data.params,
        "metrics": {name: history(run, name) for name in found.data.metrics},
        "tags": tags,
        "status": found.info.status,
        "datasets": [used.dataset.name for used in found.inputs.dataset_inputs],
        "files": {
            str(path.relative_to(artifacts)): path.read_bytes()
            for path in artifacts.rglob("*")
            if path.is_file()
        },
    }


def test_nothing_is_lost_or_doubled_when_the_store_is_away_in_mid_run(
    store: TrackingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = store.find_or_create("calm", "a")
    write_everything(calm, tmp_path / "calm")
    run = store.find_or_create("storm", "a")
    with out_of_reach(monkeypatch):
        write_everything(run, tmp_path / "storm")
        (tmp_path / "storm" / "weights.safetensors").unlink()  # trials clean up behind them
        assert store.flush() == 11
    assert data(run).info.status == "RUNNING"
    assert store.flush() == 0
    assert content(run) == content(calm)
    assert store.spool.names() == []


def test_a_run_can_begin_before_the_store_is_there(
    store: TrackingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with out_of_reach(monkeypatch):
        parent = store.find_or_create(EXPERIMENT, "study")
        child = store.find_or_create(EXPERIMENT, "study/0001", parent=parent)
        write_everything(child, tmp_path / "b")
    assert TrackingStore(store.workspace).flush() == 0
    assert data(child).data.tags["mlflow.parentRunId"] == parent.run_id
    assert len(all_runs(store)) == 2
    assert data(child).info.start_time == child.spec.start_ms


def test_calls_keep_their_order_when_the_store_comes_back(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    with out_of_reach(monkeypatch):
        run.set_tags({"best": 1})
        run.log_metrics({"psnr": 1}, 1)
    run.log_metrics({"psnr": 2}, 2)
    run.set_tags({"best": 2})
    assert history(run, "psnr") == [(1, 1), (2, 2)]
    assert data(run).data.tags["best"] == "2"
    assert store.spool.count() == 0


def test_a_closed_socket_delays_no_call_by_a_second(tmp_path: Path) -> None:
    store = TrackingStore(tmp_path, NOWHERE)
    slowest = 0.0
    run = store.find_or_create(EXPERIMENT, "a")
    for step in range(20):
        began = time.monotonic()
        run.log_metrics({"psnr": step}, step)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1
    assert store.spool.count() == 22


def test_an_outage_is_told_once(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    for outage in range(2):
        with out_of_reach(monkeypatch):
            run.set_tags({"a": outage})
            run.set_tags({"b": outage})
        assert caplog.text.count("MLflow is out of reach") == outage + 1
        store.flush()


def test_what_waited_for_one_store_can_go_to_another(store: TrackingStore, tmp_path: Path) -> None:
    write_everything(TrackingStore(tmp_path, NOWHERE).find_or_create("a", "a"), tmp_path / "b")
    assert store.flush() == 0
    assert store.find("a", "a") is not None


def test_after_a_failure_the_store_is_left_alone_for_a_while(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = TrackingStore(store.workspace, retry_after_s=60)
    run = patient.find_or_create(EXPERIMENT, "a")
    with out_of_reach(monkeypatch):
        run.log_metrics({"psnr": 1}, 1)
    run.log_metrics({"psnr": 2}, 2)
    assert patient.spool.count() == 2
    assert patient.flush() == 0
    assert history(run, "psnr") == [(1, 1), (2, 2)]


def test_a_call_the_store_refuses_for_good_blocks_no_other(
    store: TrackingStore, caplog: pytest.LogCaptureFixture
) -> None:
    run = store.find_or_create(EXPERIMENT, "a")
    run.log_metrics({"not a * metric": 1}, 1)
    run.log_metrics({"psnr": 1}, 1)
    assert history(run, "psnr") == [(1, 1)]
    assert "refuses" in caplog.text
    (refused,) = store.spool.folder.glob("*/refused.jsonl")
    record = json.loads(refused.read_text())
    assert record["values"]["metrics"] == {"not a * metric": 1}
    assert record["run"]["key"] == "a"


def flaky(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Let a third of all calls to MLflow fail, half of those after they took effect."""
    from mlflow import MlflowClient

    dice = random.Random(seed)

    def unreliable(call: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            if dice.random() < 1 / 6:
                raise ConnectionError("lost on the way there")
            answer = call(*args, **kwargs)
            if dice.random() < 1 / 6:
                raise ConnectionError("lost on the way back")
            return answer

        return attempt

    names = ["create_run", "search_runs", "log_batch", "log_inputs", "log_artifact"]
    names += ["log_artifacts", "set_terminated", "update_run", "get_metric_history"]
    for name in [*names, "create_experiment", "get_experiment_by_name"]:
        monkeypatch.setattr(MlflowClient, name, unreliable(getattr(MlflowClient, name)))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_doubled_when_any_call_may_fail(
    store: TrackingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    calm = store.find_or_create("calm", "a")
    write_everything(calm, tmp_path / "b")
    with monkeypatch.context() as patch:
        flaky(patch, seed)
        run = TrackingStore(store.workspace, retry_after_s=0).find_or_create("storm", "a")
        write_everything(run, tmp_path / "b")
        while run.store.flush():
            pass
    assert content(run) == content(calm)
    assert len(all_runs(store)) == 2


def test_a_batch_that_arrived_is_not_sent_again_when_its_answer_was_lost(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    run = store.find_or_create(EXPERIMENT, "a")
    log_batch, sent = MlflowClient.log_batch, list[int]()

    def answer_lost(client: Any, run_id: str, metrics: Any = (), **others: Any) -> None:
        log_batch(client, run_id, metrics=metrics, **others)
        sent.extend(metric.step for metric in metrics)
        if sent == [0]:
            raise ConnectionError("lost on the way back")

    monkeypatch.setattr(MlflowClient, "log_batch", answer_lost)
    for step in range(3):
        run.log_metrics({"psnr": step}, step)
    assert sent == [0, 1, 2]


# The spool


def test_a_queue_cut_anywhere_yields_the_calls_before_the_cut(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(3):
        spool.append("run", {"key": "a"}, Operation("metrics", {"step": step}))
    queue = tmp_path / "run" / "queue.jsonl"
    whole = queue.read_bytes()
    for cut in range(len(whole) + 1):
        queue.write_bytes(whole[:cut])
        spool.append("run", {"key": "a"}, Operation("metrics", {"step": 9}))
        seen: list[int] = []
        spool.drain("run", lambda call, seen=seen: seen.append(call.values["step"]))  # type: ignore[misc]
        kept = max(whole[:cut].count(b"\n") - 1, 0)
        assert seen == [*range(kept), 9]


def test_a_delivery_that_stops_goes_on_where_it_stopped(tmp_path: Path) -> None:
    spool, seen = Spool(tmp_path), list[int]()
    for step in range(4):
        spool.append("run", {}, Operation("metrics", {"step": step}))

    def deliver(call: Operation) -> None:
        if call.values["step"] == 2 and not stop:
            stop.append(True)
            raise ConnectionError
        seen.append(call.values["step"])

    stop: list[bool] = []
    with pytest.raises(ConnectionError):
        spool.drain("run", deliver)
    assert spool.count() == 2
    assert spool.drain("run", deliver) == 2
    assert seen == [0, 1, 2, 3]


def test_many_writers_lose_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, append = Spool(tmp_path), durable.append_text

    def slowly(path: Path, text: str) -> None:
        time.sleep(0.002)  # room for another writer
        append(path, text)

    monkeypatch.setattr(spool_module, "append_text", slowly)

    def write(worker: int) -> None:
        for step in range(20):
            spool.append("run", {}, Operation("metrics", {"id": [worker, step]}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    seen: list[Any] = []
    spool.drain("run", lambda call: seen.append(call.values["id"]))
    assert sorted(seen) == [[worker, step] for worker in range(4) for step in range(20)]


def test_the_spool_keeps_its_own_copy_of_a_file_until_delivery(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    source = tmp_path / "a.txt"
    source.write_text("hello")
    spool.append("run", {}, Operation("artifact", {}, source))
    source.unlink()
    seen: list[str] = []
    spool.drain("run", lambda call: seen.append(call.source.read_text() if call.source else ""))
    assert seen == ["hello"]
    assert [path.name for path in (tmp_path / "spool").rglob("a.txt")] == []


# The pages


def test_the_ui_command_listens_on_loopback_for_known_hosts(store: TrackingStore) -> None:
    words = shlex.split(ui_command(store))
    assert words[:4] == ["env", *words[1:3], "mlflow"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--allowed-hosts") + 1] == "127.0.0.1:5000,localhost:5000"
    assert words[words.index("--backend-store-uri") + 1] == store.address.uri


def test_links_open_the_view_for_models() -> None:
    assert ui_link("3").endswith("/#/experiments/3/runs?workflowType=machine_learning")
    assert "/#/experiments/3/runs/abc?" in ui_link("3", "abc")


# Real processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(store: TrackingStore, address: str) -> Iterator[None]:
    """The MLflow server, started with the command that users are given."""
    command = shlex.split(ui_command(store, address))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=quiet,
        stderr=quiet,
        env={**os.environ, "PATH": path},
    )
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).read()
                break
            except OSError:
                time.sleep(0.3)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_a_server_that_goes_down_and_comes_back_misses_nothing(
    store: TrackingStore, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    remote = TrackingStore(tmp_path / "client", address, retry_after_s=0)
    with serving(store, address):
        remote.prepare()
        run = remote.find_or_create(EXPERIMENT, "a")
        run.log_metrics({"psnr": 0}, 0)
        foreign = urllib.request.Request(f"{address}/", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=10)
    began = time.monotonic()
    for step in range(1, 5):
        run.log_metrics({"psnr": step}, step)
    run.log_text("while it was away", "log.txt")
    assert time.monotonic() - began < 5
    assert remote.spool.count() == 5
    with serving(store, address):
        run.finish("finished")
        assert history(run, "psnr") == [(step, step) for step in range(5)]
        assert [a.path for a in remote.client.list_artifacts(run.run_id)] == ["log.txt"]
        assert remote.spool.count() == 0


def test_a_key_asked_for_by_many_at_once_is_one_run(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Creating is slowed down, so that all would look before the first has created."""
    create = TrackingStore._new_run

    def slow(self: TrackingStore, *spec: Any) -> str:
        time.sleep(0.3)
        return create(self, *spec)

    monkeypatch.setattr(TrackingStore, "_new_run", slow)
    stores = [TrackingStore(store.workspace) for _ in range(3)]
    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(lambda own: own.find_or_create("studies", "same"), stores))
    assert len(all_runs(store)) == 1


SIXTEEN = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from mlflow.store.db import utils
from sqlalchemy import text
from mfdiff_platform.tracking import TrackingStore
assert "20000" in Path(utils.__file__).read_text()
utils.sql = SimpleNamespace(text=lambda query: text(query.replace("20000", "25")))
children = []
for number in range(16):
    child = os.fork()
    if not child:
        run = TrackingStore(Path(sys.argv[1])).find_or_create("studies", f"run-{number}")
        for step in range(20):
            run.log_metrics({"psnr": step}, step)
        run.finish("finished")
        os._exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.slow
def test_sixteen_processes_share_a_fresh_database(tmp_path: Path) -> None:
    """SQLite's own patience is cut to 25 ms, as if the disk were a thousand times slower."""
    command = [sys.executable, "-c", SIXTEEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout) == [0] * 16
    store = TrackingStore(tmp_path)
    assert store.spool.count() == 0
    runs = all_runs(store)
    assert len(runs) == 16
    assert {run.info.experiment_id for run in runs} == {store.get_or_create_experiment("studies")}
    for run in runs:
        assert len(store.client.get_metric_history(run.info.run_id, "psnr")) == 20
