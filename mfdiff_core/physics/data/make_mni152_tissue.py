"""Makes ``mni152_tissue.npz`` from the MNI152 tissue maps that nilearn ships.

Run once, by hand, where nilearn and nibabel are installed:

    python mfdiff_core/physics/data/make_mni152_tissue.py

Stored, on axes (z, y, x) with x to the right, y to the front, z to the top:
    grey, white  uint8, tissue probability in steps of 1/15, 1 mm voxels
    hull         uint8, signed distance to the brain's smooth outline plus 100, in steps of
                 0.25 mm, 3 mm voxels; below 100 is inside
    origin_mm    MNI coordinate (z, y, x) of the first voxel of each array
"""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import nilearn
import numpy as np
from scipy import ndimage

_LEVELS = 15  # 4 bits: finer than the label thresholds' jitter, a third of the size of 8 bits
_MARGIN_MM = 3
_HULL_MM = 3
_CLOSING_MM = 20  # bridges the gap between the hemispheres
_HULL_PAD_MM = 30  # room for skull and skin around the brain
_HULL_STEPS_PER_MM, HULL_ZERO = 4, 100


def main() -> None:
    """Write the asset beside this script."""
    grey, white, origin = _read("gm"), _read("wm"), np.array([-72.0, -134.0, -98.0])
    inside = (grey + white) > 0.1
    low, high = _bounds(inside, _MARGIN_MM)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    hull, hull_origin = _hull_distance(inside, origin)
    np.savez_compressed(
        Path(__file__).with_name("mni152_tissue.npz"),
        grey=np.round(grey[box] * _LEVELS).astype(np.uint8),
        white=np.round(white[box] * _LEVELS).astype(np.uint8),
        origin_mm=origin + low,
        hull=hull,
        hull_origin_mm=hull_origin,
    )


def _read(tissue: str) -> np.ndarray:
    folder = Path(os.path.dirname(nilearn.__file__)) / "datasets/data"
    name = f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
    values = np.asarray(nibabel.load(folder / name).dataobj, np.float32) / 255
    return np.ascontiguousarray(values.transpose(2, 1, 0))


def _bounds(mask: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    where = np.argwhere(mask)
    return np.maximum(where.min(0) - margin, 0), np.minimum(where.max(0) + margin + 1, mask.shape)


def _hull_distance(inside: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to the brain's outline with its sulci closed, and its first voxel's place."""
    padded = np.pad(inside, _HULL_PAD_MM)
    closed = ndimage.distance_transform_edt(~padded) < _CLOSING_MM
    closed = ndimage.distance_transform_edt(closed) > _CLOSING_MM
    for z in range(closed.shape[0]):
        closed[z] = ndimage.binary_fill_holes(closed[z])
    outline = ndimage.gaussian_filter(closed.astype(np.float32), 3) > 0.5
    distance = np.where(
        outline,
        0.5 - ndimage.distance_transform_edt(outline),
        ndimage.distance_transform_edt(~outline) - 0.5,
    )
    coarse = ndimage.gaussian_filter(distance, 1.0)[::_HULL_MM, ::_HULL_MM, ::_HULL_MM]
    steps = np.round(coarse * _HULL_STEPS_PER_MM) + HULL_ZERO
    return np.clip(steps, 0, 255).astype(np.uint8), origin - _HULL_PAD_MM


if __name__ == "__main__":
    main()
