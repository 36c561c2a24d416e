"""What can go wrong, one class per way a caller reacts differently."""

from __future__ import annotations


class MfdiffError(Exception):
    """Base of every fault that a user can cause and a message can explain."""


class ConfigError(MfdiffError):
    """A setting is unknown, of the wrong type or out of range; lists every fault found."""


class DataError(MfdiffError):
    """Input data are missing, damaged, inconsistent or unusable."""


class InputFault(DataError):
    """A scan, or a set of scans, that cannot be used; one of `mfdiff_core.faults.FAULTS`.

    Args:
        code: what a user looks up, such as ``MF-IN-07``.
        where: the file, folder or subject.
        sentence: what is wrong and what to do. It names no file, so it may be written anywhere.
    """

    def __init__(self, code: str, where: str, sentence: str) -> None:
        super().__init__(code, where, sentence)
        self.code, self.where, self.sentence = code, where, sentence

    def __str__(self) -> str:
        return f"{self.where}: {self.sentence} [{self.code}]"


class BundleError(DataError):
    """A model bundle is incomplete, damaged or does not fit its own description."""


class TrainingError(MfdiffError):
    """Training cannot go on: the loss is not finite, or nothing is left to train."""
