from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mfdiff_core.physics import acquisition
from mfdiff_core.physics.acquisition import (
    AcquisitionConfig,
    Exposure,
    FrameConfig,
    Normalisation,
    ReconConfig,
    ScannerConfig,
    acquire,
)
from mfdiff_core.physics.kinetics import ProtocolConfig
from mfdiff_core.physics.projector import Geometry
from mfdiff_core.seeding import rng

N = 32
GEOMETRY = Geometry(image_px=N, voxel_mm=8.0, num_bins=N, bin_mm=8.0, num_views=42)
SCANNER = ScannerConfig(num_views=42, num_bins=N, bin_mm=8.0)
RECON = ReconConfig(num_iterations=4, num_subsets=5)


def exposure(name: str, num_counts: float | None = 1e9, per_unit: float = 1.0) -> Exposure:
    draw = rng(0, "activity", name)
    activity = np.zeros((N, N), np.float32)
    activity[8:24, 10:22] = 50 * (1 + draw.random((16, 12), np.float32))
    mu_per_mm = np.where(activity > 0, 0.00975, 0).astype(np.float32)
    return Exposure(activity, mu_per_mm, num_counts, per_unit, (0, (name,)))


def sinogram_noise(num_draws: int, background: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Poisson data of many draws and their expectation, both in counts."""
    scanner = dataclasses.replace(SCANNER, background_fraction=background)
    means = torch.linspace(0.5, 30, 200).view(10, 20, 1).expand(10, 20, num_draws).contiguous()
    exposures = [
        dataclasses.replace(exposure("e", None), key=(0, (str(i),))) for i in range(num_draws)
    ]
    data, b, _ = acquisition._noisy(exposures, scanner, means)
    return data.numpy(), (means + b).numpy()


@pytest.mark.parametrize("background", [0.0, 0.3])
def test_poisson_mean_equals_variance_equals_expectation(background: float) -> None:
    data, expected = sinogram_noise(4000, background)
    deviation = np.sqrt(expected[..., 0] / 4000)
    assert (abs(data.mean(-1) - expected[..., 0]) < 4.5 * deviation).all()
    assert np.allclose(data.var(-1) / expected[..., 0], 1, atol=0.12)


def test_background_takes_its_share_of_the_counts() -> None:
    _, expected = sinogram_noise(1, 0.25)
    without = sinogram_noise(1)[1]
    assert (expected - without).sum() / expected.sum() == pytest.approx(0.25)


def test_image_has_the_counts_asked_for() -> None:
    images = acquire([exposure("a", 2e5), exposure("b", 7e5)], SCANNER, GEOMETRY, 4.0, RECON)
    assert [i.num_counts for i in images] == pytest.approx([2e5, 7e5])


def test_counts_follow_activity_time_and_sensitivity() -> None:
    images = acquire(
        [exposure("a", None, 1.0), exposure("a", None, 3.0)], SCANNER, GEOMETRY, 4.0, RECON
    )
    assert images[1].num_counts == pytest.approx(3 * images[0].num_counts)


def test_decays_without_attenuation_are_counted_with_the_sensitivity() -> None:
    scanner = dataclasses.replace(SCANNER, attenuation=False, normalisation="none")
    e = exposure("a", None, SCANNER.bin_mm * SCANNER.slice_mm / 1e3 / SCANNER.num_views)
    decays_per_s = float(e.activity.sum()) * 8.0 * 8.0 * SCANNER.slice_mm / 1e3
    image = acquire([e], scanner, GEOMETRY, 0.0, RECON)[0]
    assert image.num_counts == pytest.approx(decays_per_s, rel=1e-3)


@pytest.mark.parametrize("normalisation", ["after_noise", "before_noise", "none"])
@pytest.mark.parametrize("background", [0.0, 0.4])
def test_every_effect_is_corrected_for(normalisation: Normalisation, background: float) -> None:
    scanner = dataclasses.replace(
        SCANNER, normalisation=normalisation, background_fraction=background
    )
    e = exposure("a", 1e12)
    recon = ReconConfig(num_iterations=60, num_subsets=6, psf_mm=4.0)
    image = acquire([e], scanner, GEOMETRY, 4.0, recon)[0].values
    inside = e.activity > 0
    assert np.corrcoef(image[inside], e.activity[inside])[0, 1] > 0.95
    assert image.sum() == pytest.approx(e.activity.sum(), rel=0.01)


def test_attenuation_costs_counts() -> None:
    free = dataclasses.replace(SCANNER, attenuation=False)
    counts = [
        acquire([exposure("a", None)], s, GEOMETRY, 4.0, RECON)[0].num_counts
        for s in (free, SCANNER)
    ]
    assert counts[1] < 0.6 * counts[0]


def test_fewer_counts_make_more_noise() -> None:
    e = exposure("a")
    errors = []
    for num_counts in (1e4, 1e6, 1e8):
        image = acquire(
            [dataclasses.replace(e, num_counts=num_counts)], SCANNER, GEOMETRY, 0, RECON
        )
        clean = acquire([dataclasses.replace(e, num_counts=1e13)], SCANNER, GEOMETRY, 0, RECON)
        errors.append(np.square(image[0].values - clean[0].values).sum())
    # a hundredth of the noise variance per hundred times the counts; NF is the same draw
    assert 30 < errors[0] / errors[1] < 300
    assert 30 < errors[1] / errors[2] < 300


def test_post_filter_smooths() -> None:
    filtered = dataclasses.replace(RECON, post_filter_mm=20.0)
    rough, smooth = (
        acquire([exposure("a", 1e4)], SCANNER, GEOMETRY, 4.0, r)[0].values
        for r in (RECON, filtered)
    )
    assert np.diff(smooth).std() < 0.5 * np.diff(rough).std()


def test_noise_belongs_to_the_image_and_not_to_its_place() -> None:
    names = [f"e{i}" for i in range(19)]
    forwards = acquire([exposure(n, 1e6) for n in names], SCANNER, GEOMETRY, 4.0, RECON)
    backwards = acquire([exposure(n, 1e6) for n in names[::-1]], SCANNER, GEOMETRY, 4.0, RECON)
    for a, b in zip(forwards, backwards[::-1], strict=True):
        assert np.allclose(a.values, b.values, rtol=1e-3, atol=1e-3)


def test_one_image_or_many_are_the_same_up_to_rounding() -> None:
    names = [f"e{i}" for i in range(16)]
    together = acquire([exposure(n, 1e6) for n in names], SCANNER, GEOMETRY, 4.0, RECON)
    alone = acquire([exposure("e5", 1e6)], SCANNER, GEOMETRY, 4.0, RECON)[0]
    assert np.allclose(together[5].values, alone.values, rtol=1e-3, atol=1e-3)


def test_acquisition_needs_counts_or_a_frame_but_not_both() -> None:
    frame = FrameConfig(
        protocol=ProtocolConfig(kind="bolus", dose_mbq=1.0), start_s=0, duration_s=9
    )
    for given in ({}, {"counts_3d": (1.0, 2.0), "frame": frame}):
        with pytest.raises(ValueError, match="either counts_3d or frame"):
            AcquisitionConfig(name="x", recon=RECON, psf_data_mm=4.0, **given)  # type: ignore[arg-type]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="counts_3d"):
        AcquisitionConfig(name="x", recon=RECON, psf_data_mm=4.0, counts_3d=(2.0, 1.0))
    with pytest.raises(ValueError, match="background_fraction"):
        ScannerConfig(background_fraction=1.0)
    with pytest.raises(ValueError, match="num_subsets=0"):
        ReconConfig(num_iterations=1, num_subsets=0)
    with pytest.raises(ValueError, match="post_filter_mm=-1"):
        ReconConfig(num_iterations=1, num_subsets=1, post_filter_mm=-1)
    with pytest.raises(ValueError, match="counts_divisor"):
        ScannerConfig(counts_divisor=0)
