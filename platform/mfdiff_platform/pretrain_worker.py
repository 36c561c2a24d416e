"""One worker of a pretraining run, under any launcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mfdiff_core.bundle import Provenance, save_bundle
from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.data.batches import Batch, BatchStream
from mfdiff_core.data.dataset import Dataset, SliceSet, open_dataset
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import TrainingError
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.evaluation.validation import restore_slices
from mfdiff_core.files import read_json, write_json
from mfdiff_core.model import RestorationModel, build_model
from mfdiff_core.training.loop import Event, Progress, Snapshot, Validated, train
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Share
from mfdiff_core.training.strategies import start_training
from mfdiff_platform.checkpoints import checkpoint_bytes, naming_full_disk, state_bytes
from mfdiff_platform.context import RayTrainContext, Stopped, TrainContext
from mfdiff_platform.events import EventLog
from mfdiff_platform.interrupt import StopFile
from mfdiff_platform.picture import restore_middle_slice
from mfdiff_platform.pretrain_request import PretrainRequest, fast_sampler, train_config

EVENTS, BUNDLE, LAST = "events.jsonl", "bundle", "last"
WORKERS, PICTURES, UNVALIDATED = "workers", "pictures", "unvalidated.json"
GIB = 2**30


def pretrain_worker(config: dict[str, Any]) -> bool:
    """A worker of Ray Train; says whether the run is finished rather than stopped."""
    request = from_dict(PretrainRequest, config["request"])
    folder = Path(config["folder"])
    return run_worker(request, folder, RayTrainContext(folder))


@dataclass
class Clock:
    """Where the time of a worker goes, start-up apart; seconds by what it was spent on."""

    started: float = field(default_factory=time.perf_counter)
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the block's time as ``name``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - begun

    def training(self) -> float:
        """Seconds that were not spent on anything else."""
        return time.perf_counter() - self.started - sum(self.spent.values())

    def shares(self) -> dict[str, float]:
        """Seconds since the start, and what share of them was not training."""
        wall = max(time.perf_counter() - self.started, 1e-9)
        told = {f"share_{name}": seconds / wall for name, seconds in self.spent.items()}
        return {"seconds": wall, "share_outside": sum(self.spent.values()) / wall, **told}


def run_worker(request: PretrainRequest, folder: Path, context: TrainContext) -> bool:
    """Train under any launcher; rank 0 writes events, pictures and, at the end, the bundles.

    Returns:
        True when the run is finished, False when it was stopped, with a checkpoint.
    """
    dataset = open_dataset(Path(request.data))
    model = build_model(request.model, request.train.seed).to(context.device)
    model.set_layout(request.train.layout)
    state = start_training(model, request.train.optim)
    context.resume(state)
    held_out, train_set = dataset.part("validation"), dataset.part("train")
    with naming_full_disk(folder, checkpoint_bytes(state_bytes(state))):
        worker = _Worker(request, folder, context, held_out, state)
        stream = BatchStream(
            train_set.resident(context.device),
            request.batch_size,
            request.train.seed,
            request.augment,
            device=context.device,
        )
        try:
            worker.validate_again()
            events = train(
                state,
                worker.stoppable(stream),
                train_config(request, context.share.world_size),
                validate=worker.validate,
                wrap=context.wrap,
                share=context.share,
            )
            for event in events:
                worker.handle(event)
        except Stopped:
            worker.stop()
            return False
        if not state.best_weights:
            raise TrainingError("no validation gave a finite PSNR; lower the learning rate")
        worker.finish(dataset)
    return True


class _Worker:
    """What happens around the steps; what is written, rank 0 writes."""

    def __init__(
        self,
        request: PretrainRequest,
        folder: Path,
        context: TrainContext,
        held_out: SliceSet,
        state: TrainState,
    ) -> None:
        self._request, self._folder, self._context = request, folder, context
        self._held_out, self._state = held_out, state
        self._sampler = fast_sampler(request.model)
        self._asked, self._cut_short = StopFile(folder), False
        card = context.card()
        write_json(folder / WORKERS / f"{card.rank}.json", asdict(card))
        self._log = EventLog(folder / EVENTS) if context.share.rank == 0 else None
        self._write("began", {"workers": float(context.share.world_size)})
        self._clock = Clock()
        self._mark = 0.0, state.step

    def stoppable(self, stream: BatchStream) -> Callable[[int], Batch]:
        """``stream`` that raises `Stopped` between two steps."""

        def batch(step: int) -> Batch:
            with self._clock.of("waiting"):
                stopping = self._context.stopping()
            if stopping:
                raise Stopped
            return stream(step)

        return batch

    def validate(self, model: RestorationModel) -> dict[str, float]:
        """Metrics on the held-out slices, and the picture of one of them."""
        self._cut_short = True
        with self._clock.of("validation"):
            metrics = shared_validation(
                model, self._held_out, self._context.share, self._sampler, self._asked
            )
            if self._log is not None:
                picture = restore_middle_slice(model, self._held_out, self._sampler)
                picture.save(picture_file(self._folder, self._state.step))
        self._cut_short = False
        return metrics

    def validate_again(self) -> None:
        """Make up for the validation that a stop cut short."""
        note, step = self._folder / UNVALIDATED, self._state.step
        if not note.is_file() or read_json(note)["step"] != step:
            return
        with self._state.averaged() as model:
            metrics = self.validate(model)
        self.handle(Validated(step, metrics, self._state.note_validation(metrics["psnr"])))

    def handle(self, event: Event) -> None:
        """Log an event, or write a checkpoint."""
        if isinstance(event, Snapshot):
            with self._clock.of("checkpoint"):
                self._context.checkpoint(self._state)
            return
        with self._clock.of("logging"):
            if isinstance(event, Progress):
                self._write("progress", self._progress(event))
            else:
                self._write("validated", event.metrics)

    def _progress(self, event: Progress) -> dict[str, float]:
        seconds = self._clock.training()
        rate = (event.step - self._mark[1]) / max(seconds - self._mark[0], 1e-9)
        self._mark = seconds, event.step
        values = {"loss": event.loss, "lr": event.lr, "grad_norm": event.grad_norm}
        values |= {"steps_per_s": rate, "slices_per_s": rate * self._request.batch_size}
        if self._context.device.type == "cuda":
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._context.device) / GIB
        return values

    def stop(self) -> None:
        """Leave a checkpoint of the last whole step."""
        if self._log is not None and self._cut_short:
            write_json(self._folder / UNVALIDATED, {"step": self._state.step})
        if self._state.step:
            self._context.checkpoint(self._state)
        self._write("stopped", {})

    def finish(self, dataset: Dataset) -> None:
        """Write the last weights and the best ones; the latter mark the run as finished."""
        if self._log is None:
            return
        self._write("finished", self._clock.shares())
        for name, weights, metrics in (
            (LAST, self._state.weights(), {}),
            (BUNDLE, self._state.best_weights, {"psnr": self._state.best}),
        ):
            provenance = _provenance(self._request, dataset, metrics)
            save_bundle(self._folder / name, self._request.model, weights, provenance)

    def _write(self, kind: str, values: dict[str, float]) -> None:
        if self._log is not None:
            self._log.append(kind, self._state.step, values)


def picture_file(folder: Path, step: int) -> Path:
    """Where the picture of the validation after ``step`` steps lies."""
    return folder / PICTURES / f"{step:08d}.npz"


def shared_validation(
    model: RestorationModel,
    slices: SliceSet,
    share: Share,
    sampler: SamplerConfig | None = None,
    stop: StopFile | None = None,
) -> dict[str, float]:
    """Mean metrics over ``slices``, each worker restoring its part of them.

    Raises:
        Stopped: a worker saw the stop file; all of them raise it.
    """
    mine = set(range(share.rank, len(slices), share.world_size))
    position = iter(range(len(slices)))
    part = slices.select(lambda _: next(position) in mine)
    device = next(model.parameters()).device  # NCCL reduces what lies on its own device
    sums = torch.zeros(4, dtype=torch.float64, device=device)

    def look(_: int) -> None:
        if stop is not None and stop():
            raise Stopped

    try:
        if len(part):
            restored = restore_slices(model, part, sampler=sampler, on_batch=look).x_s
            metrics = evaluate_slices(restored[:, 0].cpu(), part.x_s[:, 0].cpu())
            rows = torch.tensor(metrics.rows(), dtype=torch.float64)
            sums[:3] += rows.sum(0).to(device)
    except Stopped:
        sums[3] = 1
    means = share.mean(sums) * share.world_size / len(slices)
    if means[3] > 0:
        raise Stopped
    return dict(zip(("psnr", "ssim", "nmse"), means[:3].tolist(), strict=True))


def _provenance(
    request: PretrainRequest, dataset: Dataset, metrics: dict[str, float]
) -> Provenance:
    return Provenance(
        domain=dataset.manifest.domain,
        strategy="pretrain",
        iterations=request.train.iterations,
        seed=request.train.seed,
        data=dataset.manifest.fingerprint,
        voxel_mm=dataset.shards[0].infos[0].voxel_mm,
        recipe=to_dict(request.train) | {"batch_size": request.batch_size},
        metrics=metrics,
        data_facts=dataset.manifest.facts,
    )
