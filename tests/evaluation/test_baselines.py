from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mfdiff_core.errors import DataError
from mfdiff_core.evaluation.baselines import (
    GaussianFilter,
    NonLocalMeans,
    best_gaussian,
    best_non_local_means,
)
from mfdiff_core.evaluation.metrics import evaluate_slices


def noisy_pair() -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(0)
    x_s = gaussian_filter(np.pad(r.random((4, 32, 32)), ((0, 0), (16, 16), (16, 16))), (0, 3, 3))
    noise = 0.1 * r.standard_normal(x_s.shape)
    return (x_s + noise).astype(np.float32), x_s.astype(np.float32)


def test_filter_has_the_width_it_says() -> None:
    point = np.zeros((1, 101, 101), dtype=np.float32)
    point[0, 50, 50] = 1
    profile = GaussianFilter(fwhm_mm=20.0).apply(point, voxel_mm=2.0)[0, 50]
    assert profile[45] == pytest.approx(profile[50] / 2, rel=1e-4)
    assert profile[55] == pytest.approx(profile[50] / 2, rel=1e-4)


def test_filter_keeps_the_total_activity() -> None:
    x_p, _ = noisy_pair()
    filtered = GaussianFilter(fwhm_mm=6.0).apply(x_p, voxel_mm=2.0)
    assert filtered.sum(axis=(1, 2)) == pytest.approx(x_p.sum(axis=(1, 2)), rel=1e-4)


def test_filter_does_not_mix_slices() -> None:
    x_p, _ = noisy_pair()
    chosen = GaussianFilter(fwhm_mm=6.0)
    assert np.array_equal(chosen.apply(x_p, 2.0)[2], chosen.apply(x_p[2], 2.0))


def test_zero_width_is_the_lpet_itself() -> None:
    x_p, _ = noisy_pair()
    assert np.array_equal(GaussianFilter(fwhm_mm=0.0).apply(x_p, voxel_mm=2.0), x_p)


def test_best_filter_beats_its_neighbours_and_the_lpet() -> None:
    x_p, x_s = noisy_pair()
    best = best_gaussian(x_p, x_s, voxel_mm=2.0)

    def psnr(fwhm_mm: float) -> float:
        return evaluate_slices(GaussianFilter(fwhm_mm=fwhm_mm).apply(x_p, 2.0), x_s).mean().psnr

    assert 2.0 < best.fwhm_mm < 15.0
    assert psnr(best.fwhm_mm) > max(psnr(best.fwhm_mm - 0.5), psnr(best.fwhm_mm + 0.5))
    assert psnr(best.fwhm_mm) > psnr(0.0) + 3


def test_width_is_chosen_in_millimetres() -> None:
    x_p, x_s = noisy_pair()
    fine = best_gaussian(x_p, x_s, voxel_mm=1.0, fwhm_grid_mm=(1, 2, 3, 4, 5))
    coarse = best_gaussian(x_p, x_s, voxel_mm=2.0, fwhm_grid_mm=(2, 4, 6, 8, 10))
    assert coarse.fwhm_mm == 2 * fine.fwhm_mm


def test_noise_free_lpet_is_left_alone() -> None:
    _, x_s = noisy_pair()
    assert best_gaussian(x_s, x_s, voxel_mm=2.0).fwhm_mm == 0


def test_nothing_to_choose_on_is_refused() -> None:
    with pytest.raises(DataError, match="no validation slices"):
        best_gaussian(np.zeros((0, 8, 8)), np.zeros((0, 8, 8)), 2.0)
    with pytest.raises(ValueError, match="fwhm_mm=-1"):
        GaussianFilter(fwhm_mm=-1)


def test_non_local_means_of_no_strength_is_the_lpet_itself() -> None:
    x_p, _ = noisy_pair()
    assert np.array_equal(NonLocalMeans(strength=0.0).apply(x_p), x_p)


def test_non_local_means_keeps_an_edge_that_a_gaussian_blurs() -> None:
    x_s = np.zeros((1, 40, 40), dtype=np.float32)
    x_s[:, :, 20:] = 1
    noise = 0.05 * np.random.default_rng(0).standard_normal(x_s.shape)
    x_p = (x_s + noise).astype(np.float32)
    kept = evaluate_slices(best_non_local_means(x_p, x_s).apply(x_p), x_s).mean().psnr
    blurred = evaluate_slices(best_gaussian(x_p, x_s, 2.0).apply(x_p, 2.0), x_s).mean().psnr
    assert kept > blurred + 3


def test_best_strength_beats_its_neighbours() -> None:
    x_p, x_s = noisy_pair()
    grid = (0.0, 0.05, 0.1, 0.2, 0.4)
    best = best_non_local_means(x_p, x_s, grid).strength
    scores = {
        h: evaluate_slices(NonLocalMeans(strength=h).apply(x_p), x_s).mean().psnr for h in grid
    }
    assert scores[best] == max(scores.values()) > scores[0.0]


def test_non_local_means_refuses_what_gaussian_does() -> None:
    with pytest.raises(DataError, match="no validation slices"):
        best_non_local_means(np.zeros((0, 8, 8)), np.zeros((0, 8, 8)))
    with pytest.raises(ValueError, match="strength=-1"):
        NonLocalMeans(strength=-1)
