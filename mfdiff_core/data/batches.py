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
    """Images of one step, each [B, 1, H, W] in intensity units.

    ``keys`` name the images as they are after augmentation, equal keys being equal images; empty
    where augmentation draws them anew each time. ``sinograms`` [B, 2, views, bins] are y and AN,
    where slices carry them.
    """

    x_p: torch.Tensor
    x_m: torch.Tensor
    x_s: torch.Tensor
    keys: tuple[str, ...] = ()
    sinograms: torch.Tensor | None = None

    @property
    def images(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x_p, x_m and x_s."""
        return self.x_p, self.x_m, self.x_s

    def chunk(self, count: int, place: int) -> Batch:
        """Part ``place`` of ``count`` equal parts."""
        size = len(self.x_s) // count
        rows = slice(place * size, (place + 1) * size)
        x_p, x_m, x_s = (image[rows] for image in self.images)
        sinograms = None if self.sinograms is None else self.sinograms[rows]
        return Batch(x_p, x_m, x_s, self.keys[rows], sinograms)


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
        device: where batches are wanted, if the slices themselves did not fit there.
    """

    slices: SliceSet
    batch_size: int
    seed: int
    augment: Augmentation = "none"
    replayed: SliceSet | None = None
    replay_share: float = 0.0
    device: torch.device | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of step 0, 1, ..."""
        rows = self._rows(self.slices, "order", step)
        images = [image[rows] for image in _images(self.slices)]
        keys = [f"new:{row}" for row in rows]
        if self.replayed is not None and self.replay_share > 0:
            images, keys = self._mix(self.replayed, images, keys, step)
        stacked = torch.stack(images).to(self.device or images[0].device, non_blocking=True)
        draws = torch.rand(3, self.batch_size, generator=generator(self.seed, "augment", step))
        x_p, x_m, x_s = _augment(stacked, self.augment, draws)
        return Batch(x_p, x_m, x_s, _keys(keys, self.augment, draws), self._sinograms(rows, draws))

    def _sinograms(self, rows: list[int], draws: torch.Tensor) -> torch.Tensor | None:
        """Those of slices as augmented; none where other slices are mixed in, or are turned."""
        held = self.slices.sinograms
        if held is None or self.augment == "affine" or self.replayed is not None:
            return None
        chosen = held[rows].to(self.device or held.device, non_blocking=True)
        if self.augment == "none":
            return chosen
        flip = _flips(draws).to(chosen.device)[:, None, None, None]
        return torch.where(flip, mirrored(chosen), chosen)

    def _rows(self, slices: SliceSet, purpose: str, step: int) -> list[int]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [_shuffled(len(slices), self.seed, purpose, position) for position in positions]

    def _mix(
        self, replayed: SliceSet, images: list[torch.Tensor], keys: list[str], step: int
    ) -> tuple[list[torch.Tensor], list[str]]:
        """Replace a random subset of the batch by replayed slices."""
        draws = rng(self.seed, "replay", step).random(self.batch_size) < self.replay_share
        old = torch.from_numpy(draws).to(images[0].device)[:, None, None, None]
        rows = self._rows(replayed, "replay-order", step)
        pairs = zip(_images(replayed), images, strict=True)
        mixed = [torch.where(old, theirs[rows].to(ours.device), ours) for theirs, ours in pairs]
        return mixed, [
            f"old:{row}" if is_old else key
            for row, is_old, key in zip(rows, draws, keys, strict=True)
        ]


def _images(slices: SliceSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return slices.x_p, slices.x_m, slices.x_s


def _shuffled(length: int, seed: int, purpose: str, position: int) -> int:
    """Row at ``position`` of an endless sequence of permutations of ``range(length)``."""
    epoch, place = divmod(position, length)
    return _permutation(length, seed, purpose, epoch)[place]


@lru_cache(maxsize=16)
def _permutation(length: int, seed: int, purpose: str, epoch: int) -> list[int]:
    order: list[int] = rng(seed, purpose, epoch).permutation(length).tolist()
    return order


def _flips(draws: torch.Tensor) -> torch.Tensor:
    return draws[0] < 0.5


def mirrored(sinogram: torch.Tensor) -> torch.Tensor:
    """Sinogram [..., views, bins] of the image flipped left to right, on the same lines.

    Flipping turns the line of angle a at s into that of pi - a at s, and of 0 at s into 0 at -s.
    """
    first, others = sinogram[..., :1, :].flip(-1), sinogram[..., 1:, :].flip(-2)
    return torch.cat((first, others), dim=-2)


def _augment(images: torch.Tensor, kind: Augmentation, draws: torch.Tensor) -> torch.Tensor:
    """Transform all images of a triplet alike; ``images`` is [3, B, 1, H, W], draws [3, B]."""
    if kind == "none":
        return images
    flip = _flips(draws).to(images.device)[None, :, None, None, None]
    images = torch.where(flip, images.flip(-1), images)
    return images if kind == "flip" else _rotate_and_zoom(images, draws[1:] * 2 - 1)


def _keys(keys: list[str], kind: Augmentation, draws: torch.Tensor) -> tuple[str, ...]:
    """Names of the images after augmentation; none where no image occurs twice."""
    if kind == "affine":
        return ()
    if kind == "none":
        return tuple(keys)
    flips = _flips(draws).tolist()
    return tuple(f"{key}:flipped" if flip else key for key, flip in zip(keys, flips, strict=True))


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
