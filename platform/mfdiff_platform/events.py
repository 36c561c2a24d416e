"""Training events as lines of a file: written by one worker, read by the driver as they come.

So the driver is the only one who talks to MLflow and to the terminal, on any number of nodes that
share the run's folder; and the history survives whichever of them dies.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mfdiff_platform.progress import say

POLL_S = 0.25
HURRY_S = 3.0
"""Patience once the command was interrupted; schedulers kill after 30 s."""
EVENT_KEYS = ("kind", "step", "time_s")
"""What an event has beside its values: what it is, when in the training, when (since 1970)."""


class EventLog:
    """Appends one JSON line per event."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", buffering=1)
        self._stream.write("\n")  # ends the line that a killed worker may have left half written

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write one event at once."""
        told = {"kind": kind, "step": step, "time_s": round(time.time(), 3), **values}
        self._stream.write(json.dumps(told) + "\n")


class EventReader:
    """Reads the events that were added since the last call, each step of a kind once."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._last: dict[str, int] = {}

    def new(self) -> Iterator[dict[str, Any]]:
        """Events not seen yet; a resumed run repeats steps, which are passed over."""
        if not self._path.is_file():
            return
        with self._path.open() as stream:
            stream.seek(self._offset)
            while (line := stream.readline()).endswith("\n"):
                self._offset = stream.tell()
                event = _parse(line)
                if event and event["step"] > self._last.get(event["kind"], -1):
                    self._last[event["kind"]] = event["step"]
                    yield event


def _parse(line: str) -> dict[str, Any] | None:
    """The event of a line, None for an empty or half-written one."""
    try:
        event: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event


@contextmanager
def follow(path: Path, handle: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call ``handle`` with each event of ``path`` while the block runs, from a thread.

    Where ``handle`` fails for want of disk, following ends with a word about it: the events stay
    in the file, and whoever follows it next begins at the first. So they do where the block was
    interrupted and ``handle``, which may talk to a server that never answers, takes too long.
    """
    reader, stop = EventReader(path), Event()

    def hand_over() -> bool:
        try:
            for event in reader.new():
                handle(event)
        except OSError as fault:
            say(f"Events wait in {path}: {fault}", mark="[yellow]![/] ")
            return False
        return True

    def watch() -> None:
        stopped = False
        while not stopped:
            stopped = stop.wait(POLL_S)
            if not hand_over():
                return

    thread = Thread(target=watch, name="events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        if isinstance(sys.exception(), KeyboardInterrupt):
            thread.join(HURRY_S)
        else:
            thread.join()
            hand_over()
