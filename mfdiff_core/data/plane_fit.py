"""Between the pixels of a scan's axial slices and those of a model's images, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.data.image_checks import Affine, Voxels

HEAD_SHARE = 0.2
"""Of the 99.9th percentile of a PET; what lies above is head."""

_PROFILE_SHARE = 0.05  # of a head's widest row; rows with less are noise beside the head
_SAME_PX = 0.05  # pixel sizes that drift apart by less over an image count as equal


@dataclass(frozen=True)
class PlaneFit:
    """Per axis, scan pixel = ``ratio`` x model pixel + ``offset``.

    Equal pixel sizes (to 1/20 pixel over the image) crop and pad with zeros, bit for bit.
    Otherwise each pixel is a triangle-weighted mean as wide as the larger of both: linear
    interpolation upwards, averaging downwards.
    """

    scan_shape: tuple[int, int]
    model_shape: tuple[int, int]
    ratio: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def between(
        cls,
        scan_shape: tuple[int, int],
        scan_mm: tuple[float, float],
        model_shape: tuple[int, int],
        model_mm: tuple[float, float],
    ) -> PlaneFit:
        """The model's field about the centre of the scan's slices.

        Args:
            scan_shape, model_shape: rows and columns.
            scan_mm, model_mm: pixel edges along rows and columns.
        """
        axes = [
            _axis(*each) for each in zip(scan_shape, scan_mm, model_shape, model_mm, strict=True)
        ]
        (row_ratio, row), (column_ratio, column) = axes
        return cls(scan_shape, model_shape, (row_ratio, column_ratio), (row, column))

    def holding(self, head: npt.NDArray[np.bool_]) -> PlaneFit:
        """Moved by as few whole scan pixels as bring the head [N, H, W] into the field."""
        row, column = (self._move(axis, _extent(head, axis)) for axis in (0, 1))
        return replace(self, offset=(self.offset[0] + row, self.offset[1] + column))

    def to_model(self, slices: npt.NDArray[Any]) -> Voxels:
        """Scan slices [N, H, W] as images of the model."""
        fitted = np.asarray(slices, dtype=np.float32)
        for axis in (0, 1):
            ratio, offset, size = self.ratio[axis], self.offset[axis], self.model_shape[axis]
            fitted = _fit(fitted, axis + 1, ratio, offset, size)
        return fitted

    def to_scan(self, images: npt.NDArray[Any]) -> Voxels:
        """Images of the model [N, H, W] on the scan's pixels; 0 outside the field."""
        fitted = np.asarray(images, dtype=np.float32)
        for axis in (0, 1):
            ratio, offset = self.ratio[axis], self.offset[axis]
            size = self.scan_shape[axis]
            fitted = _fit(fitted, axis + 1, 1 / ratio, -offset / ratio, size)
        return fitted

    def model_affine(self, scan_affine: Affine) -> Affine:
        """(slice, row, column) of the model's images to RAS millimetres.

        Args:
            scan_affine: the same for the scan's slices, see `volumes.axial_affine`.
        """
        inside = np.diag([1.0, *self.ratio, 1.0])
        inside[1:3, 3] = self.offset
        return scan_affine @ inside

    def _move(self, axis: int, extent: tuple[int, int]) -> int:
        low, high = extent
        first = self.offset[axis]
        last = first + self.ratio[axis] * (self.model_shape[axis] - 1)
        if high - low > last - first:
            return round((low + high - first - last) / 2)
        return int(np.floor(min(0.0, low - first)) + np.ceil(max(0.0, high - last)))


def head_mask(slices: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a PET [N, H, W] shows the head."""
    mask: npt.NDArray[np.bool_] = slices > HEAD_SHARE * np.percentile(slices, 99.9)
    return mask


def _extent(head: npt.NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """First and last row (axis 0) or column (axis 1) of the head; the whole where there is none."""
    profile = head.sum(axis=(0, 2 - axis))
    if not profile.any():
        middle = len(profile) // 2
        return middle, middle
    rows = np.flatnonzero(profile > _PROFILE_SHARE * profile.max())
    return int(rows[0]), int(rows[-1])


def _axis(scan: int, scan_mm: float, model: int, model_mm: float) -> tuple[float, float]:
    """Ratio and offset of one axis."""
    ratio = model_mm / scan_mm
    if abs(np.log(ratio)) * max(scan, model) < _SAME_PX:
        return 1.0, float(-int((model - scan) / 2))  # rounds towards zero, so it inverts itself
    return ratio, (scan - 1) / 2 - ratio * (model - 1) / 2


def _fit(slices: Voxels, axis: int, ratio: float, offset: float, size: int) -> Voxels:
    """Resample one axis: new pixel i lies at old pixel ``ratio`` x i + ``offset``."""
    old = slices.shape[axis]
    if ratio == 1 and float(offset).is_integer():
        return _crop_or_pad(slices, axis, int(offset), size)
    weights = _weights(old, ratio * np.arange(size) + offset, max(1.0, ratio))
    fitted = weights @ slices if axis == 1 else slices @ weights.T
    return np.asarray(fitted, dtype=np.float32)


def _crop_or_pad(slices: Voxels, axis: int, first: int, size: int) -> Voxels:
    old = slices.shape[axis]
    inside = slices.take(range(max(first, 0), max(min(first + size, old), 0)), axis)
    padding: list[tuple[int, int]] = [(0, 0)] * slices.ndim
    before = min(max(-first, 0), size)
    padding[axis] = (before, size - before - inside.shape[axis])
    return np.pad(inside, padding)


def _weights(old: int, centres: npt.NDArray[Any], width: float) -> Voxels:
    """Weights [new, old] of source pixels; what lies outside the source counts as 0."""
    low = min(0, int(np.floor(centres.min() - width)))
    high = max(old, int(np.ceil(centres.max() + width)) + 1)
    distances = np.abs(np.arange(low, high) - centres[:, None])
    weights = np.clip(1 - distances / width, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    kept: Voxels = weights[:, -low : old - low].astype(np.float32)
    return kept
