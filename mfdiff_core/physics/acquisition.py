"""From activity to image: projection, attenuation, counts, normalisation, reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mfdiff_core.physics.kinetics import ProtocolConfig
from mfdiff_core.physics.osem import osem
from mfdiff_core.physics.phantom import Floats
from mfdiff_core.physics.projector import Geometry, batches, cached_projector
from mfdiff_core.physics.psf import GaussianBlur
from mfdiff_core.seeding import Key, rng

_LANES = 8  # a product with 5 columns takes longer than one with 8

Normalisation = Literal["after_noise", "before_noise", "none"]


@dataclass(frozen=True, kw_only=True)
class ScannerConfig:
    """A 2-D stand-in for the Siemens Biograph mMR.

    Args:
        num_views: angles over half a turn.
        num_bins: radial bins; bin_mm: their size.
        slice_mm: thickness of a slice.
        sensitivity: detected events per decay in a slice before attenuation, all of the slice's
            share of the 3-D events included; used where counts follow from activity and time.
        counts_divisor: how many slices share the counts of a 3-D acquisition, where counts are
            given.
        attenuation: whether photons are attenuated (and corrected for).
        normalisation: detector efficiencies per line, exp(-U(0, normalisation_spread)). As in the
            reference recipe they are applied "after_noise", so that they change the weights only;
            "before_noise" also loses the counts.
        normalisation_spread: largest loss, in nepers.
        background_fraction: share of uniform randoms and scatter, with known mean, in all counts.
    """

    num_views: int = 252
    num_bins: int = 128
    bin_mm: float = 2.08626
    slice_mm: float = 2.03125
    sensitivity: float = 1.0
    counts_divisor: float = 100.0
    attenuation: bool = True
    normalisation: Normalisation = "after_noise"
    normalisation_spread: float = 1.0
    background_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.counts_divisor <= 0 or self.sensitivity <= 0:
            raise ValueError(
                f"counts_divisor and sensitivity must be positive, got {self.counts_divisor=}, "
                f"{self.sensitivity=}"
            )
        if not 0 <= self.background_fraction < 1:
            raise ValueError(
                f"background_fraction must lie in [0, 1), got {self.background_fraction=}"
            )
        if self.normalisation_spread < 0:
            raise ValueError(
                f"normalisation_spread must not be negative, got {self.normalisation_spread=}"
            )


@dataclass(frozen=True, kw_only=True)
class ReconConfig:
    """OSEM settings.

    Args:
        num_iterations, num_subsets: subsets may be unequal.
        psf_mm: FWHM of the resolution model; 0 for none.
        post_filter_mm: FWHM of the Gaussian filter of the finished image; 0 for none.
    """

    num_iterations: int
    num_subsets: int
    psf_mm: float = 0.0
    post_filter_mm: float = 0.0

    def __post_init__(self) -> None:
        if min(self.num_iterations, self.num_subsets) < 1:
            raise ValueError(
                "num_iterations and num_subsets must be at least 1, got "
                f"{self.num_iterations=}, {self.num_subsets=}"
            )
        if min(self.psf_mm, self.post_filter_mm) < 0:
            raise ValueError(
                f"widths must not be negative, got {self.psf_mm=}, {self.post_filter_mm=}"
            )


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """A window of a dynamic scan: counts follow from dose, kinetics and time.

    Args:
        protocol: how the tracer is given, from time zero on.
        start_s, duration_s: the window.
    """

    protocol: ProtocolConfig
    start_s: float
    duration_s: float

    def __post_init__(self) -> None:
        if self.start_s < 0 or self.duration_s <= 0:
            raise ValueError(
                f"a frame needs start_s >= 0 and duration_s > 0, got {self.start_s=}, "
                f"{self.duration_s=}"
            )


@dataclass(frozen=True, kw_only=True)
class AcquisitionConfig:
    """One PET image of a subject.

    Args:
        name: the "dose" of the draws' key; unique within a recipe.
        recon: reconstruction settings.
        psf_data_mm: FWHM of the blur in the data.
        counts_3d: range of the counts of the 3-D acquisition; every rotation draws its own.
        divide_counts: whether `ScannerConfig.counts_divisor` applies to them.
        frame: the window of a dynamic scan; exactly one of ``counts_3d`` and ``frame`` is given.
    """

    name: str
    recon: ReconConfig
    psf_data_mm: float
    counts_3d: tuple[float, float] | None = None
    divide_counts: bool = True
    frame: FrameConfig | None = None

    def __post_init__(self) -> None:
        if (self.counts_3d is None) == (self.frame is None):
            raise ValueError(f"{self.name}: give either counts_3d or frame")
        if self.counts_3d is not None and not 0 < self.counts_3d[0] <= self.counts_3d[1]:
            raise ValueError(f"counts_3d must be a range above zero, got {self.counts_3d=}")
        if self.psf_data_mm < 0:
            raise ValueError(f"psf_data_mm must not be negative, got {self.psf_data_mm=}")


@dataclass(frozen=True)
class Exposure:
    """One image to acquire.

    Args:
        activity: [n, n], any unit proportional to activity.
        mu_per_mm: attenuation, [n, n].
        num_counts: expected trues, or None to follow from ``counts_per_unit``.
        counts_per_unit: expected trues per unit of the attenuated sinogram.
        key: seed and names of the draws.
    """

    activity: Floats
    mu_per_mm: Floats
    num_counts: float | None
    counts_per_unit: float
    key: tuple[int, tuple[Key, ...]]


@dataclass(frozen=True)
class Image:
    """A reconstructed image [n, n] in the unit of the activity, and its expected trues.

    ``data`` are what it was made from, where they were asked for: y and AN, [2, views, bins].
    """

    values: Floats
    num_counts: float
    data: Floats | None = None


def acquire(
    exposures: list[Exposure],
    scanner: ScannerConfig,
    geometry: Geometry,
    psf_data_mm: float,
    recon: ReconConfig,
    device: str = "cpu",
    *,
    keep_data: bool = False,
) -> list[Image]:
    """Images of all exposures, in batches of fixed composition (Sec. 4.2)."""
    images: list[Image] = []
    for part in batches(len(exposures)):
        batch = exposures[part]
        filled = batch + batch[:1] * (-len(batch) % _LANES)
        made = _acquire_batch(filled, scanner, geometry, psf_data_mm, recon, device, keep_data)
        images += made[: len(batch)]
    return images


def _acquire_batch(
    exposures: list[Exposure],
    scanner: ScannerConfig,
    geometry: Geometry,
    psf_data_mm: float,
    recon: ReconConfig,
    device: str,
    keep_data: bool,
) -> list[Image]:
    projector = cached_projector(geometry, recon.num_subsets, device)
    blur = GaussianBlur(psf_data_mm, geometry.voxel_mm)
    flat = (geometry.image_px**2, len(exposures))

    def project(maps: list[Floats]) -> Tensor:
        stacked = torch.from_numpy(np.stack(maps, -1)).to(device)
        return projector.project(blur(stacked).reshape(flat))

    trues = project([e.activity for e in exposures])
    factors = torch.ones_like(trues)
    if scanner.attenuation:
        factors = torch.exp(-project([e.mu_per_mm for e in exposures]))
    efficiency = _efficiencies(exposures, scanner, factors)
    trues *= factors
    if scanner.normalisation == "before_noise":
        trues *= efficiency
    measured, background, counts = _noisy(exposures, scanner, trues)
    if scanner.normalisation == "after_noise":
        measured, background = measured * efficiency, background * efficiency
    x = osem(
        measured,
        factors * efficiency,
        projector,
        GaussianBlur(recon.psf_mm, geometry.voxel_mm),
        recon.num_iterations,
        background if scanner.background_fraction > 0 else None,
    )
    x = GaussianBlur(recon.post_filter_mm, geometry.voxel_mm)(x).cpu()
    data = torch.stack((measured, factors * efficiency)).cpu().numpy() if keep_data else None
    return [
        Image(
            values=x[:, :, i].contiguous().numpy(),
            num_counts=n,
            data=None if data is None else data[..., i],
        )
        for i, n in enumerate(counts)
    ]


def _efficiencies(exposures: list[Exposure], scanner: ScannerConfig, like: Tensor) -> Tensor:
    if scanner.normalisation == "none":
        return torch.ones_like(like)
    spread, shape = scanner.normalisation_spread, like.shape[:2]
    draws = [
        np.exp(-spread * rng(e.key[0], "normalisation", *e.key[1]).random(shape, np.float32))
        for e in exposures
    ]
    return torch.from_numpy(np.stack(draws, -1)).to(like.device)


def _noisy(
    exposures: list[Exposure], scanner: ScannerConfig, trues: Tensor
) -> tuple[Tensor, Tensor, list[float]]:
    """Poisson data and mean background in the unit of ``trues``, and the expected trues."""
    means = trues.cpu().numpy().astype(np.float64)
    noisy, backgrounds = np.empty_like(means, np.float32), np.empty_like(means, np.float32)
    counts = []
    share = scanner.background_fraction / (1 - scanner.background_fraction)
    for i, e in enumerate(exposures):
        total = means[..., i].sum()
        scale = e.counts_per_unit if e.num_counts is None else e.num_counts / total
        background = share * means[..., i].mean()
        drawn = rng(e.key[0], "counts", *e.key[1]).poisson((means[..., i] + background) * scale)
        noisy[..., i], backgrounds[..., i] = drawn / scale, background
        counts.append(float(total * scale))
    device = trues.device
    return torch.from_numpy(noisy).to(device), torch.from_numpy(backgrounds).to(device), counts
