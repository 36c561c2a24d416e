"""Batches as a pure function of (seed, step): the data position of a run is its step number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.seeding import generator, rng

Augmentation = Literal["none", "flip", "affine"]
MAX_ROTATION_DEG = 15.0
MAX_ZOOM = 0.05


class Batch(NamedTuple):
    """Images of one step, each [B, 1, H, W] in intensity units."""

    x_p: torch.Tensor
    x_m: torch.Tensor
    x_s: torch.Tensor


@dataclass(frozen=True)
class BatchStream:
    """Endless shuffled batches over ``slices``, with a share replayed from ``replayed``.

    Attributes:
        slices: what to train on, on the device where training runs.
        batch_size: slices per step over all workers.
        seed: fixes order and augmentation.
        augment: ``none``; ``flip`` left-right; ``affine`` adds rotation and zoom.
        replayed: slices of an earlier stage mixed in, for example phantoms.
        replay_share: expected share of replayed slices, 0 to 1.
    """

    slices: SliceSet
    batch_size: int
    seed: int
    augment: Augmentation = "none"
    replayed: SliceSet | None = None
    replay_share: float = 0.0

    def __call__(self, step: int) -> Batch:
        """The batch of step 0, 1, ..."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        rows = [_shuffled(len(self.slices), self.seed, "order", position) for position in positions]
        images = [getattr(self.slices, name)[rows] for name in Batch._fields]
        if self.replayed is not None and self.replay_share > 0:
            images = self._mix(images, step, list(positions))
        stacked = _augment(torch.stack(images), self.augment, self.seed, step)
        return Batch(*stacked)

    def _mix(
        self, images: list[torch.Tensor], step: int, positions: list[int]
    ) -> list[torch.Tensor]:
        """Replace a random subset of the batch by replayed slices."""
        assert self.replayed is not None
        draws = rng(self.seed, "replay", step).random(self.batch_size)
        old = torch.from_numpy(draws < self.replay_share).to(images[0].device)[:, None, None, None]
        rows = [_shuffled(len(self.replayed), self.seed, "replay-order", p) for p in positions]
        replayed = [getattr(self.replayed, name)[rows] for name in Batch._fields]
        return [torch.where(old, a, b) for a, b in zip(replayed, images, strict=True)]


def _shuffled(length: int, seed: int, purpose: str, position: int) -> int:
    """Row at ``position`` of an endless sequence of permutations of ``range(length)``."""
    epoch, place = divmod(position, length)
    return _permutation(length, seed, purpose, epoch)[place]


@lru_cache(maxsize=16)
def _permutation(length: int, seed: int, purpose: str, epoch: int) -> list[int]:
    order: list[int] = rng(seed, purpose, epoch).permutation(length).tolist()
    return order


def _augment(images: torch.Tensor, kind: Augmentation, seed: int, step: int) -> torch.Tensor:
    """Transform all images of a triplet alike; ``images`` is [3, B, 1, H, W]."""
    if kind == "none":
        return images
    batch_size = images.shape[1]
    draws = torch.rand(3, batch_size, generator=generator(seed, "augment", step))
    flip = (draws[0] < 0.5).to(images.device)[None, :, None, None, None]
    images = torch.where(flip, images.flip(-1), images)
    return images if kind == "flip" else _rotate_and_zoom(images, draws[1:] * 2 - 1)


def _rotate_and_zoom(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Rotate and zoom by ``draws`` in [-1, 1] times the limits, bilinear, zeros outside."""
    angle = torch.deg2rad(draws[0] * MAX_ROTATION_DEG)
    zoom = 1 + draws[1] * MAX_ZOOM
    rows = [zoom * angle.cos(), -zoom * angle.sin(), 0 * zoom]
    columns = [zoom * angle.sin(), zoom * angle.cos(), 0 * zoom]
    theta = torch.stack([torch.stack(rows, -1), torch.stack(columns, -1)], 1).to(images.device)
    triplets = images.transpose(0, 1)[:, :, 0]
    grid = torch.nn.functional.affine_grid(theta, list(triplets.shape), align_corners=False)
    turned = torch.nn.functional.grid_sample(triplets, grid, align_corners=False)
    return turned.transpose(0, 1)[:, :, None]
