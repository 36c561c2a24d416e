from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from mfdiff_platform.events import EventLog, EventReader, follow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "events.jsonl"


def steps(reader: EventReader) -> list[int]:
    return [event["step"] for event in reader.new()]


def test_reader_yields_events_as_they_come_and_each_once(path: Path) -> None:
    log, reader = EventLog(path), EventReader(path)
    before = time.time()
    log.append("progress", 1, {"loss": 0.5})
    (event,) = reader.new()
    assert before - 0.001 <= event.pop("time_s") <= time.time() + 0.001
    assert event == {"kind": "progress", "step": 1, "loss": 0.5}
    log.append("progress", 2, {"loss": 0.4})
    log.append("validated", 2, {"psnr": 20.0})
    assert [(e["kind"], e["step"]) for e in reader.new()] == [("progress", 2), ("validated", 2)]
    assert steps(reader) == []


def test_steps_repeated_by_a_resumed_run_are_passed_over(path: Path) -> None:
    reader = EventReader(path)
    for session in ((1, 2, 3), (2, 3, 4)):
        log = EventLog(path)
        for step in session:
            log.append("progress", step, {})
    assert steps(reader) == [1, 2, 3, 4]


def test_line_cut_short_by_a_kill_costs_only_itself(path: Path) -> None:
    reader = EventReader(path)
    EventLog(path).append("progress", 1, {})
    with path.open("a") as stream:
        stream.write('{"kind": "progress", "st')
    assert steps(reader) == [1]
    EventLog(path).append("progress", 2, {})
    assert steps(reader) == [2]


def test_half_a_line_is_read_when_it_is_whole(path: Path) -> None:
    reader = EventReader(path)
    EventLog(path)
    with path.open("a", buffering=1) as stream:
        stream.write('{"kind": "progress",')
        stream.flush()
        assert steps(reader) == []
        stream.write(' "step": 7}\n')
    assert steps(reader) == [7]


def test_nothing_happens_before_the_first_event(path: Path) -> None:
    assert steps(EventReader(path)) == []


def test_follow_has_handled_every_event_when_its_block_ends(path: Path) -> None:
    seen: list[dict[str, Any]] = []
    with follow(path, seen.append):
        log = EventLog(path)
        for step in range(100):
            log.append("progress", step, {})
    assert [event["step"] for event in seen] == list(range(100))


def test_follow_hands_over_what_came_before_a_fault(path: Path) -> None:
    seen: list[dict[str, Any]] = []
    with suppress(RuntimeError), follow(path, seen.append):
        EventLog(path).append("progress", 1, {})
        raise RuntimeError("worker died")
    assert [event["step"] for event in seen] == [1]


def test_interruption_does_not_wait_for_a_handler_that_hangs(path: Path) -> None:
    held = Event()

    def hang(event: dict[str, Any]) -> None:
        held.wait()

    started = time.monotonic()
    EventLog(path).append("progress", 1, {})
    with pytest.raises(KeyboardInterrupt), follow(path, hang):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10
    held.set()
    assert steps(EventReader(path)) == [1]
