"""Which code made a result: the release, and a hash over the sources as they are."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

import mfdiff_core

_DIGITS = 12


@cache
def code_fingerprint() -> str:
    """``0.1.0, sha256 1a2b3c4d5e6f``: equal for equal sources, whether committed or not."""
    digest = sha256()
    for package in (Path(mfdiff_core.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{package.name}/{path.relative_to(package).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return f"{mfdiff_core.__version__}, sha256 {digest.hexdigest()[:_DIGITS]}"
