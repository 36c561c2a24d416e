"""Stopping long work politely: the first Ctrl-C or SIGTERM asks, the second one insists.

Training is asked through a file in its run's folder, because its workers may be on other machines
and because a batch system can write that file as well as we can.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mfdiff_platform.progress import say

STOP = "stop"
"""File in a run's folder that asks its workers for a checkpoint and an end."""

_LOOK_S = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where KeyboardInterrupt is Ctrl-C."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the block, so that it cleans up as after Ctrl-C."""

    def handle(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """The stop file of a run, as its driver handles it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / STOP
        self._file.unlink(missing_ok=True)
        self._asked: float | None = None
        self._reason: type[KeyboardInterrupt] = Terminated  # whoever writes the file is no Ctrl-C

    @property
    def seconds(self) -> float:
        """Time since the signal, 0 before it."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    def fault(self) -> KeyboardInterrupt:
        """What to raise once the run has stopped."""
        return self._reason()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Turn the first signal of the block into a request, a second one into an exception."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.signal(number, self._handle) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._reason = KeyboardInterrupt if signum == signal.SIGINT else Terminated
        if self._asked is not None:
            raise self._reason
        self._asked = time.monotonic()
        self._file.touch()
        say("Stopping at a checkpoint; once more stops at once.")


class StopFile:
    """The stop file of a run, as a worker sees it; looked for a few times a second."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / STOP
        self._next_look, self._is_there = 0.0, False

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        if not self._is_there and time.monotonic() >= self._next_look:
            self._is_there = self._file.exists()
            self._next_look = time.monotonic() + _LOOK_S
        return self._is_there
