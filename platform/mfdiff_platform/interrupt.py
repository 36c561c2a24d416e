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


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a fit of Ray Tune in good order, and be known after it.

    Tune answers Ctrl-C by returning as if all were well and leaves its handler behind; of SIGTERM
    it knows nothing, so that is passed on to it as Ctrl-C.

    Raises:
        Terminated: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminated = threading.Event()

    def pass_on(signum: int, frame: FrameType | None) -> None:
        terminated.set()
        signal.raise_signal(signal.SIGINT)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise (Terminated if terminated.is_set() else KeyboardInterrupt) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if terminated.is_set():
        raise Terminated


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Keep what SIGTERM means to us; Ray would have it exit on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before):
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
