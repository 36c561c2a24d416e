"""What an image must be like to be used: shape, place in space, values. Shared by all formats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.faults import fault

Voxels = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

MAX_NEGATIVE_SHARE = 0.1  # of a PET's absolute activity; filters cause a few percent
MAX_SATURATED_SHARE = 1e-5  # of a 16-bit PET's voxels, at the limit of the format
MAX_SHEAR = 1e-3  # cosine between two voxel axes that should be at right angles
ZOOM_RANGE_MM = (0.1, 20.0)  # voxel edges outside are taken for a wrong unit
MAX_VOXELS = 500_000_000  # larger than any 3-D scan; a header that claims more is damaged


def check_shape(path: Path | str, shape: tuple[int, ...]) -> None:
    """Refuse what is not one 3-D image of a possible size."""
    sizes = "x".join(map(str, shape))
    if len(shape) < 3 or any(size > 1 for size in shape[3:]):
        raise fault("dimensions", path, ndim=len(shape), shape=sizes)
    if math.prod(shape) > MAX_VOXELS:
        raise fault("too-large", path, shape=sizes)


def check_affine(path: Path | str, affine: Affine) -> None:
    """Refuse an affine that is singular, sheared, or not in millimetres."""
    axes = affine[:3, :3]
    zooms = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or zooms.min() == 0 or abs(np.linalg.det(axes / zooms)) < 0.5:
        raise fault("singular", path)
    low, high = ZOOM_RANGE_MM
    if zooms.min() < low or zooms.max() > high:
        raise fault("voxel-size", path, sizes=" x ".join(f"{zoom:.4g}" for zoom in zooms))
    cosines = (axes / zooms).T @ (axes / zooms) - np.eye(3)
    if np.abs(cosines).max() > MAX_SHEAR:
        raise fault("sheared", path)


def check_values(path: Path | str, data: Voxels) -> None:
    """Refuse NaN, infinity, and an image without content."""
    num_bad = int(data.size - np.isfinite(data).sum())
    if num_bad:
        raise fault("not-finite", path, bad=num_bad, total=data.size)
    if data.size == 0 or data.min() == data.max():
        raise fault("empty", path)


def num_saturated(stored: npt.NDArray[Any]) -> int:
    """Stored 16-bit values at the upper limit of their format; 0 for other formats."""
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize != 2:
        return 0
    return int((stored == np.iinfo(stored.dtype).max).sum())


def check_saturation(path: Path | str, num_saturated: int, num_voxels: int) -> None:
    """Refuse a PET of which more than single voxels sit at the 16-bit limit."""
    if num_saturated > max(1, MAX_SATURATED_SHARE * num_voxels):
        raise fault("saturated", path, bad=num_saturated)


def without_negatives(path: Path | str, data: Voxels) -> tuple[Voxels, tuple[str, ...]]:
    """A PET with its few negative voxels set to 0, and a note on how many.

    Raises:
        InputFault: more of the activity is negative than a filter can cause.
    """
    negative = data < 0
    num_negative = int(negative.sum())
    if not num_negative:
        return data, ()
    share = float(-data[negative].sum(dtype=np.float64) / np.abs(data).sum(dtype=np.float64))
    if share > MAX_NEGATIVE_SHARE:
        raise fault("negative", path, share=f"{share:.0%}")
    note = f"{num_negative} negative voxels ({share:.2%} of the activity) set to 0"
    return np.where(negative, np.float32(0), data), (note,)
