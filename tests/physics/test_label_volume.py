from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from mfdiff_core.errors import DataError
from mfdiff_core.physics.label_volume import LabelVolume, check_label_map, read_label_volume
from mfdiff_core.physics.phantom import FINE_MM, FINE_PX, Anatomy, Tissue

LABEL_MAP = ((3, "white"), (7, "vessels"), (42, "grey"))


def ball(shape: tuple[int, int, int], radius: float) -> NDArray[np.bool_]:
    grid = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    return np.asarray((grid**2).sum(0) <= radius**2)


def segmentation() -> NDArray[np.int16]:
    """Brain of two shells on a (x, y, z) grid of 2 mm, marked on its right front upper side."""
    values = np.where(ball((80, 90, 70), 30), 42, 0)
    values[ball((80, 90, 70), 20)] = 3
    values[50:53, 55:58, 39:42] = 7
    return values.astype(np.int16)


def saved(folder: Path, values: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    path = folder / "labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def anatomy(path: Path, height_mm: float = 10.0) -> Anatomy:
    return read_label_volume(path, LABEL_MAP).anatomy(np.array([height_mm], np.float32))


def test_volume_keeps_its_size(tmp_path: Path) -> None:
    image = anatomy(saved(tmp_path, segmentation(), np.diag([2.0, 2, 2, 1]))).labels[0]
    white = np.argwhere(image == Tissue.WHITE) * FINE_MM
    # the brain's top lies 70 mm up and its centre 60 mm below: the cut at 10 mm is its largest
    assert np.ptp(white, axis=0) == pytest.approx([80, 80], abs=3)


def test_orientation_of_the_file_does_not_matter(tmp_path: Path) -> None:
    values = segmentation()
    straight = anatomy(saved(tmp_path, values, np.diag([2.0, 2, 2, 1])))
    read_label_volume.cache_clear()
    flipped = anatomy(saved(tmp_path, values[::-1], np.diag([-2.0, 2, 2, 1])))
    assert np.array_equal(straight.labels, flipped.labels)


def test_right_is_right_and_front_is_up(tmp_path: Path) -> None:
    path = saved(tmp_path, segmentation(), np.diag([2.0, 2, 2, 1]))
    marked = anatomy(path, 10.0 + 2 * (40 - 34.5)).labels[0] == Tissue.VESSELS
    row, column = np.argwhere(marked).mean(0) - (marked.shape[0] - 1) / 2
    assert column * FINE_MM == pytest.approx(2 * (51 - 39.5), abs=1)
    assert row * FINE_MM == pytest.approx(-2 * (56 - 44.5), abs=1)


def test_a_brain_alone_gets_skull_and_skin(tmp_path: Path) -> None:
    image = anatomy(saved(tmp_path, segmentation(), np.diag([2.0, 2, 2, 1]))).labels[0]
    middle = image[len(image) // 2]
    order = [int(middle[0]), *(int(b) for a, b in pairwise(middle) if a != b)]
    half = [Tissue.BACKGROUND, Tissue.SKIN, Tissue.SKULL, Tissue.CSF, Tissue.GREY]
    assert order == [*half, Tissue.WHITE, *half[::-1]]


def test_lesion_places_lie_in_white_matter() -> None:
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[20:30, 40:50, 5:25] = Tissue.WHITE  # low, to the front, on the left
    heights = np.arange(-10, 11, dtype=np.float32)
    found = LabelVolume(labels, (1.0, 1.0, 1.0)).anatomy(heights)
    assert len(found.white_mm) > 10
    for z, row, column in found.white_mm[abs(found.white_mm[:, 0]) <= 9]:
        r, c = (round(v / FINE_MM + (FINE_PX - 1) / 2) for v in (row, column))
        assert found.labels[np.abs(heights - z).argmin(), r, c] == Tissue.WHITE


def test_outside_the_volume_is_air() -> None:
    volume = LabelVolume(np.full((4, 4, 4), Tissue.WHITE, np.uint8), (1.0, 1.0, 1.0))
    labels = volume.anatomy(np.array([0.0, 50.0], np.float32)).labels
    assert labels[0].any()
    assert (labels[0] == 0).mean() > 0.99
    assert not labels[1].any()


def test_unusable_files_are_refused_with_the_file_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"labels\.nii\.gz: cannot be read as NIfTI"):
        read_label_volume(path, LABEL_MAP)
    values = np.zeros((4, 4, 4, 2), np.int16)
    with pytest.raises(DataError, match="three dimensions"):
        read_label_volume(saved(tmp_path, values, np.eye(4)), LABEL_MAP)
    with pytest.raises(DataError, match="no grey or no white matter"):
        read_label_volume(saved(tmp_path, values[..., 0], np.eye(4)), LABEL_MAP)


def test_values_that_the_map_does_not_name_are_refused_with_the_file_named(
    tmp_path: Path,
) -> None:
    values = segmentation()
    values[40, 45, 35] = 11
    path = saved(tmp_path, values, np.diag([2.0, 2, 2, 1]))
    with pytest.raises(DataError, match=r"labels\.nii\.gz: values 11 are not in the label map"):
        read_label_volume(path, LABEL_MAP)
    as_air = read_label_volume(path, (*LABEL_MAP, (11, "background")))
    assert (as_air.labels == Tissue.WHITE).any()


def test_unknown_tissues_are_refused() -> None:
    assert check_label_map({3: "white", 1: "csf"}) == ((1, "csf"), (3, "white"))
    with pytest.raises(ValueError, match="unknown tissues bone; known are background, csf"):
        check_label_map({1: "bone"})
