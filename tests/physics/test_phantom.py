from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import rotate

from mfdiff_core.physics.domains import recipe
from mfdiff_core.physics.phantom import (
    FINE_MM,
    FINE_PX,
    Tissue,
    TissueValues,
    block_centre,
    block_mean,
    centred,
    turn,
    turned,
)


def values(number: float) -> TissueValues:
    return TissueValues(**{t.name.lower(): number for t in Tissue if t != Tissue.BACKGROUND})


def test_fine_grid_divides_both_voxels_of_the_scanner() -> None:
    for voxel_mm in (2.08626, 1.39084):
        assert voxel_mm / FINE_MM == pytest.approx(round(voxel_mm / FINE_MM), abs=1e-4)


def test_table_follows_the_order_of_the_classes() -> None:
    mr = recipe("phantom").contrast.mr
    table = mr.table()
    assert table[Tissue.BACKGROUND] == 0
    for tissue in Tissue:
        if tissue != Tissue.BACKGROUND:
            assert table[tissue] == getattr(mr, tissue.name.lower())


def test_block_mean_keeps_the_total() -> None:
    fine = np.random.default_rng(0).random((2, FINE_PX, FINE_PX), np.float32)
    coarse = block_mean(fine, 3, 128)
    assert coarse.shape == (2, 128, 128)
    assert np.allclose(coarse.sum((1, 2)) * 9, fine.sum((1, 2)), rtol=1e-5)


def test_padding_and_cutting_keep_the_centre() -> None:
    image = np.zeros((5, 8, 8))
    image[:, 3:5, 3:5] = 1
    for size in (4, 20):
        fitted = centred(image, size)
        middle = size // 2
        assert fitted.shape == (5, size, size)
        assert fitted[:, middle - 1 : middle + 1, middle - 1 : middle + 1].all()
        assert fitted.sum() == image.sum()


def test_block_centre_takes_codes_and_never_mixes_them() -> None:
    fine = np.random.default_rng(0).integers(0, 12, (FINE_PX, FINE_PX)).astype(np.uint8)
    coarse = block_centre(fine, 3, 128)
    assert np.array_equal(coarse, fine[1::3, 1::3])


def test_no_rotation_changes_nothing() -> None:
    image = np.random.default_rng(0).random((3, 9, 9))
    assert np.array_equal(turn(image, turned(9, 0.0)), image)


def test_rotation_turns_as_scipy_does() -> None:
    axis = np.arange(101) - 50
    image = np.exp(-((axis[:, None] + 20) ** 2 + (axis - 5) ** 2) / 200)
    expected = rotate(image, 12.0, reshape=False, order=1)
    assert abs(turn(image, turned(101, 12.0)) - expected).max() < 0.05


def test_rotation_brings_in_air() -> None:
    turned_ones = turn(np.ones((21, 21)), turned(21, 15.0))
    assert turned_ones[0, 0] == 0
    assert turned_ones[5:16, 5:16].all()


def test_negative_values_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        values(-1.0)
