"""The external stage: its worker in this process, then two gloo workers of Ray Train."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.config import override
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.model import ModelConfig, preset
from mfdiff_core.training.loop import TrainConfig
from mfdiff_core.training.optim import OptimConfig
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.context import LocalContext
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.pretrain import (
    BUNDLE,
    EVENTS,
    EXPERIMENT,
    REQUEST,
    PretrainRequest,
    Workers,
    pretrain,
)
from mfdiff_platform.pretrain_worker import run_worker
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

ITERATIONS = 24
TWO = Workers(count=2, on_gpu=False)


@pytest.fixture
def request_(dataset_folder: Path, tiny_config: ModelConfig) -> PretrainRequest:
    return PretrainRequest(
        name="run",
        data=str(dataset_folder),
        model=tiny_config,
        train=TrainConfig(
            iterations=ITERATIONS,
            optim=OptimConfig(lr=1e-3),
            log_every=1,
            validate_every=8,
            snapshot_every=2,
        ),
        batch_size=2,
    )


@pytest.fixture
def workspace(store: TrackingStore) -> Workspace:
    return Workspace(store.workspace)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / EVENTS).read_text().split("\n")
    found = [json.loads(line) for line in lines if line]
    return [event for event in found if event["kind"] == kind]


def close(first: Bundle, second: Bundle, tolerance: float) -> bool:
    a, b = first.weights(), second.weights()
    return a.keys() == b.keys() and all(
        torch.allclose(a[name], b[name], rtol=0, atol=tolerance) for name in a
    )


def local(request: PretrainRequest, folder: Path) -> Bundle:
    """The run in this process."""
    run_worker(request, folder, LocalContext(folder))
    return load_bundle(folder / BUNDLE)


class _Killed(BaseException):
    pass


class _DyingContext(LocalContext):
    """Dies right after its third checkpoint."""

    def checkpoint(self, state: Any) -> None:
        super().checkpoint(state)
        if state.step == 6:
            raise _Killed


def test_worker_writes_events_and_a_bundle(request_: PretrainRequest, tmp_path: Path) -> None:
    bundle = local(request_, tmp_path)
    assert [event["step"] for event in events(tmp_path, "progress")] == list(range(1, 25))
    validated = events(tmp_path, "validated")
    assert [event["step"] for event in validated] == [8, 16, 24]
    best = max(event["psnr"] for event in validated)
    told = bundle.provenance
    assert (told.strategy, told.iterations, told.parent) == ("pretrain", ITERATIONS, "")
    assert told.metrics["psnr"] == pytest.approx(best)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_progress_on_a_gpu_tells_its_memory(request_: PretrainRequest, tmp_path: Path) -> None:
    local(request_, tmp_path)
    told = [event["gpu_memory_gib"] for event in events(tmp_path, "progress")]
    assert min(told) > 0
    assert told == sorted(told)  # the most so far


def test_killed_worker_resumes_to_the_same_weights_bit_for_bit(
    request_: PretrainRequest, tmp_path: Path
) -> None:
    whole, broken = local(request_, tmp_path / "whole"), tmp_path / "broken"
    with pytest.raises(_Killed):
        run_worker(request_, broken, _DyingContext(broken))
    assert not (broken / BUNDLE).exists()
    assert close(local(request_, broken), whole, 0)
    assert [event["step"] for event in events(broken, "progress")] == list(range(1, 25))


@contextmanager
def ctrl_c_when(path: Path, text: str) -> Iterator[None]:
    """Send this process SIGINT as soon as ``text`` stands in ``path``."""

    def wait() -> None:
        while not (path.is_file() and text in path.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    yield


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_resume_what_ctrl_c_ended_for_one_and_compute_the_same(
    request_: PretrainRequest,
    workspace: Workspace,
    store: TrackingStore,
    ray_cluster: Cluster,
    tmp_path: Path,
) -> None:
    folder, handler = workspace.pretraining("run"), signal.getsignal(signal.SIGINT)
    with ctrl_c_when(folder / EVENTS, '"step": 4,'), pytest.raises(KeyboardInterrupt):
        pretrain(workspace, store, request_, replace(TWO, count=1))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (folder / BUNDLE).exists()
    cut_short = store.find(EXPERIMENT, "pretrain/run")
    assert cut_short is not None
    assert cut_short.data.tags["state"] == "interrupted"

    bundle = pretrain(workspace, store, request_, TWO)
    assert [event["step"] for event in events(folder, "progress")] == list(range(1, 25))
    assert close(bundle, local(request_, tmp_path / "alone"), 1e-4)
    _check_run(store, bundle)
    assert pretrain(workspace, store, request_, replace(TWO, count=1)) == bundle


def _check_run(store: TrackingStore, bundle: Bundle) -> None:
    """Settings, curves without gaps or repeats, and the bundle are in MLflow."""
    run = store.find(EXPERIMENT, "pretrain/run")
    assert run is not None
    assert run.info.status == "FINISHED"
    assert run.data.params["train.iterations"] == str(ITERATIONS)
    losses = store.client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == list(range(1, 25))
    validated = store.client.get_metric_history(run.info.run_id, "validation/psnr")
    assert [metric.step for metric in validated] == [8, 16, 24]
    files = store.client.list_artifacts(run.info.run_id, "checkpoints/best")
    assert {Path(file.path).name for file in files} == {p.name for p in bundle.folder.iterdir()}
    psnr = f"{bundle.provenance.metrics['psnr']:.2f}"
    assert run.data.tags["best_psnr"] == psnr
    assert run.data.tags["mlflow.note.content"].startswith(f"{psnr} dB; mfdiff, {ITERATIONS} iter")


def test_finished_run_is_returned_and_other_settings_are_refused(
    request_: PretrainRequest, workspace: Workspace, store: TrackingStore
) -> None:
    folder = workspace.pretraining("run")
    bundle = local(request_, folder)
    (folder / REQUEST).write_text(json.dumps(_values(request_)))
    assert pretrain(workspace, store, request_, TWO) == bundle
    with pytest.raises(ConfigError, match="begun with other settings") as fault:
        pretrain(workspace, store, override(request_, {"train.optim.lr": 2e-3}), TWO)
    assert "--name" in str(fault.value)
    assert load_bundle(folder / BUNDLE) == bundle


def _values(request: PretrainRequest) -> dict[str, Any]:
    from mfdiff_core.config import to_dict

    return to_dict(request)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "workers", "fault", "message"),
    [
        ({"batch_size": 3}, TWO, ConfigError, "--batch-size 3 cannot be shared by 2 workers"),
        ({"data": "/nowhere"}, TWO, DataError, "/nowhere: no dataset"),
        ({"model": preset("quick")}, TWO, ConfigError, "slices of 32x32 .* takes 128x128"),
        (
            {"batch_size": 8},
            Workers(count=8, on_gpu=True),
            ResourceError,
            "8 workers needs 8 CPUs and 8 GPUs, this cluster has 3 CPUs; try --cpus 3",
        ),
    ],
)
def test_run_that_cannot_begin_says_why_and_does_not_hold_the_name(
    request_: PretrainRequest,
    workspace: Workspace,
    store: TrackingStore,
    ray_cluster: Cluster,
    changes: dict[str, Any],
    workers: Workers,
    fault: type[Exception],
    message: str,
) -> None:
    with pytest.raises(fault, match=message):
        pretrain(workspace, store, replace(request_, **changes), workers)
    assert not workspace.pretraining("run").exists()
    assert store.find(EXPERIMENT, "pretrain/run") is None
