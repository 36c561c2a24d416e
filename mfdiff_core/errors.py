"""What can go wrong, one class per way a caller reacts differently."""

from __future__ import annotations


class MfdiffError(Exception):
    """Base of every fault that a user can cause and a message can explain."""


class ConfigError(MfdiffError):
    """A setting is unknown, of the wrong type or out of range; lists every fault found."""


class DataError(MfdiffError):
    """Input data are missing, damaged, inconsistent or unusable."""


class BundleError(DataError):
    """A model bundle is incomplete, damaged or does not fit its own description."""


class TrainingError(MfdiffError):
    """Training cannot go on: the loss is not finite, or nothing is left to train."""
