"""What a pretraining run computes, and how its batches are shared out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import overload

from mfdiff_core.config import override
from mfdiff_core.data.batches import Augmentation
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import ConfigError
from mfdiff_core.model import AnyModelConfig, ModelConfig, preset
from mfdiff_core.training.loop import TrainConfig

EXPERIMENT = "mfdiff-pretraining"
"""Where pretraining runs stand in MLflow."""
FAST_EVALUATIONS = 10


@dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """What a pretraining run computes; the number of workers is not part of it.

    The learning rate belongs to the global batch: it follows neither the workers nor the batch.

    Attributes:
        name: name of the run; the same name resumes.
        data: absolute dataset folder.
        model: network, diffusion and sampler.
        train: length, optimiser, seed, intervals.
        batch_size: slices per step over all workers.
        micro_batch: most slices that a worker takes through the network at once; a larger share
            is accumulated. None for no limit.
        augment: augmentation of the training slices.
    """

    name: str
    data: str
    model: AnyModelConfig = field(default_factory=lambda: preset("base"))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(validate_every=1000, snapshot_every=1000)
    )
    batch_size: int = 4
    micro_batch: int | None = None
    augment: Augmentation = "flip"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size=}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {self.micro_batch=}")


@dataclass(frozen=True)
class BatchShare:
    """One worker's part of a global batch: ``accumulate`` passes of ``micro`` slices."""

    workers: int
    micro: int
    accumulate: int

    def __str__(self) -> str:
        passes = f" x {self.accumulate} passes" if self.accumulate > 1 else ""
        total = self.workers * self.micro * self.accumulate
        workers = f"{self.workers} worker{'s' * (self.workers != 1)}"
        return f"{total} = {workers} x {self.micro}{passes}"


def share_batch(request: PretrainRequest, workers: int) -> BatchShare:
    """How ``workers`` take the global batch, which stays the same for any number of them.

    Raises:
        ConfigError: it cannot be shared evenly.
    """
    rows, rest = divmod(request.batch_size, workers)
    if rest:
        raise ConfigError(
            f"--batch-size {request.batch_size} cannot be shared by {workers} workers;"
            " choose a multiple"
        )
    limit = request.micro_batch or rows
    asked = min(request.train.accumulate, rows)
    passes = next(n for n in range(asked, rows + 1) if rows % n == 0 and rows // n <= limit)
    return BatchShare(workers, rows // passes, passes)


def train_config(request: PretrainRequest, workers: int) -> TrainConfig:
    """The request's training, its passes per step set for ``workers``."""
    return override(request.train, {"accumulate": share_batch(request, workers).accumulate})


@overload
def fast_sampler(model: ModelConfig) -> SamplerConfig: ...
@overload
def fast_sampler(model: AnyModelConfig) -> SamplerConfig | None: ...
def fast_sampler(model: AnyModelConfig) -> SamplerConfig | None:
    """The model's own sampler if it is fast, else a fast one for validation.

    None for models that have no sampler to choose.
    """
    if not isinstance(model, ModelConfig):
        return None
    if model.sampler.num_evaluations <= FAST_EVALUATIONS:
        return model.sampler
    evaluations = min(FAST_EVALUATIONS, model.diffusion.num_steps)
    return replace(
        model.sampler, name="dpmpp2m", num_evaluations=evaluations, num_samples=1, eta=0.0
    )
