"""When the frames of a dynamic PET were measured: read from sidecars and clocks, and checked.

Times are seconds after time zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mfdiff_core.faults import fault

LONGEST_FRAME_S = 7200.0
DAY_S = 86_400.0
_IN_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0}
TOLERANCE_S = 0.5
"""Clocks of sidecars are rounded; frames may overlap by this much."""


@dataclass(frozen=True)
class Frame:
    """One frame: when, how long, and where it is stored."""

    start_s: float
    duration_s: float
    run: int
    index: int

    @property
    def end_s(self) -> float:
        """When it ends."""
        return self.start_s + self.duration_s

    @property
    def middle_s(self) -> float:
        """Half way through."""
        return self.start_s + self.duration_s / 2


@dataclass(frozen=True)
class Timing:
    """Frame times of one file, not yet placed among other runs; ``notes`` say what was mended."""

    starts_s: tuple[float, ...]
    durations_s: tuple[float, ...]
    notes: tuple[str, ...] = ()


def read_timing(sidecar: Mapping[str, Any], num_frames: int, where: object) -> Timing | None:
    """Times of a file's frames as its sidecar has them; None if it has none.

    Mends what real sidecars do: a scalar duration for all frames, a first time that wrapped
    around midnight, numbers written as text, and another unit that is stated.

    Raises:
        InputFault: times of another number than frames, overlapping, out of order, without
            length, or in ms that are not stated.
    """
    notes: list[str] = []
    starts = _seconds(sidecar, "FrameTimesStart", notes)
    durations = _seconds(sidecar, "FrameDuration", notes)
    if not starts or not durations:
        return None
    if len(durations) == 1 and len(starts) > 1:
        durations *= len(starts)
        notes.append("one FrameDuration for all frames")
    if not len(starts) == len(durations) == num_frames:
        raise fault("times-count", where, times=len(starts), frames=num_frames)
    if len(starts) > 1 and starts[0] > starts[1] and DAY_S - 60 <= starts[0] <= DAY_S:
        starts[0] -= DAY_S
        notes.append(f"first frame time wrapped around midnight; read as {starts[0]:g} s")
    _check(starts, durations, where)
    return Timing(tuple(starts), tuple(durations), tuple(notes))


def clock_s(text: object) -> float | None:
    """Seconds after midnight of ``12:05:44.000000`` or ``120544.000000``; None if it is neither."""
    digits = str(text or "").strip()
    parts = digits.split(":")
    if len(parts) == 1 and len(digits.partition(".")[0]) == 6:
        parts = [digits[:2], digits[2:4], digits[4:]]
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    inside = 0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 61
    return hours * 3600 + minutes * 60 + seconds if inside else None


def runs_from_clocks(
    clocks_s: Sequence[float | None],
    counts: Sequence[int],
    last_frame_s: float | None,
    where: object,
) -> tuple[Timing, ...]:
    """Times of runs without timing keys, from the clock time at which each run starts.

    A run lasts until the next one starts, so its frames last that long divided by their number;
    those of the last run as long as ``last_frame_s``, or as those of the run before.

    Raises:
        InputFault: a run without clock time, or times that make no sense.
    """
    known = [clock for clock in clocks_s if clock is not None]
    if len(known) < len(counts) or (len(counts) == 1 and last_frame_s is None):
        raise fault("no-times", where)
    begins = [(clock - known[0]) % DAY_S for clock in known]
    lengths = [
        (after - begin) / count
        for begin, after, count in zip(begins[:-1], begins[1:], counts[:-1], strict=True)
    ]
    lengths.append(last_frame_s if last_frame_s is not None else lengths[-1])
    timings = []
    for begin, length, count in zip(begins, lengths, counts, strict=True):
        starts = [begin + length * index for index in range(count)]
        _check(starts, [length] * count, where)
        note = f"no frame times; {count} frames of {length:g} s from the clock times of the runs"
        timings.append(Timing(tuple(starts), (length,) * count, (note,)))
    return tuple(timings)


def in_order(timings: Sequence[Timing], where: object) -> tuple[Frame, ...]:
    """Frames of all runs in the order of time.

    Raises:
        InputFault: runs overlap.
    """
    frames = [
        Frame(start, duration, run, index)
        for run, timing in enumerate(timings)
        for index, (start, duration) in enumerate(
            zip(timing.starts_s, timing.durations_s, strict=True)
        )
    ]
    frames.sort(key=lambda frame: frame.start_s)
    _check([f.start_s for f in frames], [f.duration_s for f in frames], where)
    return tuple(frames)


def placed(timing: Timing, offset_s: float) -> Timing:
    """The same frames ``offset_s`` later."""
    return replace(timing, starts_s=tuple(start + offset_s for start in timing.starts_s))


def _seconds(sidecar: Mapping[str, Any], key: str, notes: list[str]) -> list[float]:
    """Times under ``key``; older sidecars state their unit beside them, under either spelling."""
    unit = str(sidecar.get(f"{key}Units") or sidecar.get(f"{key}Unit") or "s").lower()
    factor = _IN_SECONDS.get(unit, 1.0)
    if factor != 1:
        notes.append(f"{key} in {unit}; read as seconds")
    return [factor * number for number in _numbers(sidecar.get(key))]


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    try:
        numbers = [float(item) for item in values]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _check(starts: Sequence[float], durations: Sequence[float], where: object) -> None:
    shortest, longest = min(durations), max(durations)
    if shortest <= 0:
        frame = durations.index(shortest)
        raise fault("frame-length", where, frame=frame, duration=f"{shortest:g}")
    if longest > LONGEST_FRAME_S or max(starts) > DAY_S:
        raise fault("milliseconds", where, longest=f"{longest:g}")
    for index in range(1, len(starts)):
        end = starts[index - 1] + durations[index - 1]
        if starts[index] < end - TOLERANCE_S:
            # Durations a thousand times the distance of the starts are no overlap but a unit.
            distance = starts[index] - starts[index - 1]
            if distance > 0 and 900 < durations[index - 1] / distance < 1100:
                raise fault("milliseconds", where, longest=f"{longest:g}")
            figures = {"start": f"{starts[index]:g}", "end": f"{end:g}"}
            raise fault("times-order", where, frame=index, before=index - 1, **figures)
