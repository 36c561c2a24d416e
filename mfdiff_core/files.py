"""Files that are either complete or absent: write under a temporary name, then rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfdiff_core.errors import DataError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it is synced and renamed to ``path``.

    Works for a file or a folder. On an exception the temporary is removed and ``path`` keeps
    whatever it held before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        _sync_tree(temporary)
        if path.is_dir():
            retired = path.with_name(f".{path.name}.{os.getpid()}.old")
            _remove(retired)
            path.rename(retired)
            temporary.rename(path)
            _remove(retired)
        else:
            temporary.replace(path)
        _sync(path.parent)
    finally:
        _remove(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` to ``path`` atomically as indented JSON with sorted keys."""
    write_bytes(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """Parsed JSON of ``path``.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise DataError(f"{path}: cannot be read as JSON ({fault})") from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text, as hexadecimal text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(path: Path) -> None:
    for item in [path, *path.rglob("*")] if path.is_dir() else [path]:
        _sync(item)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
