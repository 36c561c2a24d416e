from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.errors import InputFault
from mfdiff_core.scans.timing import (
    Timing,
    clock_s,
    in_order,
    placed,
    read_timing,
    runs_from_clocks,
)

STARTS = [0, 16, 32, 48]


def timing(**sidecar: Any) -> Timing:
    values = {"FrameTimesStart": STARTS, "FrameDuration": [16] * 4} | sidecar
    read = read_timing(values, len(values["FrameTimesStart"]), "pet")
    assert read is not None
    return read


def test_times_are_read_as_they_stand() -> None:
    assert timing() == Timing((0, 16, 32, 48), (16, 16, 16, 16))


def test_scalar_duration_holds_for_all_frames() -> None:
    read = timing(FrameDuration=16)
    assert read.durations_s == (16,) * 4
    assert "one FrameDuration" in read.notes[0]


def test_first_time_that_wrapped_around_midnight_is_mended() -> None:
    read = timing(FrameTimesStart=[86399, 16, 32, 48])
    assert read.starts_s == (-1, 16, 32, 48)
    assert "wrapped" in read.notes[0]


def test_missing_frames_are_gaps_not_faults() -> None:
    assert timing(FrameTimesStart=[0, 400, 832, 1264]).starts_s == (0, 400, 832, 1264)


@pytest.mark.parametrize("key", ["Unit", "Units"])
def test_stated_unit_of_times_is_read(key: str) -> None:
    read = timing(FrameDuration=[16_000] * 4, **{f"FrameDuration{key}": "ms"})
    assert read.durations_s == pytest.approx((16,) * 4)
    assert "FrameDuration in ms" in read.notes[0]
    assert timing(**{f"FrameTimesStart{key}": "s"}).notes == ()


@pytest.mark.parametrize("sidecar", [{}, {"FrameTimesStart": []}, {"FrameDuration": None}])
def test_sidecar_without_times_says_so(sidecar: dict[str, Any]) -> None:
    assert read_timing(sidecar, 4, "pet") is None


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        ({"FrameTimesStart": [0, 16, 20, 48]}, r"frame 2 starts at 20 s, before frame 1 ends"),
        ({"FrameTimesStart": [48, 32, 16, 0]}, "correct FrameTimesStart"),
        ({"FrameTimesStart": [0, 16000, 32000, 48000], "FrameDuration": [16000] * 4}, "millisec"),
        ({"FrameDuration": [16000] * 4}, "milliseconds"),
        ({"FrameDuration": [5000] * 4, "FrameTimesStart": [0, 5, 10, 15]}, "milliseconds"),
        ({"FrameDuration": [16, 16, 0, 16]}, "frame 2 lasts 0 s"),
        ({"FrameDuration": [16, -16, 16, 16]}, "frame 1 lasts -16 s"),
        ({"FrameDuration": [16] * 3}, "4 frame times for 4 frames"),
    ],
)
def test_times_that_make_no_sense_are_refused(sidecar: dict[str, Any], words: str) -> None:
    with pytest.raises(InputFault, match=words):
        timing(**sidecar)


def test_number_of_frames_must_be_that_of_the_file() -> None:
    with pytest.raises(InputFault, match="4 frame times for 5 frames"):
        read_timing({"FrameTimesStart": STARTS, "FrameDuration": 16}, 5, "pet")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12:05:44.000000", 43544), ("120544.000000", 43544), ("9:00:00", 32400), ("", None)],
)
def test_clock_times_are_read_in_both_spellings(text: str, seconds: float | None) -> None:
    assert clock_s(text) == seconds


@pytest.mark.parametrize("text", ["noon", "25:00:00", "12", None, 12.5])
def test_other_texts_are_no_clock_times(text: object) -> None:
    assert clock_s(text) is None


def test_runs_without_times_are_placed_by_their_clocks() -> None:
    """Four runs of 16 s frames, as in ds003397: 100, 100, 100 and 41."""
    clocks = [clock_s(t) for t in ("12:05:44", "12:32:24", "12:59:4", "13:25:44")]
    timings = runs_from_clocks(clocks, [100, 100, 100, 41], None, "pet")
    frames = in_order(timings, "pet")
    assert len(frames) == 341
    assert [frame.start_s for frame in frames[:3]] == [0, 16, 32]
    for run in range(4):
        first = next(frame for frame in frames if frame.run == run)
        assert (first.start_s, first.index) == (1600 * run, 0)
    assert frames[-1].end_s == 5456


def test_runs_across_midnight_go_on() -> None:
    timings = runs_from_clocks([86_380.0, 10.0], [3, 3], None, "pet")
    assert timings[1].starts_s == (30, 40, 50)


@pytest.mark.parametrize("clocks", [[None], [100.0], [None, 5.0]])
def test_without_clocks_there_are_no_times(clocks: list[float | None]) -> None:
    with pytest.raises(InputFault, match="no frame times"):
        runs_from_clocks(clocks, [10] * len(clocks), None, "pet")


def test_overlapping_runs_are_refused() -> None:
    with pytest.raises(InputFault, match="before frame"):
        in_order([timing(), placed(timing(), 40)], "pet")


@pytest.mark.skipif("MFDIFF_TEST_DATA" not in os.environ, reason="needs the public sidecars")
def test_real_sidecars_have_the_times_that_were_measured() -> None:
    root = Path(os.environ["MFDIFF_TEST_DATA"]) / "openneuro" / "ds002898"
    for subject, count in (("01", 356), ("20", 260)):
        path = root / f"sub-{subject}" / "pet" / f"sub-{subject}_task-rest_pet.json"
        read = read_timing(json.loads(path.read_text()), count, path)
        assert read is not None
        assert read.starts_s[-1] + read.durations_s[-1] == 5696
