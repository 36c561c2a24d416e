from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from mfdiff_core.data.intensity import mr_scale, own_maximum, pet_scale, triplet_scales

Image = npt.NDArray[np.float32]


def image(seed: int = 0) -> Image:
    noise = np.random.default_rng(seed).random((32, 32))
    return np.asarray(gaussian_filter(noise, 2), dtype=np.float32)


def test_pet_scale_of_a_uniform_image_is_one_and_a_half_times_its_value() -> None:
    assert pet_scale(np.full((32, 32), 8.0, dtype=np.float32)) == pytest.approx(12.0)


def test_mr_scale_of_a_ramp_is_its_upper_percentile() -> None:
    ramp = np.linspace(0, 1000, 10_001, dtype=np.float32).reshape(73, 137)
    assert mr_scale(ramp) == pytest.approx(995.0, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-6, 1e3, 1e6])
def test_scales_follow_the_unit_of_the_image(factor: float) -> None:
    scaled = (image() * factor).astype(np.float32)
    for scale in (pet_scale, mr_scale, own_maximum):
        assert scale(scaled) == pytest.approx(factor * scale(image()), rel=1e-5)


def test_one_hot_pixel_hardly_moves_the_pet_scale() -> None:
    plain = np.tile(image(), (8, 8))
    hot = plain.copy()
    # Smoothing spreads it over some 50 of 65536 pixels; the percentile leaves out 327.
    hot[128, 128] = 100 * hot.max()
    assert pet_scale(hot) == pytest.approx(pet_scale(plain), rel=0.01)


@pytest.mark.parametrize("scale", [pet_scale, mr_scale, own_maximum])
def test_empty_slice_has_scale_one(scale: object) -> None:
    assert callable(scale)
    assert scale(np.zeros((32, 32), dtype=np.float32)) == 1.0


def test_scale_is_read_from_the_image_without_changing_it() -> None:
    original = image()
    pet_scale(original)
    assert np.array_equal(original, image())


def test_one_scale_serves_lpet_and_spet_and_the_spet_has_no_say_in_it() -> None:
    x_p, x_m, x_s = (image(seed) for seed in range(3))
    scale, scale_m, scale_s = triplet_scales(x_p, x_m, x_s)
    assert scale == scale_s == pet_scale(x_p)
    assert scale_m == mr_scale(x_m)
    assert triplet_scales(x_p, x_m, 7 * x_s) == (scale, scale_m, scale_s)


def test_own_maximum_divides_each_image_by_its_own() -> None:
    x_p, x_m, x_s = (image(seed) for seed in range(3))
    found = triplet_scales(x_p, x_m, x_s, "own_maximum")
    assert found == (x_p.max(), x_m.max(), x_s.max())
