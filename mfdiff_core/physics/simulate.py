"""Simulated slices: subject in, triplets (LPET, MR, SPET) out (Sec. 4.2).

A subject is simulated on its own, and every draw is keyed by (seed, subject, rotation, slice,
acquisition): the result does not depend on order, process or number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mfdiff_core.physics.acquisition import AcquisitionConfig, Exposure, Image, acquire
from mfdiff_core.physics.activity import activity_table
from mfdiff_core.physics.domains import View, recipe
from mfdiff_core.physics.head import Head, build_head
from mfdiff_core.physics.kinetics import ProtocolConfig, decay_correction
from mfdiff_core.physics.phantom import (
    FINE_MM,
    FINE_PX,
    Bytes,
    Floats,
    block_centre,
    block_mean,
    centred,
    turn,
    turned,
)
from mfdiff_core.physics.recipe import GridConfig, SettingConfig, SimulationConfig, SlicesConfig
from mfdiff_core.physics.subjects import (
    SubjectSource,
    label_subject,
    list_subjects,
    subject_anatomy,
)
from mfdiff_core.seeding import rng

__all__ = [
    "SimulatedSlice",
    "SimulationConfig",
    "SubjectSource",
    "View",
    "label_subject",
    "list_subjects",
    "recipe",
    "simulate_subject",
]


@dataclass(frozen=True)
class SimulatedSlice:
    """One training pair with its anatomy.

    Args:
        num_counts: expected trues of the LPET.
        protocol: how the tracer was given; None where the activity is set by hand.
        x_p, x_s: low- and standard-dose PET in units of activity, float32 [H, W].
        x_m: MR in arbitrary units, float32 [H, W].
        tissue: `Tissue` codes, uint8 [H, W].
        lesions: bit 1 = PET lesion, bit 2 = MR lesion, uint8 [H, W].
        sinogram: where asked for, what the LPET was reconstructed from: measured data y, in the
            unit of the activity, and factors AN, float32 [2, views, bins].
    """

    setting: str
    subject: str
    slice_index: int
    rotation_index: int
    rotation_deg: float
    voxel_mm: float
    num_counts: float
    protocol: ProtocolConfig | None
    x_p: Floats
    x_m: Floats
    x_s: Floats
    tissue: Bytes
    lesions: Bytes
    sinogram: Floats | None = None


def simulate_subject(
    config: SimulationConfig,
    subject: SubjectSource,
    seed: int,
    device: str = "cpu",
    *,
    sinograms: bool = False,
) -> list[SimulatedSlice]:
    """All slices of one subject: by rotation, then slice, then setting.

    Args:
        config: recipe.
        subject: one of `list_subjects`.
        seed: seed of the dataset.
        device: where projection and reconstruction run.
        sinograms: keep the data of the LPET; only for recipes without background and frames.

    Raises:
        DataError: the subject's file cannot be used.
    """
    anatomy = subject_anatomy(config, subject)
    head = build_head(anatomy, config.lesions, config.contrast, (seed, subject.name))
    views = list(_views(config, head, subject.name, seed))
    images = _images(config, head, views, subject.name, seed, device, sinograms=sinograms)
    return [
        _slice(config, setting, view, index, images, subject.name)
        for index, view in enumerate(views)
        for setting in config.settings
    ]


@dataclass(frozen=True)
class _View:
    """One slice in one rotation; maps other than the activity."""

    slice_position: int
    slice_index: int
    rotation_index: int
    rotation_deg: float
    source: NDArray[np.int64]
    mu_per_mm: Floats
    x_m: Floats
    tissue: Bytes
    lesions: Bytes


def _views(config: SimulationConfig, head: Head, subject: str, seed: int) -> Iterator[_View]:
    """Slices in the order of rotations; rotation and lesions come before projection."""
    grid, slices = config.grid, config.slices
    recon, output = round(grid.recon_mm / FINE_MM), round(grid.output_mm / FINE_MM)
    mr, mu, bits = head.mr(), head.mu_per_mm(), head.lesion_bits()
    for rotation, angle in enumerate(_angles(slices, subject, seed)):
        source = turned(FINE_PX, angle)
        sd = config.contrast.mr_noise * config.contrast.mr.white
        for position, index in enumerate(slices.indices):
            x_m = block_mean(turn(mr[position], source), output, grid.output_px)
            draw = rng(seed, "mr_noise", subject, rotation, index)
            noise = draw.standard_normal((2, *x_m.shape), np.float32) * np.float32(sd)
            yield _View(
                slice_position=position,
                slice_index=index,
                rotation_index=rotation,
                rotation_deg=angle,
                source=source,
                mu_per_mm=block_mean(turn(mu[position], source), recon, grid.recon_px),
                x_m=np.hypot(x_m + noise[0], noise[1]),  # magnitude image: Rician noise
                tissue=block_centre(turn(head.labels[position], source), output, grid.output_px),
                lesions=block_centre(turn(bits[position], source), output, grid.output_px),
            )


def _angles(slices: SlicesConfig, subject: str, seed: int) -> list[float]:
    low = -slices.max_rotation_deg if slices.signed else 0.0
    draws = [
        float(rng(seed, "rotation", subject, i).uniform(low, slices.max_rotation_deg))
        for i in range(1, slices.num_rotations)
    ]
    return [0.0, *draws]


def _images(
    config: SimulationConfig,
    head: Head,
    views: list[_View],
    subject: str,
    seed: int,
    device: str,
    *,
    sinograms: bool,
) -> dict[str, list[Image]]:
    """Images [view] of each acquisition; those with equal physics are reconstructed together."""
    low = {setting.low for setting in config.settings}
    groups: dict[object, list[AcquisitionConfig]] = {}
    for a in config.acquisitions:
        groups.setdefault((a.psf_data_mm, a.recon), []).append(a)
    images: dict[str, list[Image]] = {}
    for group in groups.values():
        exposures = [e for a in group for e in _exposures(config, a, head, views, subject, seed)]
        made = acquire(
            exposures,
            config.scanner,
            config.geometry,
            group[0].psf_data_mm,
            group[0].recon,
            device,
            keep_data=sinograms and not low.isdisjoint(group),
        )
        for i, a in enumerate(group):
            images[a.name] = made[i * len(views) : (i + 1) * len(views)]
    return images


def _exposures(
    config: SimulationConfig,
    acquisition: AcquisitionConfig,
    head: Head,
    views: list[_View],
    subject: str,
    seed: int,
) -> Iterator[Exposure]:
    table = activity_table(config.activity, acquisition.frame, (seed, subject))
    activity = head.activity(table)
    scanner, factor = config.scanner, round(config.grid.recon_mm / FINE_MM)
    for view in views:
        counts, per_unit = None, 1.0
        if acquisition.counts_3d is not None:
            draw = rng(seed, "dose", subject, view.rotation_index, acquisition.name)
            counts = float(draw.uniform(*acquisition.counts_3d))
            counts /= scanner.counts_divisor if acquisition.divide_counts else 1.0
        elif acquisition.frame is not None:
            decays_ml = scanner.bin_mm * scanner.slice_mm / 1e3 * acquisition.frame.duration_s
            per_unit = scanner.sensitivity * decays_ml / scanner.num_views
        fine = turn(activity[view.slice_position], view.source)
        yield Exposure(
            activity=block_mean(fine, factor, config.grid.recon_px),
            mu_per_mm=view.mu_per_mm,
            num_counts=counts,
            counts_per_unit=per_unit,
            key=(seed, (subject, view.rotation_index, view.slice_index, acquisition.name)),
        )


def _slice(
    config: SimulationConfig,
    setting: SettingConfig,
    view: _View,
    index: int,
    images: dict[str, list[Image]],
    subject: str,
) -> SimulatedSlice:
    low, standard = images[setting.low.name][index], images[setting.standard.name][index]
    return SimulatedSlice(
        setting=setting.name,
        subject=subject,
        slice_index=view.slice_index,
        rotation_index=view.rotation_index,
        rotation_deg=view.rotation_deg,
        voxel_mm=config.grid.output_mm,
        num_counts=low.num_counts,
        protocol=setting.low.frame.protocol if setting.low.frame else None,
        x_p=_output(config.grid, setting.low, low.values),
        x_m=view.x_m,
        x_s=_output(config.grid, setting.standard, standard.values),
        tissue=view.tissue,
        lesions=view.lesions,
        sinogram=low.data,
    )


def _output(grid: GridConfig, acquisition: AcquisitionConfig, image: Floats) -> Floats:
    """The kept field on the output grid; frames are decay-corrected to the start of the scan."""
    kept = centred(image, grid.field_px)
    if acquisition.frame is not None:
        frame = acquisition.frame
        kept = kept * np.float32(decay_correction(frame.start_s, frame.duration_s))
    if grid.output_px == grid.field_px:
        return np.ascontiguousarray(kept)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(kept))[None, None],
        size=(grid.output_px, grid.output_px),
        mode="bilinear",
        align_corners=False,
    )
    return resized[0, 0].numpy()
