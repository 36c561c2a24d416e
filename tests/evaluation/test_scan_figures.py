from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib.image
import numpy as np
import pytest

from mfdiff_core.data.volumes import Volume
from mfdiff_core.evaluation.scan_figures import (
    Column,
    _around_head,
    _views,
    frames_figure,
    orthogonal_figure,
    overlay_figure,
)

MakeHead = Callable[..., Volume]


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(matplotlib.image.imread(io.BytesIO(png)))


def test_nose_is_up_and_right_is_right_whatever_the_storage_order() -> None:
    """A dot at the right front top shows in the upper right, and to the left from the side."""
    data = np.full((40, 40, 40), 0.5, dtype=np.float32)
    data[30:33, 30:33, 30:33] = 9
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    flipped = np.diag([-4.0, 4.0, 4.0, 1.0])
    flipped[0, 3] = 39 * 4
    dot = np.diag([1.5, 1.5, 1.5, 1.0])
    dot[:3, 3] = 31 * 4 - 80 * 1.5  # the middle planes cut the dot
    for volume in (Volume(data, affine), Volume(data[::-1], flipped)):
        centred = _views(volume, dot)
        assert all(view[80, 80] > 1 for view in centred)
    above = dot.copy()
    above[0, 3] -= 30
    row, column = np.unravel_index(_views(Volume(data, affine), above)[0].argmax(), (160, 160))
    assert column > 85
    assert 70 < row < 90
    before = dot.copy()
    before[1, 3] -= 30
    axial, _, sagittal = _views(Volume(data, affine), before)
    assert np.unravel_index(axial.argmax(), axial.shape)[0] < 75
    assert np.unravel_index(sagittal.argmax(), sagittal.shape)[1] < 75


def test_cube_lies_about_the_head(make_head: MakeHead) -> None:
    affine = _around_head(make_head("pet"))
    assert affine[:3, 3] + 1.5 * 79.5 == pytest.approx(0, abs=6)


def test_columns_and_rows_are_drawn(make_head: MakeHead) -> None:
    pet, mr = make_head("pet"), make_head("mr")
    columns = [Column("LPET", pet, "pet", "Bq/mL"), Column("T1", mr, "mr")]
    two = pixels(orthogonal_figure(columns, pet))
    three = pixels(orthogonal_figure([*columns, Column("diff", pet, "difference")], pet))
    assert three.shape[1] > 1.3 * two.shape[1]
    assert two.std() > 0.1


def test_empty_images_are_drawn_too(make_head: MakeHead) -> None:
    pet = make_head("pet")
    nothing = pet.with_data(0 * pet.data)
    pixels(orthogonal_figure([Column("SD", nothing, "spread")], pet))
    pixels(overlay_figure(pet, {"T1": nothing}))


def test_overlay_has_a_row_per_mr(make_head: MakeHead) -> None:
    pet, mr = make_head("pet"), make_head("mr")
    one, two = (pixels(overlay_figure(pet, dict.fromkeys(n, mr))) for n in (("a",), ("a", "b")))
    assert two.shape[0] > 1.7 * one.shape[0]


def test_frames_are_bars_in_time() -> None:
    picture = pixels(frames_figure([(0, 60), (120, 180)], {"SPET": [(120, 180)]}))
    assert picture.shape[1] > picture.shape[0]


def test_noise_of_a_low_dose_pet_draws_no_lines_of_its_own(make_head: MakeHead) -> None:
    pet, mr = make_head("pet"), make_head("mr")
    noise = np.random.default_rng(0).standard_normal(pet.data.shape)
    noisy = pet.with_data((pet.data * (1 + 0.6 * noise)).clip(0).astype(np.float32))
    drawn = []
    for volume in (pet, noisy):
        image = pixels(overlay_figure(volume, {"T1": mr}))
        drawn.append(np.count_nonzero(image[..., 0] - image[..., 2] > 0.3))  # orange, not grey
    assert drawn[0] > 500
    assert drawn[1] < 1.3 * drawn[0]
