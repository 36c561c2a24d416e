from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mfdiff_core.data.plane_fit import PlaneFit

Array = npt.NDArray[Any]


def brain() -> Array:
    return np.random.default_rng(0).random((10, 12, 8), dtype=np.float32)


def fit_grid(
    slices: Array,
    voxel_mm: tuple[float, float],
    target_mm: tuple[float, float],
    shape: tuple[int, int],
) -> Array:
    scan = (slices.shape[1], slices.shape[2])
    return PlaneFit.between(scan, voxel_mm, shape, target_mm).to_model(slices)


def test_unchanged_grid_is_bit_exact() -> None:
    slices = brain()
    assert np.array_equal(fit_grid(slices, (2.0, 2.5), (2.0, 2.5), (12, 8)), slices)


@pytest.mark.parametrize("size", [(16, 20), (15, 17), (12, 9)])
def test_padding_and_cropping_back_is_bit_exact(size: tuple[int, int]) -> None:
    slices = brain()
    padded = fit_grid(slices, (2.0863, 2.0863), (2.08626, 2.08626), size)
    assert padded.shape == (10, *size)
    assert padded.sum() == pytest.approx(slices.sum())
    assert np.array_equal(fit_grid(padded, (2.08626,) * 2, (2.0863,) * 2, (12, 8)), slices)


def blob(
    shape: tuple[int, int], voxel_mm: tuple[float, float], at_mm: tuple[float, float]
) -> Array:
    """Gaussian of 8 mm sigma at a distance from the image's centre."""
    y, x = (
        (np.arange(n) - (n - 1) / 2) * mm - at
        for n, mm, at in zip(shape, voxel_mm, at_mm, strict=True)
    )
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / 128).astype(np.float32)[None]


@pytest.mark.parametrize(
    ("voxel_mm", "target_mm"), [((1.39, 1.39), (2.086, 2.086)), ((2.0, 1.5), (1.0, 1.0))]
)
def test_anatomy_keeps_its_place_and_size_in_millimetres(
    voxel_mm: tuple[float, float], target_mm: tuple[float, float]
) -> None:
    native, model = (90, 101), (131, 120)
    at_mm = (7.0, -11.0)
    slices = blob(native, voxel_mm, at_mm)
    fitted = fit_grid(slices, voxel_mm, target_mm, model)
    assert fitted == pytest.approx(blob(model, target_mm, at_mm), abs=0.03)
    assert fit_grid(fitted, target_mm, voxel_mm, native) == pytest.approx(slices, abs=0.04)


def test_shrinking_averages_noise_and_keeps_activity() -> None:
    noise = np.random.default_rng(0).random((1, 96, 96)).astype(np.float32)
    small = fit_grid(noise, (1.0, 1.0), (3.0, 3.0), (32, 32))
    assert small[:, 4:-4, 4:-4].std() < noise.std() / 2
    assert small[:, 4:-4, 4:-4].mean() == pytest.approx(0.5, abs=0.02)


def test_constant_activity_stays_constant_inside() -> None:
    flat = np.ones((1, 40, 40), dtype=np.float32)
    fitted = fit_grid(flat, (2.0, 2.0), (3.1, 1.3), (20, 50))
    assert fitted[:, 3:-3, 3:-3] == pytest.approx(1.0)


@pytest.mark.parametrize("voxel_mm", [1.0, 1.7, 2.6])
def test_way_back_puts_every_pixel_where_it_was(voxel_mm: float) -> None:
    slices = blob((80, 90), (2.0, 2.0), (5.0, -9.0))
    fit = PlaneFit.between((80, 90), (2.0, 2.0), (160, 160), (voxel_mm, voxel_mm))
    assert fit.to_scan(fit.to_model(slices)) == pytest.approx(slices, abs=0.05)


def test_affine_says_where_the_models_pixels_lie() -> None:
    """A ramp in millimetres, taken to the model's grid, has the values its affine foretells."""
    fit = PlaneFit.between((40, 50), (2.0, 3.0), (30, 34), (2.5, 2.0))
    rows, columns = np.mgrid[:40, :50]
    ramp = fit.to_model((2.0 * rows + 7 * 3.0 * columns)[None])
    affine = fit.model_affine(np.diag([5.0, 2.0, 3.0, 1.0]))
    index = np.stack(np.broadcast_arrays(0, *np.mgrid[:30, :34]), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inside = np.s_[4:-4, 4:-4]
    assert ramp[0][inside] == pytest.approx(
        (world @ [0, 1, 7])[inside], abs=0.2
    )  # a tenth of a pixel


@pytest.mark.parametrize("voxel_mm", [2.0, 1.5])
def test_field_moves_to_a_head_beside_the_centre_and_back(voxel_mm: float) -> None:
    slices = np.zeros((3, 60, 64), dtype=np.float32)
    slices[:, 2:30, 10:40] = brain()[:3, :1, :1] + 1
    fit = PlaneFit.between((60, 64), (2.0, 2.0), (44, 44), (voxel_mm, voxel_mm))
    held = fit.holding(slices > 0)
    assert fit.to_model(slices).sum() < 0.99 * held.to_model(slices).sum()
    assert held.to_model(slices).sum() * voxel_mm**2 == pytest.approx(4 * slices.sum(), rel=0.03)
    if voxel_mm == 2.0:
        assert np.array_equal(held.to_scan(held.to_model(slices)), slices)


def test_field_that_holds_the_head_stays() -> None:
    head = np.zeros((1, 60, 64), dtype=bool)
    head[:, 20:40, 20:40] = True
    fit = PlaneFit.between((60, 64), (2.0, 2.0), (44, 44), (2.0, 2.0))
    assert fit.holding(head) == fit
