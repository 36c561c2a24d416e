"""The training loop, for every model and every launcher.

`train` yields events; the caller reports, saves and stops. It prints and logs nothing, and knows
of other workers only the slice of each global batch that is its own. All randomness of a step is
drawn for the global batch and keyed by (seed, step), so the loss of a step does not depend on how
many workers share it, and a resumed run repeats what an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed
from torch import nn

from mfdiff_core.data.batches import Batch
from mfdiff_core.errors import TrainingError
from mfdiff_core.model import RestorationModel
from mfdiff_core.seeding import derive_seed, generator
from mfdiff_core.training.optim import OptimConfig, lr_factor, set_lr
from mfdiff_core.training.state import TrainState

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train.

    Attributes:
        iterations: steps in all, those before a resume included.
        optim: optimiser settings.
        seed: keys noise, diffusion steps and dropout.
        precision: ``bf16`` runs the network under autocast, weights stay float32.
        log_every: steps between `Progress` events.
        validate_every: steps between `Validated` events; 0 means only at the end.
        snapshot_every: steps between `Snapshot` events; 0 means only at the end.
        max_skipped: steps with a non-finite loss or gradient that are skipped before the run
            stops.
        unfreeze_after: step from which a freeze plan no longer holds; None = never.
    """

    iterations: int = 50_000
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    precision: Precision = "fp32"
    log_every: int = 20
    validate_every: int = 0
    snapshot_every: int = 0
    max_skipped: int = 3
    unfreeze_after: int | None = None

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations=}")
        if self.log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {self.log_every=}")
        if min(self.validate_every, self.snapshot_every, self.max_skipped) < 0:
            raise ValueError("intervals and max_skipped must not be negative")


@dataclass(frozen=True)
class Progress:
    """Mean loss since the last event, learning rate and gradient norm after ``step`` steps."""

    step: int
    loss: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class Validated:
    """Metrics on held-out slices after ``step`` steps."""

    step: int
    metrics: dict[str, float]
    is_best: bool


@dataclass(frozen=True)
class Snapshot:
    """The state is at a step where it should be saved."""

    step: int


Event = Progress | Validated | Snapshot


@dataclass(frozen=True)
class Share:
    """This worker's part of each global batch."""

    rank: int = 0
    world_size: int = 1

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """Rows of this worker.

        Raises:
            TrainingError: the batch cannot be shared out evenly.
        """
        if len(images) % self.world_size:
            raise TrainingError(
                f"a batch of {len(images)} cannot be shared by {self.world_size} workers;"
                " choose a multiple"
            )
        return images.chunk(self.world_size)[self.rank]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of ``values`` over the workers."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values / self.world_size


WHOLE = Share()


def train(
    state: TrainState,
    batches: Callable[[int], Batch],
    config: TrainConfig,
    *,
    validate: Callable[[RestorationModel], dict[str, float]] | None = None,
    metric: str = "psnr",
    parallel: nn.Module | None = None,
    share: Share = WHOLE,
    anchors: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[Event]:
    """Train ``state`` up to ``config.iterations`` steps.

    Args:
        state: what is trained; updated in place.
        batches: global batch of a step, on the model's device.
        config: length and manner.
        validate: metrics of a model that holds the weights to judge.
        metric: key of the metric that decides which weights are best; higher is better.
        parallel: the model wrapped for distributed training, None for the model itself.
        share: which rows of each batch are this worker's.
        anchors: weights that L2-SP pulls towards, by parameter name.

    Raises:
        TrainingError: more than ``config.max_skipped`` steps had to be skipped; names the last.
    """
    pulls = _pulls(state.model, anchors or {}, config.optim.l2sp)
    losses: list[torch.Tensor] = []
    skipped = 0
    while state.step < config.iterations:
        if state.step == config.unfreeze_after:
            state.unfreeze()
            pulls = _pulls(state.model, anchors or {}, config.optim.l2sp)
        batch = Batch(*map(share.of, batches(state.step)))
        loss, grad_norm = _step(state, parallel or state.model, batch, config, share, pulls)
        state.step += 1
        losses.append(loss)
        if _due(state.step, config.log_every, config.iterations):
            window = share.mean(torch.stack(losses))
            losses.clear()
            bad = (~torch.isfinite(window)).nonzero().flatten().tolist()
            skipped += len(bad)
            if skipped > config.max_skipped:
                raise TrainingError(
                    f"step {state.step - len(window) + bad[-1] + 1}: loss or gradient was not"
                    f" finite in {skipped} step(s); lower the learning rate, or resume from the"
                    " last checkpoint"
                )
            loss_mean = float(window[torch.isfinite(window)].mean())
            lr = state.optimizer.param_groups[0]["lr"]
            yield Progress(state.step, loss_mean, lr, float(grad_norm))
        if validate is not None and _due(state.step, config.validate_every, config.iterations):
            with state.averaged() as model:
                metrics = validate(model)
            yield Validated(state.step, metrics, state.note_validation(metrics[metric]))
        if _due(state.step, config.snapshot_every, config.iterations):
            yield Snapshot(state.step)


def _due(step: int, every: int, iterations: int) -> bool:
    return step == iterations or (every > 0 and step % every == 0)


def _step(
    state: TrainState,
    module: nn.Module,
    batch: Batch,
    config: TrainConfig,
    share: Share,
    pulls: Pulls,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One update of the weights; returns loss and gradient norm without waiting for either.

    Where the gradient is not finite, nothing is updated and the loss returned is NaN.
    """
    t, eps = _draw(state, batch, config.seed, share)
    set_lr(
        state.optimizer, config.optim.lr * lr_factor(config.optim, state.step, config.iterations)
    )
    torch.manual_seed(derive_seed(config.seed, "dropout", state.step, share.rank))
    state.optimizer.zero_grad(set_to_none=True)
    device = batch.x_p.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
        loss: torch.Tensor = module(*batch, t, eps)
    loss.backward()  # type: ignore[no-untyped-call]
    _pull(pulls, config.optim.l2sp)
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(trained, config.optim.max_grad_norm)
    # A fused optimiser leaves everything as it was where found_inf is 1; asking the device for
    # the norm here would stall it.
    usable = torch.isfinite(grad_norm)
    state.optimizer.found_inf = (~usable).float()  # type: ignore[attr-defined]
    state.optimizer.step()
    if state.average is not None:
        state.average.update(dict(state.model.named_parameters()), state.step)
    return torch.where(usable, loss.detach().float(), float("nan")), grad_norm


def _draw(
    state: TrainState, batch: Batch, seed: int, share: Share
) -> tuple[torch.Tensor, torch.Tensor]:
    """Diffusion steps and noise of this worker's rows, cut from the global batch's."""
    source = generator(seed, "noise", state.step)
    rows = len(batch.x_s) * share.world_size
    t = state.model.process.draw_timesteps(rows, source)
    eps = torch.randn(rows, *batch.x_s.shape[1:], generator=source)
    device = batch.x_s.device
    return share.of(t).to(device, non_blocking=True), share.of(eps).to(device, non_blocking=True)


Pulls = list[tuple[nn.Parameter, torch.Tensor]]


def _pulls(model: nn.Module, anchors: Mapping[str, torch.Tensor], strength: float) -> Pulls:
    """Trained parameters beside the values that L2-SP pulls them to."""
    if strength == 0:
        return []
    named = ((p, anchors[n]) for n, p in model.named_parameters() if n in anchors)
    return [(p, anchor.to(p.device)) for p, anchor in named if p.requires_grad]


def _pull(pulls: Pulls, strength: float) -> None:
    """Add the gradient of strength / 2 * |w - w_0|^2 (L2-SP, arXiv 1802.01483)."""
    for parameter, anchor in pulls:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=strength)
