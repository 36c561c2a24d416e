from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.config import one_of, to_dict
from mfdiff_core.data.volumes import Volume, axial_slices
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.model import AnyModelConfig, build_model
from mfdiff_core.restore import RestoredVolume, _prepare, restore_volume
from tests.comparison.toy_systems import thin_config

Array = npt.NDArray[Any]
# The model has 32 x 32 pixels of 2 mm; the scan 36 x 40: 2 and 4 voxels stick out on each side.
SHAPE = (36, 40, 5)
RAS = np.array([[2.0, 0, 0, -35], [0, 2.0, 0, -39], [0, 0, 3.0, -6], [0, 0, 0, 1]])
SEVERAL = SamplerConfig(name="ddpm", num_evaluations=3, num_samples=2)


def activity(seed: int = 0) -> Array:
    """A warm ellipsoid with noise; nothing in the first slice, next to nothing in the last."""
    draws = np.random.default_rng(seed)
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    head = ((x - 17.5) / 14) ** 2 + ((y - 19.5) / 17) ** 2 < 1
    smooth = gaussian_filter(draws.random(SHAPE), (2, 2, 0)) + 0.05 * draws.random(SHAPE)
    return np.asarray(head[:, :, None] * smooth * [0, 1, 1, 1, 0.01], dtype=np.float32)


def pet() -> Volume:
    return Volume(activity() * np.float32(8000), RAS)


def mr() -> Volume:
    return Volume(activity(seed=1) * np.float32(600), RAS)


def turned(volume: Volume, codes: str) -> Volume:
    """The same image in space with its voxels stored in another order."""
    image = nib.Nifti1Image(volume.data, volume.affine)
    wanted = nib.orientations.axcodes2ornt(codes)
    now = nib.io_orientation(volume.affine)
    image = image.as_reoriented(nib.orientations.ornt_transform(now, wanted))
    return Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine)


def restored(bundle: Bundle, lpet: Volume | None = None, **extra: Any) -> RestoredVolume:
    return restore_volume(bundle, lpet or pet(), extra.pop("mr", mr()), **extra)


def inside(data: Array) -> Array:
    """What the model's field covers of the slices that hold activity."""
    return data[2:-2, 4:-4, 1:-1]


def test_scan_is_divided_by_what_the_training_slices_were(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    own = replace(tiny_bundle.provenance, data_facts={"intensity": "own_maximum"})
    bundle = save_bundle(tmp_path / "own", tiny_bundle.config, tiny_bundle.weights(), own)
    for x in (_prepare(bundle, pet(), mr()).x_p, _prepare(bundle, pet(), mr()).x_m):
        assert x.max((1, 2)) == pytest.approx(1)
    assert _prepare(tiny_bundle, pet(), mr()).x_p.max() != pytest.approx(1)


# --- the grid ------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PSR"])
def test_result_lies_on_the_grid_of_the_pet(tiny_bundle: Bundle, codes: str) -> None:
    lpet = turned(pet(), codes)
    result = restored(tiny_bundle, lpet)
    assert result.pet.same_grid(lpet)
    assert result.spread.same_grid(lpet)
    assert np.array_equal(result.pet.affine, lpet.affine)


@pytest.mark.parametrize("mr_codes", ["RAS", "LPS"])
@pytest.mark.parametrize(
    ("codes", "flips"), [("LAS", (0,)), ("LPS", (0, 1)), ("RAI", (2,)), ("LPI", (0, 1, 2))]
)
def test_storage_order_does_not_matter_voxel_by_voxel(
    tiny_bundle: Bundle, codes: str, flips: tuple[int, ...], mr_codes: str
) -> None:
    straight = restored(tiny_bundle).pet.data
    flipped = restored(tiny_bundle, turned(pet(), codes), mr=turned(mr(), mr_codes)).pet.data
    np.testing.assert_allclose(np.flip(flipped, flips), straight, rtol=1e-5, atol=0.01)


def test_oblique_scan_is_restored_to_the_same_voxels(tiny_bundle: Bundle) -> None:
    angle = np.deg2rad(14)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilted = restored(tiny_bundle, pet().moved(turn), mr=mr().moved(turn)).pet
    assert np.allclose(tilted.affine, turn @ RAS, atol=1e-6)
    np.testing.assert_allclose(tilted.data, restored(tiny_bundle).pet.data, rtol=1e-5, atol=0.01)


def test_mr_goes_to_the_models_grid_in_one_step(tiny_bundle: Bundle) -> None:
    """A PET of coarse voxels costs the MR no detail: what the model sees is the MR itself."""
    coarse = RAS @ np.diag([2.0, 2.0, 1, 1])
    coarse[:2, 3] = RAS[:2, 3] + 1
    low = Volume(pet().data[::2, ::2].copy(), coarse)
    seen = _prepare(tiny_bundle, low, mr()).seen_mr
    fine = np.asarray(axial_slices(mr()), dtype=np.float32)[:, 4:-4, 2:-2]
    assert seen == pytest.approx(fine, abs=1e-3)


@pytest.mark.parametrize("voxel_mm", [1.2, 3.0])
def test_other_voxel_sizes_come_back_on_their_own_grid(
    tiny_bundle: Bundle, voxel_mm: float
) -> None:
    affine = RAS @ np.diag([voxel_mm / 2, voxel_mm / 2, 1, 1])
    lpet = Volume(pet().data, affine)
    result = restored(tiny_bundle, lpet, mr=Volume(mr().data, affine)).pet
    assert result.same_grid(lpet)
    assert np.isfinite(result.data).all()
    assert not np.array_equal(inside(result.data), inside(lpet.data))


def test_mr_is_brought_to_the_pet_by_the_affines(tiny_bundle: Bundle) -> None:
    """An MR with a margin of five voxels, known to its affine, gives the same result."""
    wide = Volume(np.pad(mr().data, 5), RAS @ np.array(_shift(-5)))
    result = restored(tiny_bundle, mr=wide).pet.data
    np.testing.assert_allclose(result, restored(tiny_bundle).pet.data, rtol=1e-5, atol=0.01)


def _shift(voxels: float) -> Array:
    matrix = np.eye(4)
    matrix[:3, 3] = voxels
    return matrix


# --- values --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1000.0, 1e-6])
def test_result_follows_the_unit_of_the_pet(tiny_bundle: Bundle, factor: float) -> None:
    scaled = pet().with_data(pet().data * factor)
    plain, other = (restored(tiny_bundle, lpet, sampler=SEVERAL) for lpet in (pet(), scaled))
    for name in ("pet", "spread"):
        expected = factor * getattr(plain, name).data.astype(np.float64)
        tolerance = 1e-5 * expected.max()
        np.testing.assert_allclose(getattr(other, name).data, expected, rtol=0, atol=tolerance)


def test_unit_of_the_mr_does_not_matter(tiny_bundle: Bundle) -> None:
    scaled = mr().with_data(mr().data * 1000)
    result = restored(tiny_bundle, mr=scaled).pet.data
    np.testing.assert_allclose(result, restored(tiny_bundle).pet.data, rtol=1e-4, atol=0.1)


def test_inside_the_field_the_scan_is_restored(tiny_bundle: Bundle) -> None:
    result = restored(tiny_bundle)
    warm = inside(pet().data) > 0
    assert (inside(result.pet.data) != inside(pet().data))[warm].mean() > 0.99
    assert result.restored_slices == 3


def test_outside_the_models_field_low_dose_values_stay(tiny_bundle: Bundle) -> None:
    lpet = pet().with_data(pet().data + 100)
    result = restored(tiny_bundle, lpet, sampler=SEVERAL)
    outside = np.ones(SHAPE, dtype=bool)
    outside[2:-2, 4:-4] = False
    assert np.array_equal(result.pet.data[outside], lpet.data[outside])
    assert not result.spread.data[outside].any()


def test_slices_without_activity_stay(tiny_bundle: Bundle) -> None:
    result = restored(tiny_bundle)
    for row in (0, -1):
        assert np.array_equal(result.pet.data[:, :, row], pet().data[:, :, row])


@pytest.mark.parametrize("place", ["beside the field", "a few voxels"])
def test_slice_with_too_little_activity_in_the_field_stays(tiny_bundle: Bundle, place: str) -> None:
    """Its intensity scale would be made up or next to nothing."""
    data = pet().data.copy()
    where = np.s_[:, :2, 2] if place == "beside the field" else np.s_[17:19, 19:21, 2]
    data[:, :, 2] = 0
    data[where] = 8000
    result = restored(tiny_bundle, pet().with_data(data))
    assert np.array_equal(result.pet.data[:, :, 2], data[:, :, 2])


def test_scan_without_activity_stays(tiny_bundle: Bundle) -> None:
    empty = pet().with_data(np.zeros(SHAPE))
    result = restored(tiny_bundle, empty)
    assert result.restored_slices == 0
    assert not result.pet.data.any()


def test_result_is_never_negative(tiny_bundle: Bundle) -> None:
    assert restored(tiny_bundle).pet.data.min() >= 0


def test_input_is_left_as_it_was(tiny_bundle: Bundle) -> None:
    lpet = pet()
    restored(tiny_bundle, lpet)
    assert np.array_equal(lpet.data, pet().data)


# --- noise and batches ---------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_does_not_matter(tiny_bundle: Bundle, batch_size: int) -> None:
    plain = restored(tiny_bundle, sampler=SEVERAL)
    other = restored(tiny_bundle, sampler=SEVERAL, batch_size=batch_size)
    np.testing.assert_allclose(other.pet.data, plain.pet.data, rtol=0, atol=0.1)
    np.testing.assert_allclose(other.spread.data, plain.spread.data, rtol=0, atol=0.1)


def test_result_is_a_function_of_the_seed(tiny_bundle: Bundle) -> None:
    first, again, other = (restored(tiny_bundle, seed=seed).pet.data for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_spread_is_zero_for_one_sample_only(tiny_bundle: Bundle) -> None:
    assert not restored(tiny_bundle).spread.data.any()
    assert restored(tiny_bundle, sampler=SEVERAL).spread.data.any()


def test_progress_counts_the_slices_to_restore(tiny_bundle: Bundle) -> None:
    calls: list[tuple[int, int]] = []
    restored(tiny_bundle, batch_size=2, on_slice=lambda *call: calls.append(call))
    assert calls == [(2, 3), (3, 3)]


def test_mr_that_lies_beside_the_head_is_refused(tiny_bundle: Bundle) -> None:
    elsewhere = mr().affine.copy()
    elsewhere[:3, 3] += 500
    with pytest.raises(DataError, match=r"MR covers 0 % of the head.*register it to the PET"):
        restored(tiny_bundle, mr=Volume(mr().data, elsewhere))


# --- other models --------------------------------------------------------------------------


def bundle_of(system: str, tmp_path: Path) -> Bundle:
    """Fresh weights of a comparison system."""
    config = one_of(AnyModelConfig, to_dict(thin_config(system)))
    provenance = Provenance(
        domain="toy", strategy="pretrain", iterations=0, seed=0, data="none", voxel_mm=2.0
    )
    return save_bundle(tmp_path / system, config, build_model(config, 0).state_dict(), provenance)


def test_a_comparison_system_restores_a_scan(tmp_path: Path) -> None:
    """An untrained M-UNet has a zero head: what it returns is its input."""
    done = restored(bundle_of("m-unet", tmp_path))
    assert done.restored_slices == 3
    np.testing.assert_allclose(inside(done.pet.data), inside(pet().data), rtol=1e-3, atol=1)


def test_samples_are_for_models_that_draw_some(tmp_path: Path) -> None:
    several = restored(bundle_of("csrd", tmp_path), num_samples=2)
    assert several.spread.data.max() > 0
    with pytest.raises(ConfigError, match="m-unet gives one result per image"):
        restored(bundle_of("m-unet", tmp_path), num_samples=2)
