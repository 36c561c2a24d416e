"""Volumes in space: resampled by their affines, cut into axial slices and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform, gaussian_filter

from mfdiff_core.data.image_checks import Affine, Voxels

_SAME_GRID_MM = 1e-4
_LEAST_SIGMA_PX = 0.1  # less than this changes nothing that can be seen


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D image in space.

    Args:
        data: float32 [X, Y, Z] in the file's axis order.
        affine: [4, 4], voxel indices to RAS millimetres.
        header: the geometry fields of the file it came from, as NIfTI has them; kept so that a
            result can be written on exactly the same grid. Empty for a volume made here.
        notes: sentences on what was changed while reading.
    """

    data: Voxels
    affine: Affine
    header: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def zooms_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel along the axes of ``data``."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    def with_data(self, data: npt.NDArray[Any]) -> Volume:
        """Other values on the same grid.

        Raises:
            ValueError: the shape differs.
        """
        if data.shape != self.data.shape:
            raise ValueError(f"grid is {self.data.shape}, got {data.shape=}")
        return replace(self, data=np.asarray(data, dtype=np.float32), notes=())

    def moved(self, rigid: Affine) -> Volume:
        """The same voxels elsewhere: ``rigid`` [4, 4] maps old to new RAS millimetres.

        The header's geometry is that of the old place and is dropped.
        """
        return replace(self, affine=rigid @ self.affine, header={})

    def same_grid(self, other: Volume) -> bool:
        """Whether both have the same shape and every voxel lies within 1e-4 mm of its like."""
        if self.data.shape != other.data.shape:
            return False
        difference = np.abs(self.affine - other.affine)
        extent = np.array([*self.data.shape, 1])
        return bool((difference @ extent).max() <= _SAME_GRID_MM)


def resample_to(moving: Volume, fixed: Volume, order: int = 1) -> Volume:
    """``moving`` on the grid of ``fixed``, by their affines; no registration.

    On one and the same grid the voxels are copied bit for bit, otherwise see `resample`.
    """
    if moving.same_grid(fixed):
        return fixed.with_data(moving.data.copy())
    return fixed.with_data(resample(moving, fixed.affine, fixed.data.shape, order))


def resample(
    moving: Volume,
    affine: Affine,
    shape: tuple[int, ...],
    order: int = 1,
    voxel: Affine | None = None,
) -> npt.NDArray[np.float32]:
    """Values of ``moving`` on the grid of ``affine`` and ``shape``; 0 outside its field of view.

    Where the grid's voxels are the larger ones, ``moving`` is first averaged over their size, so
    that fine structure does not turn into stripes.

    Args:
        affine: [4, 4], grid indices to RAS millimetres.
        order: spline order, 0 (labels, never averaged) to 3; orders above 1 overshoot at edges.
        voxel: affine whose voxels are averaged over instead, for planes with gaps.
    """
    to_moving = np.linalg.inv(moving.affine)
    matrix = _snap(to_moving @ affine)
    edges = to_moving @ (affine if voxel is None else voxel)
    steps = np.linalg.norm(edges[:3, :3], axis=1)  # voxels of ``moving`` in one of the grid
    # A box of n voxels has the variance n^2 / 12, of which linear samples have 1 / 12 already.
    sigma = np.sqrt(np.clip(steps**2 - 1, 0, None) / 12)
    data = moving.data
    if order > 0 and sigma.max() > _LEAST_SIGMA_PX:
        data = gaussian_filter(data, sigma, mode="constant")
    values = affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order, mode="grid-constant"
    )
    return np.asarray(values, dtype=np.float32)


def axial_slices(volume: Volume) -> Voxels:
    """View of ``volume`` as axial slices [Z, H, W], in the orientation of the training slices.

    Slices run from the feet to the head, rows from anterior to posterior (nose up), columns from
    the patient's left to right, as those of the simulated phantoms do.
    Oblique volumes are turned by whole axes only; nothing is interpolated.
    """
    axes, flips = _to_axial(volume.affine)
    return np.flip(volume.data.transpose(axes), flips)


def from_axial_slices(slices: npt.NDArray[Any], volume: Volume) -> Volume:
    """Exact inverse of `axial_slices`: slices [Z, H, W] on the grid of ``volume``."""
    axes, flips = _to_axial(volume.affine)
    data = np.flip(slices, flips).transpose(np.argsort(axes))
    return volume.with_data(np.ascontiguousarray(data, dtype=np.float32))


def axial_affine(volume: Volume) -> Affine:
    """Indices (slice, row, column) of `axial_slices` to RAS millimetres, [4, 4]."""
    axes, flips = _to_axial(volume.affine)
    columns = volume.affine[:3, list(axes)].copy()
    origin = volume.affine[:3, 3].copy()
    for axis in flips:
        origin += columns[:, axis] * (volume.data.shape[axes[axis]] - 1)
        columns[:, axis] *= -1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return affine


def axial_zooms_mm(volume: Volume) -> tuple[float, float, float]:
    """Edges of a voxel along the axes of `axial_slices`: slice distance, row, column."""
    axes, _ = _to_axial(volume.affine)
    z, row, column = (volume.zooms_mm[axis] for axis in axes)
    return z, row, column


def _snap(matrix: Affine) -> Affine:
    """Round away what float32 headers leave beside whole numbers."""
    whole = np.round(matrix)
    return np.where(np.abs(matrix - whole) < 1e-6, whole, matrix)


def _to_axial(affine: Affine) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Voxel axes nearest to (head, posterior, right), and which of them to flip after."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    axis_of = {int(world): (axis, sign) for axis, (world, sign) in enumerate(orientation)}
    wanted = ((2, 1), (1, -1), (0, 1))  # RAS axes and directions of slices, rows, columns
    axes = tuple(axis_of[world][0] for world, _ in wanted)
    flips = tuple(i for i, (world, sign) in enumerate(wanted) if axis_of[world][1] != sign)
    return (axes[0], axes[1], axes[2]), flips
