"""The external stage: pretrain on simulated phantoms with Ray Train (Sec. 3.3 i).

The driver checks resources and data, starts the workers, and follows their event log to the
terminal and to MLflow. The same request again resumes; a finished one is returned as it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiff_core.bundle import Bundle, Provenance, load_bundle, save_bundle
from mfdiff_core.config import flatten, from_dict, to_dict
from mfdiff_core.data.batches import Augmentation, BatchStream
from mfdiff_core.data.dataset import Dataset, SliceSet, open_dataset
from mfdiff_core.errors import ConfigError, TrainingError
from mfdiff_core.evaluation.validation import evaluate_model
from mfdiff_core.files import read_json, write_json
from mfdiff_core.model import AnyModelConfig, RestorationModel, build_model, preset
from mfdiff_core.training.loop import Progress, Snapshot, TrainConfig, Validated, train
from mfdiff_core.training.step import Share
from mfdiff_core.training.strategies import start_training
from mfdiff_platform.cluster import Cluster, Resources, connect, interruptible
from mfdiff_platform.events import EventLog, follow
from mfdiff_platform.progress import Task, say, task
from mfdiff_platform.tracking import Run, TrackingStore
from mfdiff_platform.workspace import Workspace

if TYPE_CHECKING:
    from mfdiff_platform.context import TrainContext

EXPERIMENT = "mfdiff-pretraining"
NEEDS_SINOGRAMS = (
    "fb-sem reconstructs images from measured sinograms, and datasets of slices carry none; choose"
    " another model"
)
EVENTS, REQUEST, BUNDLE = "events.jsonl", "request.json", "bundle"


@dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """What a pretraining run computes; the number of workers is not part of it.

    Attributes:
        name: name of the run; the same name resumes.
        data: absolute dataset folder.
        model: network, diffusion and sampler.
        train: length, optimiser, seed, intervals.
        batch_size: slices per step over all workers.
        augment: augmentation of the training slices.
    """

    name: str
    data: str
    model: AnyModelConfig = field(default_factory=lambda: preset("base"))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(validate_every=1000, snapshot_every=1000)
    )
    batch_size: int = 4
    augment: Augmentation = "flip"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size=}")


@dataclass(frozen=True)
class Workers:
    """How many workers share a run, and whether each has a GPU."""

    count: int
    on_gpu: bool

    @property
    def resources(self) -> Resources:
        """What they occupy."""
        return Resources(cpus=self.count, gpus=self.count if self.on_gpu else 0)


def pretrain(
    workspace: Workspace, store: TrackingStore, request: PretrainRequest, workers: Workers
) -> Bundle:
    """Pretrain, or resume, or return what is finished.

    Raises:
        ConfigError: a run of this name has other settings, or the batch cannot be shared.
        DataError: the dataset is damaged, leaking or of another image size than the model.
        ResourceError: the cluster is too small.
        TrainingError: a worker failed; the message is its own.
    """
    folder = workspace.pretraining(request.name)
    _refuse_another(folder, request)
    if (folder / BUNDLE).is_dir():
        say(f"Pretraining {request.name} is finished: {folder / BUNDLE}")
        return load_bundle(folder / BUNDLE)
    if request.batch_size % workers.count:
        raise ConfigError(
            f"--batch-size {request.batch_size} cannot be shared by {workers.count} workers;"
            " choose a multiple"
        )
    dataset = open_dataset(Path(request.data))
    check_image_size(dataset, request.model)
    with connect() as cluster:
        _require(cluster, workers)
        # Only now: a command that could not begin must not hold the name.
        write_json(folder / REQUEST, to_dict(request))
        run = _open_run(store, request, dataset)
        total = request.train.iterations
        title = f"Pretraining {request.name} on {workers.resources}"
        with (
            run.watched(),
            task(title, total) as shown,
            follow(folder / EVENTS, _Follower(shown, run)),
        ):
            _fit(folder, request, workers)
    bundle = load_bundle(folder / BUNDLE)
    run.log_dir(bundle.folder, "checkpoints/best")
    run.log_metrics({f"best/{k}": v for k, v in bundle.provenance.metrics.items()}, total)
    run.finish("finished")
    return bundle


def _refuse_another(folder: Path, request: PretrainRequest) -> None:
    """Check that a run that was begun in ``folder`` is the one requested."""
    if not (folder / REQUEST).is_file():
        return
    if from_dict(PretrainRequest, read_json(folder / REQUEST)) != request:
        raise ConfigError(
            f"pretraining run {request.name!r} was begun with other settings (see"
            f" {folder / REQUEST}); give another --name, or the same settings to resume it"
        )


def check_image_size(dataset: Dataset, model: AnyModelConfig) -> None:
    """Refuse slices that the network was not built for.

    Raises:
        ConfigError: sizes differ, or the model needs what the slices do not carry.
    """
    if model.system == "fb-sem":
        raise ConfigError(f"{dataset.folder}: {NEEDS_SINOGRAMS}")
    have, want = dataset.manifest.image_size, model.image_size
    if have != want:
        setting = f"{'network.' if model.system == 'mfdiff' else ''}image_size"
        raise ConfigError(
            f"{dataset.folder}: slices of {have}x{have} pixels, the model takes {want}x{want};"
            f" simulate at {want}x{want}, or pretrain a model of that size"
            f" (pretrain --set model.{setting}={have})"
        )


def _open_run(store: TrackingStore, request: PretrainRequest, dataset: Dataset) -> Run:
    tags = {
        "domain": dataset.manifest.domain,
        "kind": "pretraining",
        "system": request.model.system,
    }
    run = store.find_or_create(EXPERIMENT, f"pretrain/{request.name}", request.name, tags)
    run.log_config(flatten(request))
    run.log_dataset(dataset.manifest.domain, dataset.manifest.fingerprint, "training")
    return run


def _require(cluster: Cluster, workers: Workers) -> None:
    have = cluster.total
    on_gpu = workers.on_gpu and have.gpus > 0
    fitting = min(have.gpus, have.cpus) if on_gpu else have.cpus
    instead = f"try {'--gpus' if on_gpu else '--cpus'} {fitting:g}"
    cluster.require(workers.resources, f"pretraining with {workers.count} workers", instead)


class _Follower:
    """Shows the workers' events on the terminal and logs them to MLflow."""

    def __init__(self, shown: Task, run: Run) -> None:
        self._shown, self._run = shown, run
        self._validated = ""

    def __call__(self, event: dict[str, Any]) -> None:
        step, kind = event.pop("step"), event.pop("kind")
        if kind == "progress":
            note = f"loss {event['loss']:.4f}, {event['steps_per_s']:.2f} it/s{self._validated}"
        else:
            note = self._validated = f", validation {event['psnr']:.2f} dB"
        self._shown.update(step, note.lstrip(", "))
        group = "train" if kind == "progress" else "validation"
        self._run.log_metrics({f"{group}/{name}": value for name, value in event.items()}, step)


def _fit(folder: Path, request: PretrainRequest, workers: Workers) -> None:
    """Run the workers to the end, restarting them from the last checkpoint if one dies."""
    import ray.train
    import torch
    from ray.train.torch import TorchConfig, TorchTrainer

    # Logical GPUs of a machine without CUDA, as in tests, still train over gloo.
    on_cuda = workers.on_gpu and torch.cuda.is_available()
    trainer = TorchTrainer(
        pretrain_worker,
        train_loop_config={"folder": str(folder), "request": to_dict(request)},
        torch_config=TorchConfig(backend="nccl" if on_cuda else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.on_gpu, resources_per_worker=None
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(folder),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=3, controller_failure_limit=0),
            logging_config=ray.train.LoggingConfig("ERROR"),
        ),
    )
    try:
        with interruptible():
            trainer.fit()
    except ray.train.TrainingFailedError as failure:
        raise TrainingError(_reason(failure)) from failure


def _reason(failure: Exception) -> str:
    """The first worker's own words rather than Ray's."""
    failures = getattr(failure, "worker_failures", None) or {}
    for cause in failures.values():
        inner = getattr(cause, "cause", None) or cause
        return str(inner).strip().splitlines()[-1]
    return str(failure).strip().splitlines()[0]


def pretrain_worker(config: dict[str, Any]) -> None:
    """One worker of a Ray Train group."""
    from mfdiff_platform.context import RayTrainContext

    request = from_dict(PretrainRequest, config["request"])
    run_worker(request, Path(config["folder"]), RayTrainContext())


def run_worker(request: PretrainRequest, folder: Path, context: TrainContext) -> None:
    """Train under any launcher; rank 0 writes events and, at the end, the bundle to ``folder``."""
    dataset = open_dataset(Path(request.data))
    model = build_model(request.model, request.train.seed).to(context.device)
    model.set_layout(request.train.layout)
    state = start_training(model, request.train.optim)
    context.resume(state)
    train_set = dataset.part("train").resident(context.device)
    stream = BatchStream(
        train_set,
        request.batch_size,
        request.train.seed,
        request.augment,
        device=context.device,
    )
    held_out = dataset.part("validation")
    log = EventLog(folder / EVENTS) if context.share.rank == 0 else None
    clock = time.monotonic(), state.step
    events = train(
        state,
        stream,
        request.train,
        validate=lambda judged: shared_validation(judged, held_out, context.share),
        parallel=context.wrap(model),
        share=context.share,
    )
    for event in events:
        if isinstance(event, Snapshot):
            context.checkpoint(state)
        elif log is not None and isinstance(event, Progress):
            now = time.monotonic(), event.step
            rate = (now[1] - clock[1]) / max(now[0] - clock[0], 1e-9)
            clock = now
            values = {"loss": event.loss, "lr": event.lr, "grad_norm": event.grad_norm}
            log.append("progress", event.step, values | {"steps_per_s": rate})
        elif log is not None and isinstance(event, Validated):
            log.append("validated", event.step, event.metrics)
    if not state.best_weights:
        raise TrainingError("no validation gave a finite PSNR; lower the learning rate")
    if context.share.rank == 0:
        save_bundle(
            folder / BUNDLE,
            request.model,
            state.best_weights,
            _provenance(request, dataset, state.best),
        )


def shared_validation(model: RestorationModel, slices: SliceSet, share: Share) -> dict[str, float]:
    """Mean metrics over ``slices``, each worker restoring its part of them."""
    import torch

    mine = set(range(share.rank, len(slices), share.world_size))
    position = iter(range(len(slices)))
    part = slices.select(lambda _: next(position) in mine)
    device = next(model.parameters()).device  # NCCL reduces what lies on its own device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    if len(part):
        rows = torch.tensor(evaluate_model(model, part).rows(), dtype=torch.float64)
        sums += rows.sum(0).to(device)
    means = share.mean(sums) * share.world_size / len(slices)
    return dict(zip(("psnr", "ssim", "nmse"), means.tolist(), strict=True))


def _provenance(request: PretrainRequest, dataset: Dataset, best: float) -> Provenance:
    return Provenance(
        domain=dataset.manifest.domain,
        strategy="pretrain",
        iterations=request.train.iterations,
        seed=request.train.seed,
        data=dataset.manifest.fingerprint,
        voxel_mm=dataset.shards[0].infos[0].voxel_mm,
        recipe=to_dict(request.train) | {"batch_size": request.batch_size},
        metrics={"psnr": best},
    )
