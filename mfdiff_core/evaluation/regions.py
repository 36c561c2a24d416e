"""Bias where it matters to a reader of images: tissue classes, lesions, total activity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label

from mfdiff_core.data.slices import MR_LESION, PET_LESION
from mfdiff_core.physics.phantom import Tissue

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]

HEAD_SHARE = 0.1
"""Voxels above this share of the PET's maximum are head."""


@dataclass(frozen=True, kw_only=True)
class RegionBias:
    """Mean and maximum of one region, restored and true, in the units of the images."""

    region: str
    num_voxels: int
    mean: float
    true_mean: float
    maximum: float
    true_maximum: float

    @property
    def mean_bias(self) -> float:
        """Relative error of the mean, 0.05 being 5 % too much; NaN in a region without activity."""
        return _relative(self.mean, self.true_mean)

    @property
    def maximum_bias(self) -> float:
        """Relative error of the maximum; NaN in a region without activity."""
        return _relative(self.maximum, self.true_maximum)


def simulated_regions(tissue: Labels, lesions: Labels) -> dict[str, Mask]:
    """Regions of simulated slices; grey and white matter leave PET lesions out.

    ``MR-only lesion`` is where a network that copies the MR invents activity or removes it.

    Args:
        tissue: classes of `Tissue`, any shape.
        lesions: bit 1 PET lesion, bit 2 MR lesion, same shape.
    """
    in_pet, in_mr = (lesions & PET_LESION) > 0, (lesions & MR_LESION) > 0
    return {
        "grey matter": (tissue == Tissue.GREY) & ~in_pet,
        "white matter": (tissue == Tissue.WHITE) & ~in_pet,
        "PET-only lesion": in_pet & ~in_mr,
        "PET and MR lesion": in_pet & in_mr,
        "MR-only lesion": in_mr & ~in_pet,
    }


def t1_regions(x_m: npt.NDArray[Any], x_s: npt.NDArray[Any]) -> dict[str, Mask]:
    """Thirds of the head by T1 intensity, where there is no tissue map.

    Roughly fluid and skull, grey matter, and white matter and fat. Chosen by the MR, because
    regions chosen by a noisy PET would carry its noise into their bias.

    Args:
        x_m: T1, any shape.
        x_s: SPET, same shape; its tenth of the maximum and more is head.
    """
    head = (x_s > HEAD_SHARE * x_s.max()) & (x_m > 0)
    if not head.any():
        return {}
    low, high = np.quantile(x_m[head], [1 / 3, 2 / 3])
    return {
        "dark third of T1": head & (x_m <= low),
        "middle third of T1": head & (x_m > low) & (x_m <= high),
        "bright third of T1": head & (x_m > high),
    }


def connected_parts(mask: Mask) -> Iterator[tuple[int, Mask]]:
    """Each connected part of ``mask`` by itself: its slice, and where it is there.

    Args:
        mask: [N, H, W]; slices lie centimetres apart, so parts connect within a slice only.

    Yields:
        Row of the slice, and a mask [H, W].
    """
    for row in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        parts, num_parts = label(mask[row], np.ones((3, 3), dtype=bool))
        for part in range(1, num_parts + 1):
            yield row, parts == part


def region_bias(
    restored: npt.NDArray[Any], x_s: npt.NDArray[Any], regions: Mapping[str, Mask]
) -> list[RegionBias]:
    """Bias of mean and maximum in each region; regions without voxels are left out.

    Args:
        restored, x_s: images of one subject, any shape, in the same units.
        regions: mask by name, each of that shape.

    Raises:
        ValueError: shapes differ.
    """
    _check_shapes(restored, x_s, regions)
    return [
        RegionBias(
            region=name,
            num_voxels=int(mask.sum()),
            mean=float(restored[mask].mean(dtype=np.float64)),
            true_mean=float(x_s[mask].mean(dtype=np.float64)),
            maximum=float(restored[mask].max()),
            true_maximum=float(x_s[mask].max()),
        )
        for name, mask in regions.items()
        if mask.any()
    ]


def activity_ratio(restored: npt.NDArray[Any], x_s: npt.NDArray[Any]) -> float:
    """Total activity of ``restored`` over that of ``x_s``; NaN where there is none."""
    _check_shapes(restored, x_s, {})
    total, true_total = restored.sum(dtype=np.float64), x_s.sum(dtype=np.float64)
    return 1 + _relative(float(total), float(true_total))


def _relative(value: float, truth: float) -> float:
    return value / truth - 1 if truth > 0 else math.nan


def _check_shapes(
    restored: npt.NDArray[Any], x_s: npt.NDArray[Any], regions: Mapping[str, Mask]
) -> None:
    shapes = {restored.shape, x_s.shape, *(mask.shape for mask in regions.values())}
    if len(shapes) > 1:
        raise ValueError(f"images and regions must have one shape, got {sorted(shapes)}")
