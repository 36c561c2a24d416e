"""Faults of the platform, and the exit code that each kind of fault ends the program with."""

from __future__ import annotations

from mfdiff_core.errors import ConfigError, DataError, MfdiffError


class ResourceError(MfdiffError):
    """The cluster or the machine cannot give what was asked for."""


class PartialError(MfdiffError):
    """The command went through, but some of its items failed; the message names them."""


class GateError(MfdiffError):
    """A model was not promoted, because it fails a gate."""


class TrackingError(MfdiffError):
    """The MLflow store is out of reach or cannot be used."""


EXIT_CODES: dict[type[MfdiffError], int] = {
    ConfigError: 2,
    ResourceError: 3,
    DataError: 4,
    PartialError: 5,
    GateError: 6,
    TrackingError: 7,
}
"""Exit code per class of fault; a subclass without an entry takes that of its parent."""

UNEXPECTED = 1


def exit_code(fault: BaseException) -> int:
    """Exit code for ``fault``: that of its nearest listed class, else 1."""
    for cls in type(fault).__mro__:
        if cls in EXIT_CODES:
            return EXIT_CODES[cls]
    return UNEXPECTED
