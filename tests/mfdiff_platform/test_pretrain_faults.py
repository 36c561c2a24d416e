"""What goes wrong during a pretraining, and what of it is lost: at most a few steps, never more."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from mfdiff_core.bundle import load_bundle
from mfdiff_core.config import to_dict
from mfdiff_core.model import ModelConfig
from mfdiff_core.training.loop import TrainConfig
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.strategies import start_training
from mfdiff_platform.checkpoints import Checkpoints
from mfdiff_platform.cli import run
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.context import LocalContext
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.events import EventReader, follow
from mfdiff_platform.interrupt import STOP
from mfdiff_platform.pretrain import (
    BUNDLE,
    EVENTS,
    EXPERIMENT,
    LOGGED,
    REQUEST,
    PretrainRequest,
    Workers,
    _Follower,
    begun,
    pretrain,
)
from mfdiff_platform.pretrain_worker import LAST, run_worker
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

STEPS = 24
TOLERANCE = 1e-3
"""Of losses, relative: workers sum gradients in another order than one process."""
Weights = dict[str, torch.Tensor]


def make_request(data: Path, model: ModelConfig) -> PretrainRequest:
    return PretrainRequest(
        name="run",
        data=str(data),
        model=model,
        train=TrainConfig(
            iterations=STEPS,
            optim=OptimConfig(lr=1e-3),
            log_every=1,
            validate_every=8,
            snapshot_every=6,
        ),
        batch_size=4,
    )


@pytest.fixture
def request_(dataset_folder: Path, tiny_config: ModelConfig) -> PretrainRequest:
    return make_request(dataset_folder, tiny_config)


def steps(folder: Path, kind: str) -> list[int]:
    """Steps of the events of a kind, repeats included."""
    lines = (folder / EVENTS).read_text().split("\n")
    events = [json.loads(line) for line in lines if line]
    return [event["step"] for event in events if event["kind"] == kind]


def results(folder: Path) -> tuple[Weights, Weights]:
    """Best and last weights of a finished run."""
    return load_bundle(folder / BUNDLE).weights(), load_bundle(folder / LAST).weights()


def distance(first: Weights, second: Weights) -> float:
    """Largest difference between two sets of weights."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def alone(request: PretrainRequest, folder: Path) -> tuple[Weights, Weights]:
    """The run in this process, undisturbed or resumed."""
    assert run_worker(request, folder, LocalContext(folder))
    return results(folder)


def same(first: tuple[Weights, Weights], second: tuple[Weights, Weights]) -> bool:
    return distance(first[0], second[0]) == distance(first[1], second[1]) == 0


# A stop


class _Stopping(LocalContext):
    """Writes the stop file when asked before a given step; looks for it at another one."""

    def __init__(self, folder: Path, write_at: int, look_at: int) -> None:
        super().__init__(folder)
        self._file, self._write_at, self._look_at, self._asked_times = (
            folder / STOP,
            write_at,
            look_at,
            0,
        )

    def stopping(self) -> bool:
        self._asked_times += 1
        if self._asked_times == self._write_at:
            self._file.touch()
        return self._asked_times >= self._look_at


@pytest.mark.parametrize(("write_at", "look_at", "stopped_at"), [(11, 11, 10), (8, 99, 8)])
def test_stopped_run_has_lost_no_step_and_ends_as_if_nothing_had_happened(
    request_: PretrainRequest, tmp_path: Path, write_at: int, look_at: int, stopped_at: int
) -> None:
    # before a step; then in the middle of the validation after one
    folder = tmp_path / "stopped"
    folder.mkdir()
    assert not run_worker(request_, folder, _Stopping(folder, write_at, look_at))
    assert Checkpoints(folder).newest() == stopped_at
    assert not (folder / BUNDLE).exists()
    (folder / STOP).unlink()
    assert same(alone(request_, folder), alone(request_, tmp_path / "whole"))
    assert steps(folder, "progress") == list(range(1, STEPS + 1))
    assert steps(folder, "validated") == [8, 16, 24]
    assert steps(folder, "began") == [0, stopped_at]


MEMBER = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from mfdiff_core.config import from_dict
from mfdiff_core.training.loop import Share
from mfdiff_platform.context import GroupContext
from mfdiff_platform.pretrain_request import PretrainRequest
from mfdiff_platform.pretrain_worker import run_worker
rank, world, folder, meeting, values = sys.argv[1:]
torch.set_num_threads(1)
share = Share(int(rank), int(world))
place = dict(init_method="file://" + meeting, rank=share.rank, world_size=share.world_size)
dist.init_process_group("gloo", **place)
request = from_dict(PretrainRequest, json.loads(values))
context = GroupContext(Path(folder), share, torch.device("cpu"))
finished = run_worker(request, Path(folder), context)
dist.barrier()
dist.destroy_process_group()
sys.exit(0 if finished else 3)
"""


def start_group(request: PretrainRequest, folder: Path, workers: int) -> list[Any]:
    """The run as processes that gloo connects, without Ray."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{random.getrandbits(32)}"
    arguments = [str(workers), str(folder), str(meeting), json.dumps(to_dict(request))]
    return [
        subprocess.Popen([sys.executable, "-c", MEMBER, str(rank), *arguments])
        for rank in range(workers)
    ]


def ended(group: list[Any]) -> set[int]:
    return {process.wait(timeout=120) for process in group}


def together(request: PretrainRequest, folder: Path, workers: int) -> tuple[Weights, Weights]:
    assert ended(start_group(request, folder, workers)) == {0}
    return results(folder)


def losses(folder: Path) -> list[float]:
    return [e["loss"] for e in EventReader(folder / EVENTS).new() if e["kind"] == "progress"]


def wait_for(folder: Path, step: int) -> None:
    file, until = folder / EVENTS, time.monotonic() + 120
    while not (file.is_file() and f'"progress", "step": {step},' in file.read_text()):
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole_by_two(
    dataset_folder: Path, tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Weights, Weights]:
    """Results of two workers whom nothing happened to."""
    request = make_request(dataset_folder, tiny_config)
    return together(request, tmp_path_factory.mktemp("whole"), 2)


@pytest.mark.slow
def test_losses_of_fifty_steps_do_not_depend_on_the_number_of_workers(
    request_: PretrainRequest, tmp_path: Path
) -> None:
    fifty = replace(request_, train=replace(request_.train, iterations=50, validate_every=25))
    one, two, four = (tmp_path / name for name in ("one", "two", "four"))
    alone(fifty, one)
    together(fifty, two, 2)
    together(fifty, four, 4)
    assert len(losses(one)) == 50
    for shared in (two, four):
        assert losses(shared) == pytest.approx(losses(one), rel=TOLERANCE)


@pytest.mark.slow
def test_two_workers_stop_at_one_step_and_go_on_to_the_same_weights_bit_for_bit(
    request_: PretrainRequest, tmp_path: Path, whole_by_two: tuple[Weights, Weights]
) -> None:
    group = start_group(request_, tmp_path, 2)
    wait_for(tmp_path, 7)
    (tmp_path / STOP).touch()
    assert ended(group) == {3}
    (stopped,) = steps(tmp_path, "stopped")
    assert 7 <= stopped < STEPS
    assert Checkpoints(tmp_path).newest() == stopped
    (tmp_path / STOP).unlink()
    assert same(together(request_, tmp_path, 2), whole_by_two)
    assert steps(tmp_path, "progress") == list(range(1, STEPS + 1))


# Checkpoints


@pytest.fixture
def state(make_model: Callable[[], Any]) -> TrainState:
    return start_training(make_model(), OptimConfig())


def test_newest_two_checkpoints_are_kept(state: TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for state.step in (3, 6, 9):
        checkpoints.save(state)
    assert checkpoints.steps() == [6, 9]
    assert checkpoints.newest() == 9


def test_damaged_checkpoint_gives_way_to_the_one_before(
    state: TrainState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for state.step in (3, 6):
        checkpoints.save(state)
    tensors = tmp_path / "checkpoints" / "step_00000006" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert checkpoints.load(state) == state.step == 3
    assert "damaged checkpoint" in capsys.readouterr().err


def test_process_killed_while_it_writes_checkpoints_leaves_a_sound_one(
    state: TrainState, tmp_path: Path
) -> None:
    checkpoints, reached = Checkpoints(tmp_path), 0
    for number in range(12):
        child = os.fork()
        if child == 0:
            while True:
                state.step += 1
                checkpoints.save(state)
        patience = 1 if reached else 1 + number  # until a machine, however busy, has written one
        time.sleep(patience * random.Random(number).uniform(0.02, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = checkpoints.newest()
        assert checkpoints.load(state) == state.step == newest >= reached
        reached = newest
    assert reached > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class _DiskFills(LocalContext):
    """Fills the disk before its second checkpoint."""

    def __init__(self, folder: Path, filler: Path) -> None:
        super().__init__(folder)
        self._filler = filler

    def checkpoint(self, state: TrainState) -> None:
        if state.step == 12:
            with suppress(OSError), self._filler.open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(1 << 12))
        super().checkpoint(state)


def test_full_disk_ends_a_run_with_path_and_bytes_and_it_goes_on_with_room(
    request_: PretrainRequest, small_disk: Path, tmp_path: Path
) -> None:
    folder, filler = small_disk / "run", small_disk / "filler"
    words = r"step_00000012: no space for a checkpoint of [\d,]+ bytes, [\d,]+ are free; make room"
    with pytest.raises(ResourceError, match=words):
        run_worker(request_, folder, _DiskFills(folder, filler))
    filler.unlink()
    assert Checkpoints(folder).newest() == 6
    assert same(alone(request_, folder), alone(request_, tmp_path / "whole"))


def test_disk_that_will_not_hold_the_checkpoints_is_refused_at_once(
    request_: PretrainRequest, store: TrackingStore, small_disk: Path
) -> None:
    (small_disk / "filler").write_bytes(bytes(7 << 20))
    with pytest.raises(ResourceError, match=r"pretrained/run: no space for .* bytes"):
        pretrain(Workspace(small_disk), store, request_, Workers(1, on_gpu=False))
    assert not (small_disk / "pretrained").exists()


def test_disk_that_holds_no_note_of_the_fault_leaves_the_fault_itself(small_disk: Path) -> None:
    store = TrackingStore(small_disk, "http://127.0.0.1:9")
    run = store.find_or_create(EXPERIMENT, "pretrain/run", "run")
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 12))
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012
        while True:  # what was left of the last block
            run.set_tags({"state": "running"})
    with pytest.raises(ResourceError, match="no space for a checkpoint"), run.watched():
        raise ResourceError("no space for a checkpoint")


# Tracking


def test_no_step_waits_for_the_tracker(request_: PretrainRequest, tmp_path: Path) -> None:
    # If one did, this would never end: the tracker answers nothing before training is over.
    over, folder = Event(), tmp_path / "run"
    seen: list[int] = []

    def answer(event: dict[str, Any]) -> None:
        over.wait()
        seen.append(event["step"])

    with follow(folder / EVENTS, answer):
        alone(request_, folder)
        assert seen == []
        over.set()
    assert set(seen) == set(range(STEPS + 1))


def test_worker_knows_no_mlflow(request_: PretrainRequest, tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from mfdiff_core.config import from_dict\n"
        "from mfdiff_platform.context import LocalContext\n"
        "from mfdiff_platform.pretrain_request import PretrainRequest\n"
        "from mfdiff_platform.pretrain_worker import run_worker\n"
        "folder = Path(sys.argv[1])\n"
        "request = from_dict(PretrainRequest, json.loads(sys.argv[2]))\n"
        "assert run_worker(request, folder, LocalContext(folder))\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    arguments = [str(tmp_path), json.dumps(to_dict(request_))]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)


def test_training_goes_on_without_mlflow_and_loses_nothing(
    request_: PretrainRequest, store: TrackingStore, tmp_path: Path
) -> None:
    folder, away = tmp_path / "run", TrackingStore(tmp_path, "http://127.0.0.1:9", retry_after_s=0)
    run = away.find_or_create(EXPERIMENT, "pretrain/run", "run")
    with follow(folder / EVENTS, _Follower(folder, run)):
        alone(request_, folder)
    assert away.spool.count() > STEPS
    assert store.flush() == 0
    found = store.find(EXPERIMENT, "pretrain/run")
    assert found is not None
    history = store.client.get_metric_history(found.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))


def test_run_killed_before_it_was_logged_is_logged_by_the_same_command(
    request_: PretrainRequest, store: TrackingStore
) -> None:
    workspace = Workspace(store.workspace)
    folder = workspace.pretraining("run")
    alone(request_, folder)
    (folder / REQUEST).write_text(json.dumps(to_dict(request_)))
    store.find_or_create(EXPERIMENT, "pretrain/run", "run")
    for _ in range(2):
        pretrain(workspace, store, request_, Workers(1, on_gpu=False))
    assert (folder / LOGGED).is_file()
    run = store.find(EXPERIMENT, "pretrain/run")
    assert run is not None
    assert run.info.status == "FINISHED"
    history = store.client.get_metric_history(run.info.run_id, "train/slices_per_s")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))
    files = {file.path for file in store.client.list_artifacts(run.info.run_id, "checkpoints")}
    assert files == {"checkpoints/best", "checkpoints/last"}
    pictures = store.client.list_artifacts(run.info.run_id, "images")
    assert sum(picture.path.endswith(".png") for picture in pictures) == 3


# Workers and drivers that die


@pytest.mark.ray
@pytest.mark.slow
def test_run_whose_worker_is_killed_finishes_by_itself_with_the_same_weights(
    request_: PretrainRequest,
    store: TrackingStore,
    ray_cluster: Cluster,
    whole_by_two: tuple[Weights, Weights],
) -> None:
    workspace = Workspace(store.workspace)
    folder = workspace.pretraining("run")
    kill = subprocess.Popen(
        [sys.executable, "-c", KILL, str(folder), "1", "9"], stdout=subprocess.PIPE, text=True
    )
    pretrain(workspace, store, request_, Workers(2, on_gpu=False))
    assert kill.communicate()[0].startswith("ray::pretrain toy run")
    assert steps(folder, "began")[0] == 0
    assert 9 - request_.train.snapshot_every <= steps(folder, "began")[1] < STEPS
    assert same(results(folder), whole_by_two)
    run = store.find(EXPERIMENT, "pretrain/run")
    assert run is not None
    history = store.client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))


KILL = """
import json, os, signal, sys, time
from pathlib import Path
folder, rank, step = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
events = folder / "events.jsonl"
while not (events.is_file() and f'"progress", "step": {step},' in events.read_text()):
    time.sleep(0.002)
pid = json.loads((folder / "workers" / f"{rank}.json").read_text())["pid"]
print(Path(f"/proc/{pid}/cmdline").read_text())
os.kill(pid, signal.SIGKILL)
"""


COMMAND = "import sys; from mfdiff_platform.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.ray
@pytest.mark.slow
def test_command_that_gets_sigterm_ends_with_143_and_goes_on_without_a_lost_step(
    request_: PretrainRequest, store: TrackingStore, ray_cluster: Cluster, tmp_path: Path
) -> None:
    import ray

    space, values = Workspace(store.workspace), to_dict(request_)
    folder = space.pretraining("run")
    where = ["--workspace", str(space.root), "--data", values["data"], "--name", "run"]
    settings = [f"--set={part}={json.dumps(values[part])}" for part in ("model", "train")]
    command = ["pretrain", "--cpus", "1", *where, *settings]
    joining = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *command], env=joining)
    wait_for(folder, 7)
    process.terminate()
    assert process.wait(timeout=30) == 143
    (stopped,) = steps(folder, "stopped")
    assert Checkpoints(folder).newest() == stopped
    assert run(command) == 0
    assert steps(folder, "progress") == list(range(1, STEPS + 1))
    request = begun(space, "run")
    assert request is not None
    assert same(results(folder), alone(request, tmp_path / "whole"))
