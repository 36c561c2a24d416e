from __future__ import annotations

import math

import numpy as np
import pytest

from mfdiff_core.errors import InputFault
from mfdiff_core.scans.frames import Decay, FrameMean, Window, central, choose, within
from mfdiff_core.scans.timing import Frame

FULL = tuple(Frame(16.0 * index, 16.0, 0, index) for index in range(356))
PAPER = Window(1800, 3600)


def without(first_s: float, last_s: float) -> tuple[Frame, ...]:
    return tuple(f for f in FULL if f.end_s <= first_s or f.start_s >= last_s)


def test_window_takes_whole_frames_only() -> None:
    frames = choose(FULL, PAPER, "pet")
    assert (len(frames), frames[0].start_s, frames[-1].end_s) == (112, 1808, 3600)


def test_frames_are_chosen_by_time_where_some_are_missing() -> None:
    """As sub-20 of ds002898, whose first 96 frames are gone."""
    gappy = [Frame(f.start_s, f.duration_s, 0, i) for i, f in enumerate(FULL[96:])]
    frames = choose(gappy, PAPER, "pet")
    assert (frames[0].start_s, frames[0].index) == (1808, 17)


def test_window_that_is_mostly_missing_is_refused() -> None:
    with pytest.raises(InputFault, match="cover 784 s of the window 1800 to 3600 s; at least 900"):
        choose(without(2600, 4800), PAPER, "pet")


@pytest.mark.parametrize(("seconds", "count"), [(16, 1), (120, 8), (112, 7), (20, 1), (24, 2)])
def test_low_dose_is_the_nearest_number_of_frames_at_the_centre(seconds: float, count: int) -> None:
    frames = central(FULL, PAPER, seconds, "pet")
    assert len(frames) == count
    assert abs((frames[0].start_s + frames[-1].end_s) / 2 - 2700) <= 8
    assert set(frames) <= set(within(FULL, PAPER))


def test_low_dose_lies_beside_a_gap_not_across_it() -> None:
    frames = central(without(2680, 2800), PAPER, 120, "pet")
    assert frames[-1].end_s - frames[0].start_s == 128
    assert frames[-1].end_s <= 2680 or frames[0].start_s >= 2800


def test_low_dose_without_an_unbroken_stretch_is_refused() -> None:
    every_other = [frame for frame in FULL if frame.index % 2]
    with pytest.raises(InputFault, match="unbroken stretch of 120 s"):
        central(every_other, PAPER, 120, "pet")


def test_mean_weighs_frames_like_counts() -> None:
    """Frames of decay-corrected activity x hold x d / D counts."""
    frames = [Frame(0, 60, 0, 0), Frame(6000, 120, 0, 1)]
    decay = Decay(6586.2)
    mean = FrameMean(frames, decay, "pet")
    values = (10.0, 40.0)
    for frame, value in zip(frames, values, strict=True):
        mean.add(frame, np.full((2, 2, 2), value, np.float32))
    weights = [f.duration_s * math.exp(-math.log(2) * f.middle_s / 6586.2) for f in frames]
    assert mean.result() == pytest.approx(np.average(values, weights=weights), rel=1e-6)


def test_frames_that_were_not_corrected_are_corrected() -> None:
    """A constant activity, stored as it decays, comes out as it was at time zero."""
    frames = [Frame(600.0 * index, 600, 0, index) for index in range(6)]
    decay = Decay(6586.2, corrected=False)
    mean = FrameMean(frames, decay, "pet")
    for frame in frames:
        mean.add(frame, np.full((2, 2, 2), 100 / decay.factor(frame), np.float32))
    assert mean.result() == pytest.approx(100, rel=1e-6)


def test_correction_needs_a_half_life() -> None:
    with pytest.raises(InputFault, match="RadionuclideHalfLife"):
        FrameMean(FULL[:1], Decay(None, corrected=False), "pet")


def test_frames_of_other_images_are_passed_over() -> None:
    mean = FrameMean(FULL[:1], Decay(), "pet")
    for frame in FULL[:3]:
        mean.add(frame, np.full((2, 2, 2), frame.index + 1, np.float32))
    assert np.array_equal(mean.result(), np.ones((2, 2, 2)))


@pytest.mark.parametrize("span", [(100, 100), (200, 100), (-5, 10)])
def test_window_runs_forward(span: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= start < end"):
        Window(*span)
