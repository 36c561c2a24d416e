"""The external stage: pretrain on simulated phantoms with Ray Train (Sec. 3.3 i).

The driver checks resources and data, starts the workers, and follows their event log to the
terminal and to MLflow. The same request again resumes; a finished one is returned as it is.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.config import flatten, from_dict, to_dict
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import ConfigError
from mfdiff_core.files import read_json, write_json
from mfdiff_platform.checkpoints import Checkpoints, checkpoint_bytes, naming_full_disk
from mfdiff_platform.cluster import Cluster, Resources, connect
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.events import EVENT_KEYS, EventReader, follow
from mfdiff_platform.interrupt import STOP
from mfdiff_platform.nodes import check_shared
from mfdiff_platform.picture import SlicePicture
from mfdiff_platform.preflight import (
    check_cluster,
    check_image_size,
    check_request,
    weight_bytes,
)
from mfdiff_platform.pretrain_request import EXPERIMENT, BatchShare, PretrainRequest, share_batch
from mfdiff_platform.pretrain_worker import (
    BUNDLE,
    EVENTS,
    LAST,
    WORKERS,
    picture_file,
    pretrain_worker,
)
from mfdiff_platform.progress import Task, say, task
from mfdiff_platform.tracking import Run, TrackingStore
from mfdiff_platform.train_group import run_group
from mfdiff_platform.workers import Workers, check_machine
from mfdiff_platform.workspace import Workspace

__all__ = [
    "BUNDLE",
    "EVENTS",
    "EXPERIMENT",
    "REQUEST",
    "PretrainPlan",
    "PretrainRequest",
    "Workers",
    "begun",
    "check_image_size",
    "plan_pretraining",
    "pretrain",
    "unused_name",
]

REQUEST, LOGGED = "request.json", "logged.json"

_METRICS = {"progress": "train", "validated": "validation", "finished": "time"}
"""Kind of an event to the group of its metrics; other kinds are not logged."""


@dataclass(frozen=True)
class PretrainPlan:
    """What a request would do, found out without starting anything.

    Attributes:
        state: whether the run is new, begun or finished.
        step: step it goes on from.
        batch: how the workers share the batch.
        asked: resources of the workers.
        slices: number of training and validation slices.
        weights_bytes: size of the weights; a checkpoint has five times as many.
    """

    state: Literal["new", "begun", "finished"]
    step: int
    batch: BatchShare
    asked: Resources
    slices: tuple[int, int]
    weights_bytes: int


def plan_pretraining(
    workspace: Workspace, request: PretrainRequest, workers: Workers
) -> PretrainPlan:
    """Check all that can be checked without starting Ray, and say what would happen.

    Raises:
        ConfigError, DataError, ResourceError: as `pretrain` would.
    """
    folder = workspace.pretraining(request.name)
    _refuse_another(folder, request)
    check_machine(workers)
    dataset = check_request(request, workers, folder)
    begun_already = (folder / REQUEST).is_file()
    finished = (folder / BUNDLE).is_dir()
    return PretrainPlan(
        state="finished" if finished else "begun" if begun_already else "new",
        step=request.train.iterations if finished else Checkpoints(folder).newest(),
        batch=share_batch(request, workers.count),
        asked=workers.resources,
        slices=(len(dataset.part("train")), len(dataset.part("validation"))),
        weights_bytes=weight_bytes(request.model),
    )


def pretrain(
    workspace: Workspace,
    store: TrackingStore,
    request: PretrainRequest,
    workers: Workers,
    *,
    wait: bool = False,
) -> Bundle:
    """Pretrain, or resume, or return what is finished.

    Args:
        workspace: where the run's folder is.
        store: MLflow; only the driver writes to it.
        request: what to compute.
        workers: on how many workers.
        wait: wait for resources that a cluster may still get.

    Raises:
        ConfigError: a run of this name has other settings, or the batch cannot be shared.
        DataError: the dataset is damaged, leaking or of another image size than the model.
        ResourceError: the cluster is too small, or the disk.
        TrainingError: the workers failed; the message is their own.
        KeyboardInterrupt: it was stopped, at a checkpoint.
    """
    folder = workspace.pretraining(request.name)
    _refuse_another(folder, request)
    if (folder / BUNDLE).is_dir():
        say(f"Pretraining {request.name} is finished: {folder / BUNDLE}")
        return _complete_log(folder, store, request)
    check_machine(workers)
    dataset = check_request(request, workers, folder)
    need = checkpoint_bytes(weight_bytes(request.model))
    with connect(purpose=f"pretrain {request.name}") as cluster:
        check_cluster(cluster, workers, wait=wait)
        check_shared(workspace.root, dataset.folder)
        with _alone(folder), naming_full_disk(folder, need):
            # Only now: a command that could not begin must not hold the name.
            write_json(folder / REQUEST, to_dict(request))
            shutil.rmtree(folder / WORKERS, ignore_errors=True)
            run = _open_run(store, request, dataset, workers)
            with run.watched():
                name = f"pretrain {dataset.manifest.domain} {request.name}"
                _train(cluster, folder, run, request, workers, name, wait=wait)
    return _complete_log(folder, store, request)


def begun(workspace: Workspace, name: str) -> PretrainRequest | None:
    """The request of the run ``name``, if it was begun."""
    file = workspace.pretraining(name) / REQUEST
    return from_dict(PretrainRequest, read_json(file)) if file.is_file() else None


def unused_name(workspace: Workspace, name: str) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, ... that no run has."""
    candidates = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(n for n in candidates if not workspace.pretraining(n).exists())


def _refuse_another(folder: Path, request: PretrainRequest) -> None:
    """Check that a run that was begun in ``folder`` is the one requested."""
    if not (folder / REQUEST).is_file():
        return
    if from_dict(PretrainRequest, read_json(folder / REQUEST)) != request:
        raise ConfigError(
            f"pretraining run {request.name!r} was begun with other settings (see"
            f" {folder / REQUEST}); give another --name, or --restart, or the same settings to"
            " resume it"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run against other commands.

    Raises:
        ResourceError: one is training it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"another command is training {folder.name!r}; stop it with `touch"
                f" {folder / STOP}`, or give another --name"
            ) from None
        yield


def _open_run(
    store: TrackingStore, request: PretrainRequest, dataset: Dataset, workers: Workers
) -> Run:
    tags = {
        "domain": dataset.manifest.domain,
        "kind": "pretraining",
        "system": request.model.system,
        "workers": str(workers.resources),
        "batch": str(share_batch(request, workers.count)),
    }
    run = store.find_or_create(EXPERIMENT, f"pretrain/{request.name}", request.name, tags)
    run.log_config(flatten(request))
    for part, context in (("train", "training"), ("validation", "validation")):
        name = f"{dataset.manifest.domain}-{part}"
        run.log_dataset(name, dataset.manifest.fingerprint, context)
    return run


def _train(
    cluster: Cluster,
    folder: Path,
    run: Run,
    request: PretrainRequest,
    workers: Workers,
    name: str,
    *,
    wait: bool,
) -> None:
    """Run the workers to their end, with their events on the terminal and in MLflow."""
    say(f"Dashboard {cluster.dashboard}, job 'pretrain {request.name}'; run folder {folder}")
    title = f"Pretraining {request.name} on {workers.resources}"
    config = {"folder": str(folder), "request": to_dict(request)}
    with (
        task(title, request.train.iterations) as shown,
        follow(folder / EVENTS, _Follower(folder, run, shown)),
    ):
        run_group(
            folder,
            pretrain_worker,
            config,
            workers,
            lambda: _before_restart(folder, cluster, workers, wait=wait),
            name,
        )


def _before_restart(folder: Path, cluster: Cluster, workers: Workers, *, wait: bool) -> None:
    shutil.rmtree(folder / WORKERS, ignore_errors=True)  # who they were is no longer true
    check_cluster(cluster, workers, wait=wait)


class _Follower:
    """Shows the workers' events on the terminal and logs them to MLflow."""

    def __init__(self, folder: Path, run: Run, shown: Task | None = None) -> None:
        self._folder, self._run, self._shown = folder, run, shown
        self._validated = ""

    def __call__(self, event: dict[str, Any]) -> None:
        kind, step, time_s = (event.pop(key, None) for key in EVENT_KEYS)
        if self._shown is not None:
            self._show(self._shown, step, kind, event)
        if kind in _METRICS:
            named = {f"{_METRICS[kind]}/{name}": value for name, value in event.items()}
            self._run.log_metrics(named, step, time_s)
        picture = picture_file(self._folder, step)
        if kind == "validated" and picture.is_file():
            self._run.log_image(SlicePicture.load(picture).png("restored"), "validation", step)
            picture.unlink()

    def _show(self, shown: Task, step: int, kind: str, event: dict[str, Any]) -> None:
        if kind == "validated":
            self._validated = f", validation {event['psnr']:.2f} dB"
        note = self._validated
        if kind == "progress":
            note = f"loss {event['loss']:.4f}, {event['steps_per_s']:.2f} it/s{note}"
        shown.update(step, note.lstrip(", "))


def _complete_log(folder: Path, store: TrackingStore, request: PretrainRequest) -> Bundle:
    """Log whatever of a finished run is not in MLflow yet; its bundle."""
    bundle = load_bundle(folder / BUNDLE)
    if (folder / LOGGED).is_file():
        return bundle
    run = store.find_or_create(EXPERIMENT, f"pretrain/{request.name}", request.name)
    handle = _Follower(folder, run)
    for event in EventReader(folder / EVENTS).new():  # what is there already is passed over
        handle(event)
    run.log_dir(bundle.folder, "checkpoints/best")
    run.log_dir(folder / LAST, "checkpoints/last")
    best = {f"best/{name}": value for name, value in bundle.provenance.metrics.items()}
    run.log_metrics(best, request.train.iterations)
    run.log_table(
        [read_json(card) for card in sorted(folder.glob("workers/*.json"))], "workers.json"
    )
    run.set_tags(_headline(request, bundle.provenance.metrics))
    run.finish("finished")
    write_json(folder / LOGGED, {"waiting": store.spool.count()})
    return bundle


def _headline(request: PretrainRequest, metrics: Mapping[str, float]) -> dict[str, str]:
    """Best PSNR as a column, and the run in a line."""
    what = f"{request.model.system}, {request.train.iterations} iterations"
    if "psnr" not in metrics:
        return {"mlflow.note.content": f"{what}, not validated"}
    psnr = f"{metrics['psnr']:.2f}"
    return {"best_psnr": psnr, "mlflow.note.content": f"{psnr} dB; {what}; validation subjects"}
