from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mfdiff_core.config import from_dict
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.data.facts import dataset_facts, differences, intensity_of, slice_figures
from mfdiff_core.data.manifest import Manifest, load_manifest
from mfdiff_core.errors import DataError

Array = npt.NDArray[Any]


def slices(noise: float = 0.2, radius: float = 14.0, seed: int = 0) -> Array:
    """Noisy discs of mean 0.6."""
    row, column = np.mgrid[:40, :40] - 19.5
    disc = 0.6 * (row**2 + column**2 < radius**2)
    draws = np.random.default_rng(seed).standard_normal((6, 40, 40))
    return np.asarray(disc * (1 + noise * draws), dtype=np.float32).clip(0)


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_noise_is_the_standard_deviation_over_the_mean(noise: float) -> None:
    figures = slice_figures(slices(noise), 2.0)
    assert np.median(figures["noise"]) == pytest.approx(
        noise, rel=0.2
    )  # the rim of the disc adds to it


def test_smooth_structure_is_no_noise() -> None:
    row, _ = np.mgrid[:40, :40]
    ramp = (slices(0.0) * (1 + row / 40)).astype(np.float32)
    assert np.median(slice_figures(ramp, 2.0)["noise"]) < 0.01


def test_head_has_its_area_in_square_centimetres() -> None:
    area = np.median(slice_figures(slices(0.0), 2.0)["head_cm2"])
    assert area == pytest.approx(np.pi * 2.8**2, rel=0.03)


def test_empty_slices_are_left_out() -> None:
    images = slices()
    images[2:] = 0
    assert len(slice_figures(images, 2.0)["noise"]) == 2


def facts(**changes: Any) -> dict[str, Any]:
    figures = slice_figures(slices(), 2.0)
    ranges = {n: np.percentile(v, [2.5, 50, 97.5]).tolist() for n, v in figures.items()}
    return {"voxel_mm": 2.0, **ranges, **changes}


def test_scan_like_the_training_data_is_not_warned_of() -> None:
    assert differences(slices(seed=1), (2.0, 2.0), facts()) == ()


@pytest.mark.parametrize(
    ("scan", "voxel_mm", "words"),
    [
        (slices(0.6), 2.0, "noise"),
        (slices(0.02), 2.0, "noise"),
        (slices(radius=9.0), 2.0, "area of the head"),
        (slices(), 4.2, "voxels of 4.20 mm where the training data have 2.00 mm"),
        (slices() ** 4, 2.0, "percentile of intensity"),
    ],
)
def test_difference_is_told_with_both_figures(scan: Array, voxel_mm: float, words: str) -> None:
    found = differences(scan, (voxel_mm, voxel_mm), facts())
    assert any(words in each for each in found)
    assert all("where the training data have" in each for each in found)


def test_bundle_without_facts_finds_nothing() -> None:
    assert differences(slices(0.9), (9.0, 9.0), {}) == ()


def test_dataset_has_facts_that_its_manifest_carries(dataset: Dataset, tmp_path: Path) -> None:
    found = dataset_facts(dataset.shards)
    assert found["voxel_mm"] == 2.0
    low, middle, high = found["noise"]
    assert 0 < low <= middle <= high
    values = {**vars(dataset.manifest), "facts": found}
    from_dict(Manifest, values).save(tmp_path)
    assert load_manifest(tmp_path).facts == found


def test_facts_say_what_slices_were_divided_by(dataset: Dataset) -> None:
    assert intensity_of(dataset_facts(dataset.shards)) == intensity_of({}) == "lpet"
    assert intensity_of(dataset_facts(dataset.shards, "own_maximum")) == "own_maximum"
    with pytest.raises(DataError, match="intensity 'sum' is not one of lpet, own_maximum"):
        intensity_of({"intensity": "sum"})
