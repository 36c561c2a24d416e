"""Optimiser, learning-rate schedule and exponential moving average.

The learning rate is a function of the step, so it has no state to lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Schedule = Literal["constant", "cosine", "linear"]
FINAL_LR_SHARE = 0.01
"""Share of the peak learning rate that falling schedules end at."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule (Sec. 4.1.3: AdamW at 1e-4; the rest is unstated there).

    Attributes:
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        schedule: shape after the warm-up.
        hold: share of what follows the warm-up before a falling schedule begins to fall.
        weight_decay: decoupled weight decay.
        max_grad_norm: global norm at which gradients are clipped.
        ema: decay of the averaged weights, approached as (1 + n) / (10 + n); 0 turns it off.
        layer_decay: factor on the learning rate per stage away from the output, 1 = none.
        l2sp: strength of the pull towards the starting weights (L2-SP).
    """

    lr: float = 1e-4
    warmup: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema: float = 0.9999
    layer_decay: float = 1.0
    l2sp: float = 0.0
    hold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1:
            raise ValueError(f"lr must lie between 0 and 1, got {self.lr=}")
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative, got {self.warmup=}")
        if self.weight_decay < 0 or self.l2sp < 0:
            raise ValueError(f"penalties must not be negative: {self.weight_decay=} {self.l2sp=}")
        if self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm=}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema=}")
        if not 0 <= self.hold < 1:
            raise ValueError(f"hold must lie in [0, 1), got {self.hold=}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay=}")


def lr_factor(config: OptimConfig, step: int, iterations: int) -> float:
    """Learning rate at ``step`` as a share of its peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, iterations - config.warmup)
    if config.schedule == "constant" or progress <= config.hold:
        return 1.0
    progress = (progress - config.hold) / (1 - config.hold)
    fall = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * fall


def build_optimizer(
    model: nn.Module,
    config: OptimConfig,
    lr_scales: Mapping[str, float],
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; frozen ones get no optimiser state.

    Args:
        model: parameters with ``requires_grad`` are trained.
        config: learning rate and decays.
        lr_scales: factor on the learning rate by parameter name, see `lr_groups`.
        betas: decay of the moments.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = lr_groups(trained, config.lr, lr_scales)
    fused = all(p.device.type in ("cpu", "cuda") for _, p in trained)
    decay = config.weight_decay
    return torch.optim.AdamW(groups, betas=betas, weight_decay=decay, fused=fused)


def lr_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], lr: float, lr_scales: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Optimiser groups of equal learning rate, the highest first.

    Args:
        parameters: what to train, by name.
        lr: learning rate of a scale of one.
        lr_scales: factor on it by parameter name; 1 for those not named.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        groups.setdefault(lr_scales.get(name, 1.0), []).append(parameter)
    return [
        {"params": groups[scale], "lr": lr, "lr_scale": scale}
        for scale in sorted(groups, reverse=True)
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, each times its layer-wise factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def averaged_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What `WeightAverage` averages: trainable parameters, and running statistics with them.

    Statistics of the current weights would not fit the averaged ones.
    """
    kept = model.state_dict(keep_vars=True)
    return {n: v for n, v in kept.items() if v.is_floating_point() and _moves(v)}


def _moves(value: torch.Tensor) -> bool:
    return value.requires_grad or not isinstance(value, nn.Parameter)


class WeightAverage:
    """Exponential moving average of tensors of a model, see `averaged_tensors`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.averages = {name: value.detach().clone() for name, value in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Move towards ``tensors`` after ``step`` updates."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = list(self.averages.values())
        current = [tensors[name].detach() for name in self.averages]
        torch._foreach_lerp_(averages, current, weight)
