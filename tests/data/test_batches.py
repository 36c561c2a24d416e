from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mfdiff_core.data.batches import Augmentation, Batch, BatchStream
from mfdiff_core.data.dataset import Dataset, SliceSet

AUGMENTATIONS: tuple[Augmentation, ...] = ("none", "flip", "affine")


@pytest.fixture
def slices(dataset: Dataset) -> SliceSet:
    """Twelve slices."""
    return dataset.part("train")


def numbered(slices: SliceSet, first: int = 0) -> SliceSet:
    """The set with every pixel of slice i equal to first + i."""
    values = torch.arange(first, first + len(slices)).float()[:, None, None, None]
    images = values.expand_as(slices.x_p).clone()
    return replace(slices, x_p=images, x_m=images, x_s=images)


def drawn_rows(stream: BatchStream, steps: range) -> list[int]:
    """Numbers of the slices of a stream over a `numbered` set, in order."""
    return [int(value) for step in steps for value in stream(step).x_p[:, 0, 0, 0]]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_batch_is_a_function_of_seed_and_step(slices: SliceSet, augment: Augmentation) -> None:
    first = BatchStream(slices, 5, 0, augment, slices, 0.5)
    in_order = [first(step) for step in range(8)]
    torch.manual_seed(99)
    second = BatchStream(slices, 5, 0, augment, slices, 0.5)
    assert all(same(second(step), in_order[step]) for step in (7, 0, 3, 3, 5))


def test_other_seed_gives_another_order(slices: SliceSet) -> None:
    steps = range(3)
    rows = [drawn_rows(BatchStream(numbered(slices), 4, seed), steps) for seed in (0, 1)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 12, 30])
def test_each_epoch_sees_each_slice_once(slices: SliceSet, batch_size: int) -> None:
    stream = BatchStream(numbered(slices), batch_size, seed=0)
    rows = drawn_rows(stream, range(60 // batch_size))
    assert len(rows) == 60  # five epochs of twelve
    for start in range(0, 60, 12):
        assert sorted(rows[start : start + 12]) == list(range(12))


def test_epochs_have_different_orders(slices: SliceSet) -> None:
    rows = drawn_rows(BatchStream(numbered(slices), 12, seed=0), range(5))
    assert len({tuple(rows[start : start + 12]) for start in range(0, 60, 12)}) == 5


def test_order_does_not_depend_on_the_batch_size(slices: SliceSet) -> None:
    streams = [BatchStream(numbered(slices), size, seed=0) for size in (4, 12)]
    assert drawn_rows(streams[0], range(6)) == drawn_rows(streams[1], range(2))


# --- replay --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_share_of_replayed_slices_is_as_asked(slices: SliceSet, share: float) -> None:
    stream = BatchStream(numbered(slices), 8, 0, "none", numbered(slices, 100), share)
    rows = drawn_rows(stream, range(125))
    # Of 1000 draws; four standard deviations.
    tolerance = 4 * (share * (1 - share) / 1000) ** 0.5
    assert sum(row >= 100 for row in rows) / 1000 == pytest.approx(share, abs=tolerance)


@pytest.mark.parametrize(("share", "expected"), [(0.0, set()), (1.0, set(range(100, 112)))])
def test_share_of_nothing_and_of_everything_is_exact(
    slices: SliceSet, share: float, expected: set[int]
) -> None:
    stream = BatchStream(numbered(slices), 12, 0, "none", numbered(slices, 100), share)
    assert {row for row in drawn_rows(stream, range(3)) if row >= 100} == expected


def test_replay_draws_all_earlier_slices_alike(slices: SliceSet) -> None:
    stream = BatchStream(numbered(slices), 12, 0, "none", numbered(slices, 100), 0.5)
    counts = Counter(row for row in drawn_rows(stream, range(50)) if row >= 100)
    assert len(counts) == 12
    assert max(counts.values()) < 2 * min(counts.values())


def test_images_of_a_replayed_triplet_stay_together(slices: SliceSet) -> None:
    batch = BatchStream(numbered(slices), 12, 0, "none", numbered(slices, 100), 0.5)(0)
    assert torch.equal(batch.x_p, batch.x_m)
    assert torch.equal(batch.x_p, batch.x_s)


# --- augmentation --------------------------------------------------------------------------


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_images_of_a_triplet_are_moved_alike(slices: SliceSet, augment: Augmentation) -> None:
    same_images = replace(slices, x_m=slices.x_p, x_s=slices.x_p)
    batch = BatchStream(same_images, 12, 0, augment)(0)
    assert torch.equal(batch.x_p, batch.x_m)
    assert torch.equal(batch.x_p, batch.x_s)


def test_flip_turns_about_half_of_the_slices_left_to_right(slices: SliceSet) -> None:
    plain, flipped = BatchStream(slices, 120, 0), BatchStream(slices, 120, 0, "flip")
    num_flipped = 0
    for x, y in zip(plain(0).x_s, flipped(0).x_s, strict=True):
        assert torch.equal(y, x) or torch.equal(y, x.flip(-1))
        num_flipped += not torch.equal(y, x)
    assert 38 <= num_flipped <= 82  # 60 and four standard deviations


def test_affine_keeps_shape_and_values_finite(slices: SliceSet) -> None:
    batch = BatchStream(slices, 12, 0, "affine")(0)
    assert all(images.shape == (12, 1, 32, 32) for images in batch)
    assert all(bool(torch.isfinite(images).all()) for images in batch)
    assert not same(batch, BatchStream(slices, 12, 0, "flip")(0))


def test_affine_keeps_activity_within_the_zoom(slices: SliceSet) -> None:
    moved = BatchStream(slices, 60, 0, "affine")(0).x_s.sum((1, 2, 3))
    plain = BatchStream(slices, 60, 0)(0).x_s.sum((1, 2, 3))
    # An area changes by the square of the 5 % zoom at most; a pixel's rounding aside.
    assert ((moved / plain - 1).abs() < 0.12).all()
