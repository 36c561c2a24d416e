from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mfdiff_core.data.batches import Augmentation, Batch, BatchStream, mirrored
from mfdiff_core.data.dataset import Dataset, SliceSet
from mfdiff_core.physics.projector import cached_projector
from tests.comparison.toy_systems import TOY

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
    images = zip(a.images, b.images, strict=True)
    return a.keys == b.keys and all(torch.equal(x, y) for x, y in images)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_batch_is_a_function_of_seed_and_step(slices: SliceSet, augment: Augmentation) -> None:
    first = BatchStream(slices, 5, 0, augment, slices, 0.5)
    in_order = [first(step) for step in range(8)]
    torch.manual_seed(99)
    second = BatchStream(slices, 5, 0, augment, slices, 0.5)
    assert all(same(second(step), in_order[step]) for step in (7, 0, 3, 3, 5))


def measured(slices: SliceSet) -> SliceSet:
    """The set with sinograms of its LPETs; as on the scanner's grid, one pixel is 2 mm."""
    columns = slices.x_p[:, 0].flatten(1).T.contiguous()
    y = cached_projector(TOY, 1).project(columns).permute(2, 0, 1)
    return replace(slices, sinograms=torch.stack((y, torch.ones_like(y)), dim=1))


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_sinograms_of_a_batch_are_those_of_its_images(
    slices: SliceSet, augment: Augmentation
) -> None:
    stream = BatchStream(measured(slices), 6, 0, augment)
    for step in range(3):
        batch = stream(step)
        part = batch.chunk(2, 1)
        assert part.sinograms is not None
        y = cached_projector(TOY, 1).project(part.x_p[:, 0].flatten(1).T.contiguous())
        torch.testing.assert_close(part.sinograms[:, 0], y.permute(2, 0, 1))
        assert (part.sinograms[:, 1] == 1).all()


def test_mirroring_twice_changes_nothing_and_once_does() -> None:
    y = torch.rand(2, 24, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mirrored(mirrored(y)), y)
    assert not torch.equal(mirrored(y), y)


def test_turned_images_have_no_sinograms(slices: SliceSet) -> None:
    assert BatchStream(measured(slices), 6, 0, "affine")(0).sinograms is None


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
    assert all(images.shape == (12, 1, 32, 32) for images in batch.images)
    assert all(bool(torch.isfinite(images).all()) for images in batch.images)
    assert not same(batch, BatchStream(slices, 12, 0, "flip")(0))


def test_affine_keeps_activity_within_the_zoom(slices: SliceSet) -> None:
    moved = BatchStream(slices, 60, 0, "affine")(0).x_s.sum((1, 2, 3))
    plain = BatchStream(slices, 60, 0)(0).x_s.sum((1, 2, 3))
    # An area changes by the square of the 5 % zoom at most; a pixel's rounding aside.
    assert ((moved / plain - 1).abs() < 0.12).all()


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_equal_keys_are_equal_images_and_others_are_not(
    slices: SliceSet, augment: Augmentation
) -> None:
    stream = BatchStream(slices, 6, 0, augment, slices.select(lambda i: i.slice_index < 2), 0.4)
    seen: dict[str, torch.Tensor] = {}
    for step in range(12):
        batch = stream(step)
        for row, key in enumerate(batch.keys):
            triplet = torch.stack(batch.images)[:, row]
            assert torch.equal(seen.setdefault(key, triplet), triplet)
    assert {key.partition(":")[0] for key in seen} == {"new", "old"}
    assert any(key.endswith(":flipped") for key in seen) == (augment == "flip")


def test_images_that_are_drawn_anew_have_no_keys(slices: SliceSet) -> None:
    assert BatchStream(slices, 4, 0, "affine")(0).keys == ()


def test_slices_stay_where_they_are_without_a_device_to_hold_them(slices: SliceSet) -> None:
    assert slices.resident(torch.device("cpu")) is slices
    assert slices.nbytes == len(slices) * 32 * 32 * (3 * 4 + 2)


@pytest.mark.gpu
def test_slices_that_do_not_fit_are_fetched_batch_by_batch(
    slices: SliceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    on_device = BatchStream(slices.resident(device), 4, 0, "flip", device=device)(0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (slices.nbytes, 10**9))
    assert slices.resident(device) is slices
    fetched = BatchStream(slices, 4, 0, "flip", device=device)(0)
    assert fetched.x_p.device.type == "cuda"
    assert same(fetched, on_device)
