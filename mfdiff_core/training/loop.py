"""The training loop, for every model and every launcher.

`train` yields events; the caller reports, saves and stops. It prints and logs nothing, and knows
of other workers only the slice of each global batch that is its own. A step depends on (seed,
step) and the weights alone, so the loss of a step does not depend on how many workers share it,
and a resumed run repeats what an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from mfdiff_core.data.batches import Batch
from mfdiff_core.errors import TrainingError
from mfdiff_core.model import Layout, RestorationModel
from mfdiff_core.training.frozen_features import FrozenFeatures
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import WHOLE, Precision, Share, Stepper, Updated

Compile = Literal["off", "default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train.

    Attributes:
        iterations: steps in all, those before a resume included.
        optim: optimiser settings.
        seed: keys noise, diffusion steps and dropout.
        precision: ``bf16`` runs the network under autocast, weights stay float32.
        accumulate: micro-batches that each worker's rows are cut into, to save memory.
        layout: memory layout of the network, see `RestorationModel.set_layout`; whoever builds the
            model applies it, before there is an optimiser.
        compile: mode of `torch.compile`; pays on a GPU after minutes, hardly ever on a CPU.
        keep_features: while the fusion is frozen, compute F once per training image.
        log_every: steps between `Progress` events.
        validate_every: steps between `Validated` events; 0 means only at the end.
        snapshot_every: steps between `Snapshot` events; 0 means only at the end.
        max_skipped: steps with a non-finite loss or gradient that are skipped before the run
            stops.
        unfreeze_after: step from which a freeze plan no longer holds; None = never.
        unfreeze_stepwise: from then on release one stage after the other, the one nearest to the
            output first, evenly over what is left of the run.
    """

    iterations: int = 50_000
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    precision: Precision = "fp32"
    accumulate: int = 1
    layout: Layout = "channels_last"
    compile: Compile = "off"
    keep_features: bool = True
    log_every: int = 20
    validate_every: int = 0
    snapshot_every: int = 0
    max_skipped: int = 3
    unfreeze_after: int | None = None
    unfreeze_stepwise: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations=}")
        for name in ("log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
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


def train(
    state: TrainState,
    batches: Callable[[int], Batch],
    config: TrainConfig,
    *,
    validate: Callable[[RestorationModel], dict[str, float]] | None = None,
    metric: str = "psnr",
    wrap: Callable[[nn.Module], nn.Module] | None = None,
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
        wrap: wraps the model for several workers, once and again whenever more of it is trained,
            which a wrapped model does not notice.
        share: which rows of each batch are this worker's.
        anchors: weights that L2-SP pulls towards, by parameter name.

    Raises:
        TrainingError: more than ``config.max_skipped`` steps had to be skipped (names the last),
            or memory does not suffice (says what might).
    """
    step = _stepper(state, config, _module(state, config, wrap), share, anchors or {})
    window: list[Updated] = []
    health = _Health(config.max_skipped, state.step or None)
    while state.step < config.iterations:
        if _unfreeze(state, config):
            step.module = _module(state, config, wrap)
        window.append(step(batches(state.step)))
        state.step += 1
        if _due(state.step, config.log_every, config.iterations):
            loss, grad_norm = health.check(state.step, window, share)
            window.clear()
            yield Progress(state.step, loss, state.optimizer.param_groups[0]["lr"], grad_norm)
        if validate is not None and _due(state.step, config.validate_every, config.iterations):
            with state.averaged() as model:
                metrics = validate(model)
            yield Validated(state.step, metrics, state.note_validation(metrics[metric]))
        if _due(state.step, config.snapshot_every, config.iterations):
            yield Snapshot(state.step)
            health.saved = state.step


def _due(step: int, every: int, iterations: int) -> bool:
    return step == iterations or (every > 0 and step % every == 0)


def _module(
    state: TrainState, config: TrainConfig, wrap: Callable[[nn.Module], nn.Module] | None
) -> nn.Module:
    """The model as a step calls it: wrapped, compiled."""
    module = state.model if wrap is None else wrap(state.model)
    if config.compile == "off":
        return module
    return torch.compile(module, mode=config.compile)  # type: ignore[return-value]


def _stepper(
    state: TrainState,
    config: TrainConfig,
    module: nn.Module,
    share: Share,
    anchors: Mapping[str, torch.Tensor],
) -> Stepper:
    return Stepper(
        state=state,
        module=module,
        optim=config.optim,
        seed=config.seed,
        precision=config.precision,
        iterations=config.iterations,
        accumulate=config.accumulate,
        share=share,
        features=FrozenFeatures(state.model, config.precision, keep=config.keep_features),
        anchors=anchors,
    )


def _unfreeze(state: TrainState, config: TrainConfig) -> bool:
    """Release what of the freeze plan is due before the step to come; says if there was any."""
    if config.unfreeze_after is None or state.step < config.unfreeze_after:
        return False
    left = config.iterations - config.unfreeze_after
    released = False
    for place, stage in enumerate(state.stages):
        wait = place * left // len(state.stages) if config.unfreeze_stepwise else 0
        if state.step >= config.unfreeze_after + wait:
            released |= state.unfreeze(stage)
    return released


@dataclass
class _Health:
    """Counts steps that had to be skipped.

    Attributes:
        max_skipped: as many are borne.
        saved: step of the last checkpoint; None before the first.
    """

    max_skipped: int
    saved: int | None
    skipped: int = 0

    def check(self, step: int, window: list[Updated], share: Share) -> tuple[float, float]:
        """Mean loss of the usable steps since the last check, and the last gradient norm.

        Raises:
            TrainingError: too many were not usable.
        """
        losses = share.mean(torch.stack([updated.loss for updated in window]))
        norms = torch.stack([updated.grad_norm for updated in window])
        good = torch.isfinite(losses) & torch.isfinite(norms)
        bad = (~good).nonzero().flatten().tolist()
        self.skipped += len(bad)
        if self.skipped > self.max_skipped:
            kept = "does not exist yet" if self.saved is None else f"is of step {self.saved}"
            raise TrainingError(
                f"step {step - len(window) + bad[-1] + 1}: loss {float(losses[bad[-1]]):g},"
                f" gradient norm {float(norms[bad[-1]]):g}; {self.skipped} step(s) were not"
                f" finite; the last good checkpoint {kept}; lower the learning rate"
            )
        return float(losses[good].mean()), float(norms[-1])
