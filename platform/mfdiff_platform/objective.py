"""What a search optimises: one metric of the validation, or several against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mfdiff_core.errors import ConfigError

Mode = Literal["max", "min"]

MODES: dict[str, Mode] = {
    "psnr": "max",
    "ssim": "max",
    "nmse": "min",
    "bias": "min",
    "slice_seconds": "min",
}
"""Metrics that can be optimised, and which way is better.

``bias`` is the mean over subjects and regions of the absolute relative error of a region's mean;
``slice_seconds`` the time that restoring one slice takes.
"""


@dataclass(frozen=True)
class Objective:
    """A metric and its better direction; ``<setting>/psnr`` judges one setting alone."""

    metric: str
    mode: Mode

    def score(self, metrics: Mapping[str, float]) -> float:
        """The metric, turned so that higher is better."""
        value = metrics[self.metric]
        return value if self.mode == "max" else -value

    def best(self, values: Iterable[float]) -> float:
        """The best of several values of the metric."""
        return max(values) if self.mode == "max" else min(values)


PSNR = Objective("psnr", "max")


def read_objectives(metrics: tuple[str, ...], modes: tuple[str, ...]) -> tuple[Objective, ...]:
    """Objectives of ``--metric`` and ``--mode``; without modes, what is better decides.

    Raises:
        ConfigError: an unknown metric, one named twice, or not one mode per metric.
    """
    for metric in metrics:
        if metric.rsplit("/", 1)[-1] not in MODES:
            raise ConfigError(
                f"--metric {metric}: unknown; take {', '.join(MODES)}, or SETTING/psnr"
            )
    if len(set(metrics)) < len(metrics):
        raise ConfigError(f"--metric: {', '.join(metrics)} names one twice")
    if modes and len(modes) != len(metrics):
        raise ConfigError(f"--mode: {len(modes)} given for {len(metrics)} metrics; give one each")
    directions = modes or tuple(MODES[metric.rsplit("/", 1)[-1]] for metric in metrics)
    return tuple(
        Objective(metric, "max" if mode == "max" else "min")
        for metric, mode in zip(metrics, directions, strict=True)
    )


def pareto(points: Mapping[int, Mapping[str, float]], objectives: Iterable[Objective]) -> list[int]:
    """Keys of the points that no other point beats in one objective without losing in another."""
    aims = tuple(objectives)
    scores = {key: tuple(aim.score(values) for aim in aims) for key, values in points.items()}
    return [key for key in scores if not any(_beats(o, scores[key]) for o in scores.values())]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
