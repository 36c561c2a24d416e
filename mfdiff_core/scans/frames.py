"""Frames of a dynamic PET, chosen by time and averaged.

Frames are never chosen by index, since real sets miss frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mfdiff_core.data.image_checks import Voxels
from mfdiff_core.faults import fault
from mfdiff_core.scans.timing import TOLERANCE_S, Frame

LEAST_COVERAGE = 0.5
"""Share of a window that frames must cover."""


@dataclass(frozen=True)
class Window:
    """A stretch of time, [start, end) in seconds."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"a window is 0 <= start < end, got {self.start_s=}, {self.end_s=}")

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Decay:
    """How to undo decay between frames.

    Attributes:
        half_life_s: of the nuclide; None if unknown.
        corrected: whether the stored frames are decay corrected to one time.
    """

    half_life_s: float | None = None
    corrected: bool = True

    def factor(self, frame: Frame) -> float:
        """D_f = 2^(t / half-life) in the middle of the frame; 1 where it is not known."""
        if self.half_life_s is None:
            return 1.0
        return float(2 ** (frame.middle_s / self.half_life_s))


def within(frames: Iterable[Frame], window: Window) -> tuple[Frame, ...]:
    """Frames that lie wholly in the window."""
    return tuple(
        frame
        for frame in frames
        if frame.start_s >= window.start_s - TOLERANCE_S
        and frame.end_s <= window.end_s + TOLERANCE_S
    )


def choose(frames: Sequence[Frame], window: Window, where: object) -> tuple[Frame, ...]:
    """Frames for the image of a window.

    Raises:
        InputFault: they cover less than half of it.
    """
    chosen = within(frames, window)
    covered = sum(frame.duration_s for frame in chosen)
    if covered < LEAST_COVERAGE * window.duration_s:
        raise fault(
            "window",
            where,
            covered=f"{covered:g}",
            start=f"{window.start_s:g}",
            end=f"{window.end_s:g}",
            least=f"{LEAST_COVERAGE * window.duration_s:g} s",
        )
    return chosen


def central(
    frames: Sequence[Frame], window: Window, duration_s: float, where: object
) -> tuple[Frame, ...]:
    """Consecutive frames of about ``duration_s`` nearest to the middle of the window.

    Their number is the nearest one, half a frame counting as one: 120 s of 16 s frames are 8.
    Stretches with a gap do not count.

    Raises:
        InputFault: no gapless stretch of that length in the window.
    """
    inside = within(frames, window)
    middle = (window.start_s + window.end_s) / 2
    best: tuple[Frame, ...] = ()
    for first in range(len(inside)):
        count = max(1, math.floor(duration_s / inside[first].duration_s + 0.5))
        stretch = inside[first : first + count]
        gaps = [b.start_s - a.end_s for a, b in pairwise(stretch)]
        if len(stretch) < count or any(gap > TOLERANCE_S for gap in gaps):
            continue
        if not best or abs(_middle(stretch) - middle) < abs(_middle(best) - middle):
            best = stretch
    length = sum(frame.duration_s for frame in best)
    if not best or not 0.5 <= length / duration_s <= 2:
        figures = {"start": f"{window.start_s:g}", "end": f"{window.end_s:g}"}
        least = f"an unbroken stretch of {duration_s:g} s"
        raise fault("window", where, covered=f"{length:g}", least=least, **figures)
    return best


def _middle(stretch: Sequence[Frame]) -> float:
    return (stretch[0].start_s + stretch[-1].end_s) / 2


class FrameMean:
    """Running mean of frames, weighted like counts: sum(d x / D) / sum(d / D)."""

    def __init__(self, frames: Iterable[Frame], decay: Decay, where: object) -> None:
        if not decay.corrected and decay.half_life_s is None:
            raise fault("no-half-life", where)
        self.frames = frozenset(frames)
        self._decay = decay
        self._sum: Voxels | None = None
        self._weights = 0.0

    def add(self, frame: Frame, image: Voxels) -> None:
        """Take one more frame, if it is one of the mean's."""
        if frame not in self.frames:
            return
        factor = self._decay.factor(frame)
        weight = frame.duration_s / factor
        gain = np.float32(weight if self._decay.corrected else frame.duration_s)
        if self._sum is None:
            self._sum = np.zeros_like(image)
        self._sum += gain * image
        self._weights += weight

    def result(self) -> Voxels:
        """The mean of what was added, decay corrected."""
        assert self._sum is not None, "at least one frame was added"
        return self._sum / np.float32(self._weights)
