"""Names become folders, tags and URLs; only these characters pass."""

from __future__ import annotations

import re

from mfdiff_core.errors import ConfigError

MAX_LENGTH = 64
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_LENGTH - 1}}}", re.ASCII)
_SHOWN = 80


def check_name(kind: str, text: str) -> str:
    """Return ``text`` when it can name a ``kind`` (domain, study, model, ...).

    Args:
        kind: what is named, for the message.
        text: the name; ASCII letters, digits, ``-``, ``_`` and ``.``, at most 64 characters, with
            no dot or dash in front (hidden files, command line options).

    Raises:
        ConfigError: ``text`` is anything else.
    """
    if _NAME.fullmatch(text):
        return text
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    raise ConfigError(
        f"{kind} name {shown!r}: use 1 to {MAX_LENGTH} letters, digits, '-', '_' or '.', "
        "without a dot or dash in front"
    )
