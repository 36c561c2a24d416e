"""Slices as trials get them: through Ray's object store, shared by a study's trials."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.data.slices import SliceInfo

_ARRAYS = ("x_p", "x_m", "x_s", "tissue", "lesions")


@dataclass(frozen=True)
class PackedSlices:
    """A slice set as NumPy arrays, which Ray's object store shares without copying."""

    infos: tuple[SliceInfo, ...]
    arrays: dict[str, np.ndarray[Any, Any]]

    @classmethod
    def pack(cls, slices: SliceSet) -> PackedSlices:
        """Arrays of a slice set."""
        return cls(slices.infos, {name: getattr(slices, name).numpy() for name in _ARRAYS})

    def unpack(self) -> SliceSet:
        """The slice set; it shares the store's read-only memory."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensors = [torch.from_numpy(self.arrays[name]) for name in _ARRAYS]
        return SliceSet(self.infos, *tensors)


@dataclass(frozen=True)
class TrialData:
    """What every trial of a study shares."""

    train: PackedSlices
    validation: PackedSlices
    phantom: PackedSlices | None


@dataclass(frozen=True)
class SharedData:
    """`TrialData` in the object store, for the workers of a trial to fetch there.

    Attributes:
        ref: Ray's reference to it.
    """

    ref: Any
