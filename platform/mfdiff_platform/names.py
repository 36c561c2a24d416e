"""Names from users, and keys made of them."""

from __future__ import annotations

from mfdiff_core.names import MAX_LENGTH, check_name

__all__ = ["MAX_LENGTH", "check_key", "check_name"]


def check_key(text: str) -> str:
    """Return ``text`` when it is names joined by ``/``, such as ``first-study/0003``."""
    for part in text.split("/"):
        check_name("key", part)
    return text
