from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mfdiff_core.errors import DataError
from mfdiff_core.evaluation.metrics import (
    METRICS,
    Convention,
    definition,
    evaluate_slices,
    slice_metrics,
)
from mfdiff_core.similarity import Window

Images = npt.NDArray[np.float32]

SKIMAGE = {
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    "uniform": {},
}


def pair(count: int = 5, size: int = 72) -> tuple[Images, Images]:
    """Restored and true slices: smooth blobs in kBq/mL, each slice with a maximum of its own."""
    r = np.random.default_rng(0)
    s = gaussian_filter(r.random((count, size, size)), (0, 3, 3))
    s = (s - s.min()) * r.uniform(20, 90, (count, 1, 1))
    x = s + 0.05 * s.max() * r.standard_normal(s.shape)
    return x.astype(np.float32), s.astype(np.float32)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_metrics_agree_with_scikit_image(window: Window) -> None:
    x, s = pair()
    metrics = evaluate_slices(x, s, window=window)
    for row, image, truth in zip(metrics.rows(), x, s, strict=True):
        a, b = image.astype(float) / truth.max(), truth.astype(float) / truth.max()
        ssim = structural_similarity(a, b, data_range=1, **SKIMAGE[window])
        assert row.ssim == pytest.approx(ssim, abs=1e-6)
        assert row.psnr == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-4)
        assert row.nmse == pytest.approx(((a - b) ** 2).sum() / (b**2).sum(), abs=1e-6)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_of_flat_bright_images_does_not_lose_its_digits(window: Window) -> None:
    r = np.random.default_rng(1)
    s = (1 - 0.01 * r.random((1, 64, 64))).astype(np.float32)
    x = (s - 0.01 * r.random((1, 64, 64))).astype(np.float32)
    a, b = x[0].astype(float) / s.max(), s[0].astype(float) / s.max()
    expected = structural_similarity(a, b, data_range=1, **SKIMAGE[window])
    assert evaluate_slices(x, s, window=window).ssim[0] == pytest.approx(expected, abs=1e-5)


def test_constant_offset_has_the_psnr_of_its_closed_form() -> None:
    _, s = pair()
    offset = 0.01 * s.max(axis=(1, 2), keepdims=True)
    assert evaluate_slices(s + offset, s).psnr == pytest.approx(40.0, abs=1e-4)


def test_scaled_image_has_the_nmse_of_its_closed_form() -> None:
    _, s = pair()
    assert evaluate_slices(np.float32(1.2) * s, s).nmse == pytest.approx(0.04, rel=1e-5)


def test_identical_images_have_ssim_one_and_no_error() -> None:
    _, s = pair()
    metrics = evaluate_slices(s, s)
    assert metrics.ssim == pytest.approx(1.0, abs=1e-6)
    assert np.isposinf(metrics.psnr).all()
    assert (metrics.nmse == 0).all()


def test_ssim_is_symmetric() -> None:
    x, s = pair()
    forth = evaluate_slices(x, s, "paper").ssim
    assert forth == pytest.approx(evaluate_slices(s, x, "paper").ssim, abs=1e-6)


def test_quantitative_metrics_do_not_depend_on_the_unit() -> None:
    x, s = pair()
    metrics, scaled = evaluate_slices(x, s), evaluate_slices(x * 1024, s * 1024)
    for name in METRICS:
        assert getattr(scaled, name) == pytest.approx(getattr(metrics, name), rel=1e-6)


def test_wrong_scale_counts_in_the_quantitative_convention_only() -> None:
    _, s = pair()
    assert (evaluate_slices(2 * s, s).psnr < 30).all()
    assert np.isposinf(evaluate_slices(2 * s, s, "paper").psnr).all()


def test_paper_convention_divides_each_image_by_its_own_maximum() -> None:
    x, s = pair()
    own = x / x.max(axis=(1, 2), keepdims=True), s / s.max(axis=(1, 2), keepdims=True)
    expected = -10 * np.log10(((own[0] - own[1]) ** 2).mean(axis=(1, 2)))
    assert evaluate_slices(x, s, "paper").psnr == pytest.approx(expected, abs=1e-4)


def test_each_slice_is_measured_alone() -> None:
    x, s = pair(7, 200)
    for i, row in enumerate(evaluate_slices(x, s).rows()):
        alone = evaluate_slices(x[i : i + 1], s[i : i + 1]).rows()[0]
        assert row == pytest.approx(alone, rel=1e-6)


def test_tensors_arrays_and_read_only_views_give_the_same_numbers() -> None:
    x, s = pair()
    x.flags.writeable = False
    rows = evaluate_slices(x, s).rows()
    assert evaluate_slices(torch.tensor(x), torch.tensor(s)).rows() == rows
    assert evaluate_slices(x[:, ::-1], s[:, ::-1]).psnr == pytest.approx([r.psnr for r in rows])


def test_images_are_left_as_they_were() -> None:
    x, s = pair()
    before = x.copy(), s.copy()
    evaluate_slices(x, s)
    assert np.array_equal(x, before[0])
    assert np.array_equal(s, before[1])


def test_mean_counts_each_slice_once() -> None:
    x, s = pair()
    metrics = evaluate_slices(x, s)
    assert len(metrics) == 5
    assert metrics.mean().psnr == pytest.approx(sum(row.psnr for row in metrics.rows()) / 5)


def test_restored_values_that_are_not_finite_give_nan() -> None:
    x, s = pair()
    x[1, 10, 10] = np.nan
    rows = evaluate_slices(x, s).rows()
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[0]).all()


@pytest.mark.parametrize("convention", ["quantitative", "paper"])
def test_restoration_without_any_activity_is_measured(convention: Convention) -> None:
    _, s = pair()
    assert evaluate_slices(0 * s, s, convention).nmse == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_empty_or_broken_spet_is_refused_by_number(value: float) -> None:
    x, s = pair()
    s[3] = value
    with pytest.raises(DataError, match=r"\[3\] of 5"):
        evaluate_slices(x, s)


def test_images_that_do_not_match_are_refused() -> None:
    x, s = pair()
    with pytest.raises(ValueError, match="alike"):
        evaluate_slices(x[:4], s)
    with pytest.raises(ValueError, match="alike"):
        evaluate_slices(x[0], s[0])
    with pytest.raises(ValueError, match="at least 11"):
        evaluate_slices(x[:, :10], s[:, :10])


def test_definition_names_range_window_and_convention() -> None:
    assert "data range 1" in definition()
    assert "11x11" in definition()
    assert "7x7" in definition(window="uniform")
    assert "own maximum" in definition("paper")


@pytest.mark.gpu
def test_slice_metrics_never_wait_for_the_device() -> None:
    x, s = (torch.from_numpy(images).cuda() for images in pair())
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = slice_metrics(x, s)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = slice_metrics(x.cpu(), s.cpu())
    assert torch.allclose(values.cpu(), expected, atol=1e-4)
