"""``START:END`` in seconds, as users write it."""

from __future__ import annotations

from mfdiff_core.errors import ConfigError
from mfdiff_core.scans.frames import Window


def parse_window(text: str) -> Window:
    """``"1800:3600"`` as a window.

    Raises:
        ConfigError: it is no stretch of time.
    """
    start, _, end = text.partition(":")
    try:
        return Window(float(start), float(end))
    except ValueError:
        raise ConfigError(f"a window is START:END in seconds, got {text!r}") from None
