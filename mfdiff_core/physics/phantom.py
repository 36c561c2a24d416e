"""The digital head: tissue classes, values per tissue, and the slices of one subject.

Head coordinates are millimetres from the centre of the field of view: z to the top, row to the
back (the nose is up in an image), column to the right. A subject is kept on a fine grid of
`FINE_MM`, which divides both in-plane voxels of the scanner: 2.08626 mm by three and 1.39084 mm by
two, so that a voxel's value is the exact mean over its area.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FINE_MM = 2.08626 / 3
FINE_PX = 384  # 267 mm: holds a head turned by 15 degrees

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
S = TypeVar("S", bound=np.generic)


class Tissue(IntEnum):
    """Classes of the BrainWeb anatomical models."""

    BACKGROUND = 0
    CSF = 1
    GREY = 2
    WHITE = 3
    FAT = 4
    MUSCLE = 5
    SKIN = 6
    SKULL = 7
    VESSELS = 8
    CONNECTIVE = 9
    DURA = 10
    MARROW = 11


@dataclass(frozen=True, kw_only=True)
class TissueValues:
    """One number per tissue, in the order of `Tissue`; air is zero."""

    csf: float
    grey: float
    white: float
    fat: float
    muscle: float
    skin: float
    skull: float
    vessels: float
    connective: float
    dura: float
    marrow: float

    def __post_init__(self) -> None:
        low = {name: value for name, value in vars(self).items() if value < 0}
        if low:
            raise ValueError(f"values of tissues must not be negative, got {low}")

    def table(self) -> Floats:
        """Look-up table [12] indexed by `Tissue`."""
        return np.array([0.0, *astuple(self)], np.float32)


@dataclass(frozen=True)
class Anatomy:
    """Tissue of some slices of one subject, without lesions.

    Args:
        labels: `Tissue` codes, [slices, FINE_PX, FINE_PX].
        z_mm: height of each slice above the centre of the field of view.
        white_mm: places (z, row, column) evenly spread over the white matter of the whole head,
            [points, 3]; lesions are put there.
    """

    labels: Bytes
    z_mm: Floats
    white_mm: Floats


def fine_axis() -> Floats:
    """Positions in mm of the fine grid's rows or columns."""
    return ((np.arange(FINE_PX) - (FINE_PX - 1) / 2) * FINE_MM).astype(np.float32)


def block_mean(fine: Floats, factor: int, size_px: int) -> Floats:
    """Mean over ``factor`` x ``factor`` blocks of [..., FINE_PX, FINE_PX], cut or padded to size.

    Args:
        fine: maps on the fine grid.
        factor: fine pixels per voxel and axis.
        size_px: rows and columns of the result [..., size_px, size_px].
    """
    n = FINE_PX // factor
    coarse = fine.reshape(*fine.shape[:-2], n, factor, n, factor).mean((-3, -1), dtype=np.float32)
    return centred(coarse, size_px)


def block_centre(fine: Bytes, factor: int, size_px: int) -> Bytes:
    """Codes at the block centres: what `block_mean` is for quantities, this is for classes."""
    middle = factor // 2
    return np.ascontiguousarray(centred(fine[..., middle::factor, middle::factor], size_px))


def centred(image: NDArray[S], size_px: int) -> NDArray[S]:
    """Central ``size_px`` x ``size_px`` part of [..., H, W], padded with zeros where too small."""
    surplus = image.shape[-1] - size_px
    if surplus >= 0:
        low = surplus // 2
        return image[..., low : low + size_px, low : low + size_px]
    low = -surplus // 2
    widths = [(0, 0)] * (image.ndim - 2) + [(low, -surplus - low)] * 2
    return np.pad(image, widths)


def turned(size_px: int, angle_deg: float) -> NDArray[np.int64]:
    """Where each pixel of an image turned by ``angle_deg`` comes from, nearest neighbour.

    Angles count against the clock, as the image is looked at.

    Returns:
        Indices [size_px, size_px] into a flattened image with one zero appended, which stands
        for what turns in from outside.
    """
    axis = np.arange(size_px) - (size_px - 1) / 2
    angle = np.deg2rad(angle_deg)
    row, column = np.meshgrid(axis, axis, indexing="ij")
    source_row = np.cos(angle) * row + np.sin(angle) * column
    source_column = np.cos(angle) * column - np.sin(angle) * row
    r, c = (np.rint(v + (size_px - 1) / 2).astype(np.int64) for v in (source_row, source_column))
    inside = (r >= 0) & (r < size_px) & (c >= 0) & (c < size_px)
    return np.where(inside, r * size_px + c, size_px * size_px)


def turn(maps: NDArray[S], source: NDArray[np.int64]) -> NDArray[S]:
    """Maps [..., N, N] turned by the index map of `turned`."""
    flat = maps.reshape(*maps.shape[:-2], -1)
    padded: NDArray[S] = np.concatenate([flat, np.zeros_like(flat[..., :1])], -1)
    return padded[..., source]
