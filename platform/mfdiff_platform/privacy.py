"""What may leave a message for a store that others read: no path, for paths name people."""

from __future__ import annotations

import re

# An absolute path, and a relative one of at least two parts that ends in a file.
_PATH = re.compile(
    r"""(?<![\w.:/<])(?:file://)?(?:~?/|[A-Za-z]:\\)[^\s'"(),;:<>]+(?:/[^\s'"(),;:<>]*)*"""
)


def without_paths(text: str) -> str:
    """``text`` with every absolute path as ``<path>``; a file's name may be a patient's.

    A path with spaces loses its part before the first space only, so quoted paths are taken whole.
    """
    quoted = re.sub(r"""(['"])(?:file://)?(?:~?/|[A-Za-z]:\\)[^'"\n]*\1""", r"\1<path>\1", text)
    return _PATH.sub("<path>", quoted)
