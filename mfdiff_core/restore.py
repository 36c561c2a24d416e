"""Bundle + LPET + MR -> SPET: a trained model on a scan it has never seen.

Slice by slice, on the grid and in the intensity scale the model was trained in, then back on the
PET's own grid and in its own units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.facts import differences, intensity_of
from mfdiff_core.data.intensity import INPUT_SCALES
from mfdiff_core.data.plane_fit import HEAD_SHARE, PlaneFit, head_mask
from mfdiff_core.data.volumes import (
    Volume,
    axial_affine,
    axial_slices,
    axial_zooms_mm,
    from_axial_slices,
    resample,
)
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.faults import fault
from mfdiff_core.model import RestorationModel, averaging

Stack = npt.NDArray[np.float32]
OnSlice = Callable[[int, int], None]

BATCH_SIZE = 16
LEAST_OVERLAP = 0.5
"""Share of the head in the PET that must have an MR."""

EMPTY_SHARE = 0.02
"""A slice whose 99.5th percentile is below this share of the volume's has nothing to restore."""


@dataclass(frozen=True)
class RestoredVolume:
    """A restored scan, in the LPET's units and on its grid.

    Attributes:
        pet: the restored PET.
        spread: standard deviation of the K samples, zero if K = 1.
        mr: the MR as the model saw it, in its own units.
        restored_slices: how many slices the model restored; the others are as they were.
        differences: how the scan differs from the model's training data.
    """

    pet: Volume
    spread: Volume
    mr: Volume
    restored_slices: int
    differences: tuple[str, ...]

    @property
    def relative_spread(self) -> float:
        """Root mean square of the spread over that of the restored PET; 0 if K = 1."""
        size = float(np.linalg.norm(self.pet.data))
        return float(np.linalg.norm(self.spread.data)) / size if size else 0.0


def restore_volume(
    bundle: Bundle,
    lpet: Volume,
    mr: Volume,
    *,
    seed: int = 0,
    sampler: SamplerConfig | None = None,
    num_samples: int | None = None,
    strict: bool = False,
    device: torch.device | None = None,
    batch_size: int = BATCH_SIZE,
    on_slice: OnSlice | None = None,
) -> RestoredVolume:
    """Restore a scan.

    The MR goes to the model's grid by the two affines, in one step. The model's field lies about
    the centre of the scan, moved as little as needed to hold the head. Noise is keyed by slice,
    so neither ``batch_size`` nor the order matters. Outside the field, and in slices without
    activity, the low-dose values stay as they are.

    Args:
        bundle: the model.
        lpet: low-dose PET, not negative, any unit.
        mr: T1 MR of the same head.
        seed: seed of the restoration noise.
        sampler: instead of the model's own; only MFdiff has one.
        num_samples: K, instead of the model's own; for models that draw samples.
        strict: refuse a scan that is unlike the model's training data.
        device: where to run; None takes a GPU if there is one.
        batch_size: slices at a time.
        on_slice: called with (slices done, slices to do).

    Raises:
        InputFault: the MR does not cover the head that the PET shows, or ``strict``.
        BundleError: the weights are damaged.
        ConfigError: a sampler or K for a model that has none.
    """
    scan = _prepare(bundle, lpet, mr)
    known = {"voxel_mm": bundle.provenance.voxel_mm, **bundle.provenance.data_facts}
    odd = differences(scan.x_p, scan.scan_mm, known)
    if strict and odd:
        raise fault("unlike-training", "scan", differences="; ".join(odd))
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if num_samples is not None and sampler is not None:
        sampler = replace(sampler, num_samples=num_samples)
    elif num_samples is not None:
        bundle = replace(bundle, config=averaging(bundle.config, num_samples))
    model = bundle.model().to(where)
    out, spread = scan.native.copy(), np.zeros_like(scan.native)
    for start in range(0, len(scan.rows), batch_size):
        part = slice(start, start + batch_size)
        rows = scan.rows[part]
        x_s, deviation = _run(model, scan, part, sampler, seed)
        out[rows] = scan.merge(x_s, scan.native[rows])
        spread[rows] = scan.merge(deviation, spread[rows])
        if on_slice is not None:
            on_slice(min(start + batch_size, len(scan.rows)), len(scan.rows))
    seen_mr = scan.fit.to_scan(scan.seen_mr)
    return RestoredVolume(
        pet=from_axial_slices(out, lpet),
        spread=from_axial_slices(spread, lpet),
        mr=from_axial_slices(seen_mr, lpet),
        restored_slices=len(scan.rows),
        differences=odd,
    )


@dataclass(frozen=True)
class _Scan:
    """A scan on the model's grid: ``x_p``, ``x_m`` and ``scale`` of the slices in ``rows``."""

    native: Stack
    seen_mr: Stack
    fit: PlaneFit
    scan_mm: tuple[float, float]
    rows: list[int]
    x_p: Stack
    x_m: Stack
    scale: Stack

    def merge(self, images: Stack, outside: Stack) -> Stack:
        """Images back on the scan's grid; ``outside`` where the model's field does not reach."""
        field = self.fit.to_scan(np.ones((1, *self.fit.model_shape), dtype=np.float32))
        return np.where(field > 1 - 1e-4, self.fit.to_scan(images), outside).astype(np.float32)


def _prepare(bundle: Bundle, lpet: Volume, mr: Volume) -> _Scan:
    native = np.ascontiguousarray(axial_slices(lpet))
    size, voxel_mm = bundle.config.image_size, bundle.provenance.voxel_mm
    scan_mm = axial_zooms_mm(lpet)[1:]
    shape = (native.shape[1], native.shape[2])
    fit = PlaneFit.between(shape, scan_mm, (size, size), (voxel_mm, voxel_mm))
    fit = fit.holding(head_mask(native))
    seen = fit.to_model(native)
    seen_mr = resample(mr, fit.model_affine(axial_affine(lpet)), seen.shape)
    _check_overlap(seen, seen_mr)
    rows = _occupied(seen)
    of_pet, of_mr = INPUT_SCALES[intensity_of(bundle.provenance.data_facts)]
    scale, scale_m = _scales(of_pet, seen[rows]), _scales(of_mr, seen_mr[rows])
    x_p, x_m = seen[rows] / scale, seen_mr[rows] / scale_m
    return _Scan(native, seen_mr, fit, scan_mm, rows, x_p, x_m, scale)


def _scales(scale_of: Callable[[Stack], float], images: Stack) -> Stack:
    scales = np.array([scale_of(image) for image in images], dtype=np.float32)
    return scales[:, None, None]


def _run(
    model: RestorationModel, scan: _Scan, part: slice, sampler: SamplerConfig | None, seed: int
) -> tuple[Stack, Stack]:
    """Restored slices and their spread, in physical units, on the model's grid."""
    where = next(model.parameters()).device
    x_p, x_m = (torch.from_numpy(stack[part])[:, None].to(where) for stack in (scan.x_p, scan.x_m))
    keys = [f"axial/{row}" for row in scan.rows[part]]
    restored = model.restore(x_p, x_m, keys, seed=seed, sampler=sampler)
    x_s, spread = (image[:, 0].cpu().numpy() * scan.scale[part] for image in restored)
    return x_s, spread


def _check_overlap(pet: Stack, mr: Stack) -> None:
    """Refuse an MR that lies elsewhere: a network would invent a picture without it."""
    head = pet > HEAD_SHARE * pet.max()
    covered = float((mr[head] > 0).mean()) if head.any() else 1.0
    if covered < LEAST_OVERLAP:
        raise fault("mr-beside-head", "scan", share=f"{100 * covered:.0f} %")


def _occupied(slices: Stack) -> list[int]:
    """Rows of slices that hold activity in the model's field, enough of it to be scaled by."""
    levels = np.percentile(slices.reshape(len(slices), -1), 99.5, axis=1)
    return [int(row) for row in np.flatnonzero(levels > EMPTY_SHARE * levels.max())]
