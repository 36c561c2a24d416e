"""Bundle + LPET + MR -> SPET: a trained model on a scan it has never seen.

Slice by slice, on the grid and in the intensity scale the model was trained in, then back on the
PET's own grid and in its own units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.intensity import mr_scale, pet_scale
from mfdiff_core.data.volumes import (
    Volume,
    axial_slices,
    axial_zooms_mm,
    fit_grid,
    from_axial_slices,
    resample_to,
)
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import DataError

Stack = npt.NDArray[np.float32]

BATCH_SIZE = 16
HEAD_SHARE, LEAST_OVERLAP = 0.2, 0.5
"""Voxels above this share of the PET's maximum are head; this share of them must have an MR."""

EMPTY_SHARE = 0.02
"""A slice whose 99.5th percentile is below this share of the volume's has nothing to restore."""


@dataclass(frozen=True)
class RestoredVolume:
    """Restored PET and the spread of K samples (zero if K = 1), in the LPET's units and grid."""

    pet: Volume
    spread: Volume
    restored_slices: int


def restore_volume(
    bundle: Bundle,
    lpet: Volume,
    mr: Volume,
    *,
    seed: int = 0,
    sampler: SamplerConfig | None = None,
    device: torch.device | None = None,
    batch_size: int = BATCH_SIZE,
    on_slice: Callable[[int, int], None] | None = None,
) -> RestoredVolume:
    """Restore a scan.

    The MR is resampled to the PET's grid by the two affines. Noise is keyed by slice, so neither
    ``batch_size`` nor the order matters. Outside the model's field of view, and in slices without
    activity, the low-dose values stay as they are.

    Args:
        bundle: the model.
        lpet: low-dose PET, not negative, any unit.
        mr: T1 MR of the same head.
        seed: seed of the restoration noise.
        sampler: instead of the model's own.
        device: where to run; None takes a GPU if there is one.
        batch_size: slices at a time.
        on_slice: called with (slices done, slices to do).

    Raises:
        DataError: the MR does not cover the head that the PET shows.
        BundleError: the weights are damaged.
    """
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = bundle.model().to(where)
    native = np.ascontiguousarray(axial_slices(lpet))
    native_mr = np.ascontiguousarray(axial_slices(resample_to(mr, lpet)))
    _check_overlap(native, native_mr)
    grid = _Grid.of(bundle, lpet, (native.shape[1], native.shape[2]))
    seen, seen_mr = grid.to_model(native), grid.to_model(native_mr)
    occupied = _occupied(seen)
    out, spread = native.copy(), np.zeros_like(native)
    for start in range(0, len(occupied), batch_size):
        rows = occupied[start : start + batch_size]
        x_p, x_m = seen[rows], seen_mr[rows]
        scale = np.array([pet_scale(image) for image in x_p], dtype=np.float32)[:, None, None]
        scale_m = np.array([mr_scale(image) for image in x_m], dtype=np.float32)[:, None, None]
        restored = model.restore(
            torch.from_numpy(x_p / scale)[:, None].to(where),
            torch.from_numpy(x_m / scale_m)[:, None].to(where),
            [f"axial/{row}" for row in rows],
            seed=seed,
            sampler=sampler,
        )
        out[rows] = grid.merge(restored.x_s[:, 0].cpu().numpy() * scale, native[rows])
        spread[rows] = grid.merge(restored.spread[:, 0].cpu().numpy() * scale, spread[rows])
        if on_slice is not None:
            on_slice(min(start + batch_size, len(occupied)), len(occupied))
    pet, deviation = from_axial_slices(out, lpet), from_axial_slices(spread, lpet)
    return RestoredVolume(pet, deviation, len(occupied))


@dataclass(frozen=True)
class _Grid:
    """The way from a scan's axial slices to the model's images and back."""

    native_mm: tuple[float, float]
    model_mm: tuple[float, float]
    native_shape: tuple[int, int]
    model_shape: tuple[int, int]

    @classmethod
    def of(cls, bundle: Bundle, lpet: Volume, shape: tuple[int, int]) -> _Grid:
        size, voxel_mm = bundle.config.image_size, bundle.provenance.voxel_mm
        _, row_mm, column_mm = axial_zooms_mm(lpet)
        return cls((row_mm, column_mm), (voxel_mm, voxel_mm), shape, (size, size))

    def to_model(self, slices: Stack) -> Stack:
        return fit_grid(slices, self.native_mm, self.model_mm, self.model_shape)

    def to_native(self, images: Stack) -> Stack:
        return fit_grid(images, self.model_mm, self.native_mm, self.native_shape)

    def merge(self, images: Stack, outside: Stack) -> Stack:
        """Images back on the scan's grid; ``outside`` where the model's field does not reach."""
        field = self.to_native(np.ones((1, *self.model_shape), dtype=np.float32))
        return np.where(field > 1 - 1e-4, self.to_native(images), outside).astype(np.float32)


def _check_overlap(pet: Stack, mr: Stack) -> None:
    """Refuse an MR that lies elsewhere: a network would invent a picture without it."""
    head = pet > HEAD_SHARE * pet.max()
    covered = float((mr[head] > 0).mean()) if head.any() else 1.0
    if covered < LEAST_OVERLAP:
        raise DataError(
            f"the MR covers {100 * covered:.0f} % of the head in the PET; register it to the PET,"
            " and check that both files are of the same session and keep their affines"
        )


def _occupied(slices: Stack) -> list[int]:
    """Rows of slices that hold activity in the model's field, enough of it to be scaled by."""
    levels = np.percentile(slices.reshape(len(slices), -1), 99.5, axis=1)
    return [int(row) for row in np.flatnonzero(levels > EMPTY_SHARE * levels.max())]
