"""From images in one space to slices of a dataset: planes, grid, scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mfdiff_core.data.image_checks import Affine, Voxels
from mfdiff_core.data.intensity import triplet_scales
from mfdiff_core.data.plane_fit import PlaneFit, head_mask
from mfdiff_core.data.slices import SliceInfo, SliceRecord
from mfdiff_core.data.volumes import (
    Volume,
    axial_affine,
    axial_slices,
    axial_zooms_mm,
    resample,
)
from mfdiff_core.faults import fault
from mfdiff_core.scans.pairing import PairedScan
from mfdiff_core.scans.pairing_config import PairingConfig, plane_range

LEAST_OVERLAP = 0.5
"""Share of the head in the PET that must have an MR."""

_HEAD_AREA = 0.5  # planes whose head has half the area of the largest one or more
_SCOUT_MM = 4.0


def to_records(
    scan: PairedScan, domain: str, subject: str, config: PairingConfig
) -> list[SliceRecord]:
    """Slices of a scan on one grid, divided by their scales, by plane and setting.

    Maps of tissue and lesions are empty: they are not known in people.

    Raises:
        InputFault: no plane cuts the head, or the MR does not cover it.
    """
    reference = scan.mr if config.grid == "mr" else scan.spet
    planes = _planes(reference, scan.spet, config)
    fit = _fit(reference, scan.spet, planes, config)
    x_s, x_m = (_images(volume, reference, planes, fit) for volume in (scan.spet, scan.mr))
    covered = float((x_m[head_mask(x_s)] > 0).mean())
    if covered < LEAST_OVERLAP:
        raise fault("mr-beside-head", "scan", share=f"{100 * covered:.0f} %")
    lpets = {name: _images(lpet, reference, planes, fit) for name, lpet in scan.lpets.items()}
    voxel_mm = config.voxel_mm or axial_zooms_mm(reference)[2]
    empty = np.zeros((config.image_size, config.image_size), dtype=np.uint8)
    records = []
    for row, plane in enumerate(planes):
        for setting, x_p in lpets.items():
            scale, scale_m, scale_s = triplet_scales(x_p[row], x_m[row], x_s[row], config.intensity)
            info = SliceInfo(
                domain=domain,
                setting=setting,
                subject=subject,
                slice_index=int(plane),
                rotation_index=0,
                voxel_mm=float(voxel_mm),
                scale=scale,
                mr_scale=scale_m,
                dose_mbq=scan.dose_mbq,
                protocol=scan.protocol,
            )
            x_s_here = (x_s[row] / scale_s).astype(np.float32)
            x_m_here = (x_m[row] / scale_m).astype(np.float32)
            x_p_here = (x_p[row] / scale).astype(np.float32)
            records.append(SliceRecord(info, x_p_here, x_m_here, x_s_here, empty, empty))
    return records


def _planes(reference: Volume, spet: Volume, config: PairingConfig) -> npt.NDArray[np.int64]:
    """Numbers of the planes to cut, from the feet."""
    num_planes = axial_slices(reference).shape[0]
    asked = plane_range(config.planes)
    if asked is not None:
        planes = np.array([plane for plane in asked if plane < num_planes], dtype=np.int64)
    else:
        area = _head_area(reference, spet)
        wide = np.flatnonzero(area >= _HEAD_AREA * area.max()) if area.any() else np.array([])
        step = max(1, round(config.plane_step_mm / axial_zooms_mm(reference)[0]))
        planes = wide[len(wide) % step // 2 :: step].astype(np.int64)
    if not len(planes):
        raise fault("no-head", "scan")
    return planes


def _head_area(reference: Volume, spet: Volume) -> npt.NDArray[np.int64]:
    """Pixels of head in each plane of the reference, on coarse pixels."""
    slices, affine = axial_slices(reference), axial_affine(reference)
    shape = (slices.shape[1], slices.shape[2])
    _, row_mm, column_mm = axial_zooms_mm(reference)
    size = (int(shape[0] * row_mm / _SCOUT_MM), int(shape[1] * column_mm / _SCOUT_MM))
    fit = PlaneFit.between(shape, (row_mm, column_mm), size, (_SCOUT_MM, _SCOUT_MM))
    scout = resample(spet, fit.model_affine(affine), (len(slices), *size))
    area: npt.NDArray[np.int64] = head_mask(scout).sum(axis=(1, 2))
    return area


def _fit(
    reference: Volume, spet: Volume, planes: npt.NDArray[np.int64], config: PairingConfig
) -> PlaneFit:
    """The model's field in the planes, about the centre or moved to hold the head."""
    shape = axial_slices(reference).shape
    _, row_mm, column_mm = axial_zooms_mm(reference)
    size, voxel_mm = config.image_size, config.voxel_mm or column_mm
    fit = PlaneFit.between(
        (shape[1], shape[2]), (row_mm, column_mm), (size, size), (voxel_mm, voxel_mm)
    )
    whole = resample(spet, _plane_affine(reference, planes), (len(planes), *shape[1:]))
    if not whole.any():
        raise fault("no-head", "scan")
    return fit.holding(head_mask(whole))


def _images(
    volume: Volume, reference: Volume, planes: npt.NDArray[np.int64], fit: PlaneFit
) -> Voxels:
    """Slices of ``volume`` in the planes of ``reference``, in one step."""
    if volume.same_grid(reference):
        return fit.to_model(axial_slices(volume)[planes])
    affine = fit.model_affine(_plane_affine(reference, planes))
    voxel = fit.model_affine(
        axial_affine(reference)
    )  # a plane is thinner than the step to the next
    return resample(volume, affine, (len(planes), *fit.model_shape), voxel=voxel)


def _plane_affine(reference: Volume, planes: npt.NDArray[np.int64]) -> Affine:
    """(plane, row, column) to RAS millimetres; planes are evenly spaced."""
    step = planes[1] - planes[0] if len(planes) > 1 else 1
    among = np.diag([float(step), 1.0, 1.0, 1.0])
    among[0, 3] = planes[0]
    return axial_affine(reference) @ among
