from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mfdiff_core.physics import psf
from mfdiff_core.physics.psf import FWHM_PER_SIGMA, GaussianBlur

BLUR = GaussianBlur(fwhm_mm=4.0, voxel_mm=2.08626)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_blur_is_its_own_adjoint_to_1e_10() -> None:
    x, y = random(20, 17, 3), random(20, 17, 3, seed=1)
    left, right = (BLUR(x) * y).sum(), (x * BLUR(y)).sum()
    assert abs(left - right) <= 1e-10 * abs(left)


def test_blur_keeps_the_activity_of_what_lies_inside() -> None:
    x = torch.zeros(30, 30, 1, dtype=torch.float64)
    x[10:20, 10:20] = random(10, 10, 1)
    assert torch.allclose(BLUR(x).sum(), x.sum(), rtol=1e-12)


def test_blur_equals_scipy() -> None:
    x = random(25, 25, 1)
    sigma = 4.0 / FWHM_PER_SIGMA / 2.08626
    expected = gaussian_filter(x[:, :, 0].numpy(), sigma, mode="constant", truncate=4.0)
    assert np.allclose(BLUR(x)[:, :, 0].numpy(), expected, atol=1e-12)


def test_strips_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(23, 9, 4)
    whole = BLUR(x)
    for rows in (1, 2, 3, 7):
        monkeypatch.setattr(psf, "_STRIP_BYTES", rows * 9 * 4 * 8)
        assert torch.equal(BLUR(x), whole)


def test_reused_memory_changes_nothing() -> None:
    x = random(12, 12, 2)
    out, scratch = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    assert torch.equal(BLUR(x, out, scratch), BLUR(x))


def test_width_at_half_maximum_is_what_was_asked_for() -> None:
    x = torch.zeros(81, 81, 1, dtype=torch.float64)
    x[40, 40] = 1
    profile = GaussianBlur(fwhm_mm=10.0, voxel_mm=0.5)(x)[40, :, 0].numpy()
    above = np.interp([0.5], profile[40:61][::-1] / profile[40], np.arange(20, -1, -1))
    assert 2 * above[0] * 0.5 == pytest.approx(10.0, abs=0.1)


def test_no_width_leaves_images_alone() -> None:
    x = random(5, 5, 2)
    assert GaussianBlur(0.0, 2.0)(x) is x


def test_negative_width_is_refused() -> None:
    with pytest.raises(ValueError, match="fwhm_mm=-1"):
        GaussianBlur(-1, 2.0)
