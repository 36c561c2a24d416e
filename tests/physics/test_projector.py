from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mfdiff_core.physics.projector import Geometry, Projector, batches, joseph_matrix

GEOMETRY = Geometry(image_px=24, voxel_mm=2.0, num_bins=30, bin_mm=1.7, num_views=20)


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_subsets", [1, 3, 7])
def test_every_subset_is_adjoint_to_1e_10(num_subsets: int) -> None:
    projector = Projector(GEOMETRY, num_subsets, dtype=torch.float64)
    for k in range(num_subsets):
        x, y = random(24 * 24, 2), random(len(projector.views(k)) * 30, 2)
        left = (projector.forward(k, x) * y).sum()
        right = (x * projector.adjoint(k, y)).sum()
        assert abs(left - right) <= 1e-10 * abs(left)


@pytest.mark.parametrize("num_subsets", [10, 14, 21])
def test_subsets_partition_the_views_even_when_unequal(num_subsets: int) -> None:
    projector = Projector(
        Geometry(image_px=2, voxel_mm=1.0, num_bins=2, bin_mm=1.0, num_views=252), num_subsets
    )
    views = sorted(v for k in range(num_subsets) for v in projector.views(k))
    assert views == list(range(252))
    sizes = {len(projector.views(k)) for k in range(num_subsets)}
    assert max(sizes) - min(sizes) <= 1


def test_projection_does_not_depend_on_the_number_of_subsets() -> None:
    x = random(24 * 24, 2)
    whole = Projector(GEOMETRY, 1, dtype=torch.float64).project(x)
    parts = Projector(GEOMETRY, 7, dtype=torch.float64).project(x)
    assert torch.equal(whole, parts)


def test_reused_memory_changes_nothing() -> None:
    projector, x = Projector(GEOMETRY, 3, dtype=torch.float64), random(24 * 24, 2)
    y = projector.forward(1, x)
    assert torch.equal(projector.forward(1, x, torch.full_like(y, torch.nan)), y)
    back = projector.adjoint(1, y)
    assert torch.equal(projector.adjoint(1, y, torch.full_like(x, torch.nan)), back)


def test_split_undoes_the_interleaving() -> None:
    projector = Projector(GEOMETRY, 7, dtype=torch.float64)
    x = random(24 * 24, 2)
    rows = projector.split(projector.project(x))
    assert all(torch.equal(rows[k], projector.forward(k, x)) for k in range(7))


def test_line_integrals_of_a_disc_are_its_chords() -> None:
    geometry = Geometry(image_px=128, voxel_mm=1.0, num_bins=128, bin_mm=1.0, num_views=9)
    axis = np.arange(128) - 63.5
    # antialiased by the mean over 8 x 8 samples per pixel
    fine = (np.arange(1024) - 511.5) / 8
    disc = (fine[:, None] ** 2 + fine**2 <= 40**2).reshape(128, 8, 128, 8).mean((1, 3))
    sinogram = Projector(geometry, dtype=torch.float64).project(torch.from_numpy(disc).view(-1, 1))
    chords = 2 * np.sqrt(np.clip(40**2 - axis**2, 0, None))
    inside = abs(axis) < 37  # the rim's slope is infinite
    error = abs(sinogram[:, :, 0].numpy() - chords)[:, inside]
    assert error.max() < 0.02 * 80


def test_every_view_sees_the_whole_activity() -> None:
    geometry = Geometry(image_px=32, voxel_mm=2.0, num_bins=128, bin_mm=0.8, num_views=12)
    x = torch.zeros(32, 32, dtype=torch.float64)
    x[10:22, 8:20] = random(12, 12)
    views = Projector(geometry, dtype=torch.float64).project(x.view(-1, 1)).sum((1, 2)) * 0.8
    assert torch.allclose(views, x.sum() * 4.0, rtol=5e-3)


def test_first_view_sums_columns_and_middle_view_sums_rows() -> None:
    geometry = Geometry(image_px=8, voxel_mm=1.5, num_bins=8, bin_mm=1.5, num_views=4)
    x = random(8, 8)
    sinogram = Projector(geometry, dtype=torch.float64).project(x.view(-1, 1))[:, :, 0]
    assert torch.allclose(sinogram[0], 1.5 * x.sum(0))
    assert torch.allclose(sinogram[2], 1.5 * x.sum(1))


def test_weights_are_lengths() -> None:
    matrix = joseph_matrix(GEOMETRY, range(20))
    assert matrix.data.min() > 0
    assert matrix.data.max() <= 2.0 * math.sqrt(2) + 1e-12


def test_projection_does_not_depend_on_the_number_of_threads() -> None:
    geometry = Geometry(image_px=64, voxel_mm=2.0, num_bins=64, bin_mm=2.0, num_views=40)
    projector, x = Projector(geometry, 3), random(64 * 64, 16).float()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = projector.project(x)
            results.append((y, projector.adjoint(0, projector.split(y)[0])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("num_subsets", [0, 21])
def test_impossible_subsets_are_refused(num_subsets: int) -> None:
    with pytest.raises(ValueError, match="num_subsets must be 1 to 20"):
        Projector(GEOMETRY, num_subsets)


def test_empty_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="bin_mm=0"):
        Geometry(image_px=4, voxel_mm=1.0, num_bins=4, bin_mm=0, num_views=4)


def test_batches_cover_every_image_once() -> None:
    for count in (0, 1, 16, 50):
        images = [i for part in batches(count) for i in range(count)[part]]
        assert images == list(range(count))
