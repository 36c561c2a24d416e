"""Files that several processes append to, line by line, and that survive a kill."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def append_text(path: Path, text: str) -> None:
    """Append ``text`` to ``path`` and wait until it is on disk."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last line break of ``path``: a line cut short by a kill."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 1, 0))
        if stream.read(1) not in (b"\n", b""):
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes; the file itself stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
