from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from mfdiff_core.data.nifti import read_volume, write_volume
from mfdiff_core.data.volumes import (
    Volume,
    axial_affine,
    axial_slices,
    axial_zooms_mm,
    from_axial_slices,
    resample,
    resample_to,
)

Array = npt.NDArray[Any]

RAS = np.array([[2.0, 0, 0, -20], [0, 2.5, 0, -30], [0, 0, 3.0, 10], [0, 0, 0, 1]])
ORIENTATIONS = ["RAS", "LAS", "LPS", "RPI", "ASL", "RSA", "PLI"]


def brain(shape: tuple[int, int, int] = (10, 12, 8)) -> Array:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def oriented(codes: str) -> Volume:
    """The same brain in space with its voxels stored in another order."""
    image = nib.Nifti1Image(brain(), RAS)
    wanted = nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(RAS), wanted))
    return Volume(np.asarray(turned.dataobj, dtype=np.float32), turned.affine)


def oblique() -> Volume:
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Volume(brain(), turn @ RAS)


# --- space ---------------------------------------------------------------------------------


def test_resampling_to_the_own_grid_copies_bit_for_bit() -> None:
    volume = oblique()
    shifted = volume.affine.copy()
    shifted[:3, 3] += 1e-6
    for grid in (volume, Volume(volume.data, shifted)):
        result = resample_to(volume, grid)
        assert np.array_equal(result.data, volume.data)
        assert result.data is not volume.data


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_orientation_comes_from_the_affine(codes: str) -> None:
    resampled = resample_to(oriented(codes), oriented("RAS"))
    assert resampled.data == pytest.approx(brain(), abs=1e-6)
    assert np.array_equal(resampled.affine, RAS)


def test_resampling_follows_space_not_indices() -> None:
    x, y, z = np.meshgrid(*map(np.arange, (20, 24, 18)), indexing="ij")
    ramp = Volume((2 * x + 3 * y - z).astype(np.float32), np.diag([1.5, 1.5, 1.5, 1.0]))
    grid = oblique()
    inside = Volume(np.zeros((3, 3, 3), np.float32), grid.affine.copy())
    inside.affine[:3, 3] = [10, 12, 9]
    inside.affine[:3, :3] /= 2
    result = resample_to(ramp, inside).data
    places = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1)
    world = places @ inside.affine[:3, :3].T + inside.affine[:3, 3]
    assert result == pytest.approx(world @ np.array([2, 3, -1]) / 1.5, abs=1e-4)


def test_outside_the_field_of_view_is_zero() -> None:
    far = RAS.copy()
    far[0, 3] += 1000
    assert not resample_to(Volume(brain(), far), Volume(brain(), RAS)).data.any()


def test_labels_stay_labels_at_order_zero() -> None:
    labels = (brain() * 4).round().astype(np.float32)
    result = resample_to(Volume(labels, RAS), oblique(), order=0)
    assert set(np.unique(result.data)) <= {0, 1, 2, 3, 4}


def test_grids_differ_by_shape_or_by_a_flip() -> None:
    flipped = RAS @ np.diag([-1.0, 1, 1, 1])
    assert not Volume(brain(), RAS).same_grid(Volume(brain(), flipped))
    assert not Volume(brain(), RAS).same_grid(Volume(brain((9, 12, 8)), RAS))


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="grid is"):
        Volume(brain(), RAS).with_data(brain()[1:])


# --- axial slices --------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_nose_is_up_right_is_right_and_head_is_last(codes: str) -> None:
    slices = axial_slices(oriented(codes))
    anterior_right_top = brain()[-1, -1, -1]
    assert slices.shape == (8, 12, 10)
    assert slices[-1, 0, -1] == anterior_right_top
    assert np.array_equal(slices, axial_slices(oriented("RAS")))
    assert axial_zooms_mm(oriented(codes)) == pytest.approx((3.0, 2.5, 2.0))


@pytest.mark.parametrize("codes", [*ORIENTATIONS, "oblique"])
def test_processed_slices_come_back_to_their_voxels(tmp_path: Path, codes: str) -> None:
    volume = oblique() if codes == "oblique" else oriented(codes)
    write_volume(tmp_path / "in.nii.gz", volume)
    pet = read_volume(tmp_path / "in.nii.gz", "pet")
    write_volume(tmp_path / "out.nii.gz", from_axial_slices(2 * axial_slices(pet), pet))
    restored = read_volume(tmp_path / "out.nii.gz", "pet")
    assert np.array_equal(restored.data, 2 * volume.data)
    assert np.array_equal(restored.affine, pet.affine)


def test_axial_slices_are_a_view() -> None:
    volume = oriented("PIR")
    assert np.shares_memory(axial_slices(volume), volume.data)


@pytest.mark.parametrize("codes", [*ORIENTATIONS, "oblique"])
def test_affine_of_the_slices_says_where_each_pixel_lies(codes: str) -> None:
    volume = oblique() if codes == "oblique" else oriented(codes)
    slices = axial_slices(volume)
    again = resample(volume, axial_affine(volume), slices.shape)
    assert again == pytest.approx(slices, abs=1e-5)


def test_coarse_grids_average_instead_of_picking_single_voxels() -> None:
    """Stripes of one voxel are grey to a grid of four, whatever voxels it happens to hit."""
    stripes = np.zeros((40, 40, 40), dtype=np.float32)
    stripes[::2] = 1
    coarse = np.diag([4.0, 4.0, 4.0, 1.0])
    values = resample(Volume(stripes, np.eye(4)), coarse, (9, 9, 9))[2:-2, 2:-2, 2:-2]
    assert values == pytest.approx(0.5, abs=0.05)


def test_moved_volume_lies_where_the_motion_says() -> None:
    motion = np.eye(4)
    motion[:3, 3] = [4, 0, 0]
    moved = oriented("RAS").moved(motion)
    assert np.array_equal(moved.affine[:3, 3], RAS[:3, 3] + [4, 0, 0])
    assert resample_to(moved, oriented("RAS")).data[2:] == pytest.approx(brain()[:-2], abs=1e-6)
