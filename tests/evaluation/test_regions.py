from __future__ import annotations

import math

import numpy as np
import pytest

from mfdiff_core.evaluation.regions import (
    activity_ratio,
    connected_parts,
    region_bias,
    simulated_regions,
)

TISSUE = np.array([[[0, 2, 2, 3], [3, 3, 2, 2]]], dtype=np.uint8)
LESIONS = np.array([[[0, 0, 1, 0], [2, 0, 3, 0]]], dtype=np.uint8)


def test_tissue_regions_leave_pet_lesions_out() -> None:
    regions = simulated_regions(TISSUE, LESIONS)
    assert {name: int(mask.sum()) for name, mask in regions.items()} == {
        "grey matter": 2,
        "white matter": 3,
        "PET-only lesion": 1,
        "PET and MR lesion": 1,
        "MR-only lesion": 1,
    }


def test_scaled_image_has_the_same_bias_everywhere() -> None:
    x_s = np.linspace(1, 8, 8).reshape(TISSUE.shape)
    biases = region_bias(1.1 * x_s, x_s, simulated_regions(TISSUE, LESIONS))
    assert len(biases) == 5
    for bias in biases:
        assert bias.mean_bias == pytest.approx(0.1)
        assert bias.maximum_bias == pytest.approx(0.1)
    assert activity_ratio(1.1 * x_s, x_s) == pytest.approx(1.1)


def test_bias_is_that_of_the_region_alone() -> None:
    x_s = np.full(TISSUE.shape, 4.0)
    restored = np.where(LESIONS == 1, 3.0, x_s)
    biases = {b.region: b for b in region_bias(restored, x_s, simulated_regions(TISSUE, LESIONS))}
    assert biases["PET-only lesion"].mean_bias == pytest.approx(-0.25)
    assert biases["grey matter"].mean_bias == 0
    assert biases["grey matter"].num_voxels == 2


def test_maximum_and_mean_are_told_apart() -> None:
    x_s = np.array([[1.0, 3.0]])
    (bias,) = region_bias(np.array([[0.0, 4.0]]), x_s, {"all": np.ones((1, 2), dtype=bool)})
    assert bias.mean_bias == 0
    assert bias.maximum_bias == pytest.approx(1 / 3)


def test_regions_without_voxels_are_left_out() -> None:
    x_s = np.ones((1, 2))
    assert region_bias(x_s, x_s, {"none": np.zeros((1, 2), dtype=bool)}) == []


def test_bias_of_a_region_without_activity_is_not_a_number() -> None:
    (bias,) = region_bias(np.ones((1, 2)), np.zeros((1, 2)), {"csf": np.ones((1, 2), dtype=bool)})
    assert math.isnan(bias.mean_bias)
    assert math.isnan(activity_ratio(np.ones((1, 2)), np.zeros((1, 2))))


def test_lesions_are_connected_within_a_slice_but_not_across() -> None:
    mask = np.zeros((2, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True  # touch at a corner
    mask[1, 0, 0] = True  # same place, next slice
    mask[0, 3, 3] = True
    found = [(row, int(part.sum())) for row, part in connected_parts(mask)]
    assert found == [(0, 2), (0, 1), (1, 1)]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        region_bias(np.ones((1, 2)), np.ones((2, 1)), {})
