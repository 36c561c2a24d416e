"""What low-dose slices are like, in a few figures: is this scan like a model's training data?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.data.intensity import INPUT_SCALES, Intensity
from mfdiff_core.data.plane_fit import head_mask
from mfdiff_core.data.slices import Shard
from mfdiff_core.errors import DataError

_QUANTILES = (25, 50, 75, 95)
_RANGE = (2.5, 50, 97.5)  # percentiles over slices: low, middle, high
_MARGIN = 1.25  # a scan may lie this factor beyond the training data's range
_VOXEL_FACTOR = 1.5
_LEAST_HEAD_PX = 20
_NAMES = {
    "noise": "noise (voxel to voxel, over the mean)",
    "head_cm2": "area of the head (cm2)",
    **{f"q{q}": f"{q}th percentile of intensity in the head" for q in _QUANTILES},
}


def slice_figures(x_p: npt.NDArray[Any], voxel_mm: float) -> dict[str, npt.NDArray[np.float64]]:
    """Figures of each slice: noise, histogram and size of the head.

    Args:
        x_p: LPET slices [N, H, W] in intensity units.
        voxel_mm: pixel size.

    Returns:
        Arrays [M] by name; slices without a head are left out.
    """
    rows = [_figures(image, voxel_mm) for image in x_p]
    found = [row for row in rows if row]
    return {name: np.array([row[name] for row in found]) for name in _NAMES}


def _figures(image: npt.NDArray[Any], voxel_mm: float) -> dict[str, float]:
    head = head_mask(image[None])[0]
    if head.sum() < _LEAST_HEAD_PX:
        return {}
    values = image[head].astype(np.float64)
    quantiles = {f"q{q}": float(np.percentile(values, q)) for q in _QUANTILES}
    area = float(head.sum()) * voxel_mm**2 / 100
    return {"noise": _noise(image, head), "head_cm2": area, **quantiles}


def _noise(image: npt.NDArray[Any], head: npt.NDArray[np.bool_]) -> float:
    """Standard deviation of a pixel against its four neighbours, over the mean of the head."""
    padded = np.pad(image.astype(np.float64), 1, mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    residual = (image - around / 4)[head] / np.sqrt(1.25)
    # By the median, since edges of cortex are no noise; 0.6745 makes it a standard deviation.
    return float(np.median(np.abs(residual)) / 0.6745 / image[head].mean())


def dataset_facts(shards: Sequence[Shard], intensity: Intensity = "lpet") -> dict[str, Any]:
    """Range of every figure over the slices of a dataset, for its manifest and its bundles.

    Args:
        shards: the dataset.
        intensity: what its slices were divided by; a restored scan is divided by the same.

    Returns:
        ``voxel_mm``, ``intensity``, and by figure (low, middle, high), the 2.5th, 50th and 97.5th
        percentile.
    """
    voxel_mm = shards[0].infos[0].voxel_mm
    each = [slice_figures(shard.arrays["x_p"], voxel_mm) for shard in shards]
    pooled = {name: np.concatenate([figures[name] for figures in each]) for name in _NAMES}
    ranges = {
        name: [round(float(level), 6) for level in np.percentile(values, _RANGE)]
        for name, values in pooled.items()
        if len(values)
    }
    return {"voxel_mm": voxel_mm, "intensity": intensity, **ranges}


def intensity_of(facts: Mapping[str, Any]) -> Intensity:
    """What the slices of these facts were divided by.

    Raises:
        DataError: it is none that this program knows.
    """
    named: Intensity = facts.get("intensity", "lpet")  # sets of older versions know no other
    if named not in INPUT_SCALES:
        raise DataError(f"intensity {named!r} is not one of {', '.join(INPUT_SCALES)}")
    return named


def differences(
    x_p: npt.NDArray[Any], scan_mm: tuple[float, float], facts: Mapping[str, Any]
) -> tuple[str, ...]:
    """How a scan differs from the training data, in plain phrases with both figures.

    Args:
        x_p: the scan's slices [N, H, W] on the model's grid, in intensity units.
        scan_mm: in-plane voxel size of the scan itself.
        facts: `dataset_facts` of the training data; empty (a bundle of an older version) finds
            nothing.
    """
    if not facts:
        return ()
    voxel_mm = float(facts["voxel_mm"])
    found = [
        f"voxels of {size:.2f} mm where the training data have {voxel_mm:.2f} mm"
        for size in sorted(set(scan_mm))
        if not 1 / _VOXEL_FACTOR <= size / voxel_mm <= _VOXEL_FACTOR
    ]
    for name, values in slice_figures(x_p, voxel_mm).items():
        if name not in facts or not len(values):
            continue
        low, _, high = facts[name]
        middle = float(np.median(values))
        if not low / _MARGIN <= middle <= high * _MARGIN:
            found.append(
                f"{_NAMES[name]} {middle:.3g} where the training data have {low:.3g} to {high:.3g}"
            )
    return tuple(found)
