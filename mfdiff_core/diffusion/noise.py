"""Noise for restoration, keyed by slice: the same whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mfdiff_core.seeding import generator


class Noise(Protocol):
    """Where samplers take standard normal noise from."""

    def __call__(self, sample: int, step: int) -> Tensor:
        """Noise [B, 1, H, W] of sample ``sample`` at ``step``; T is the start of the chain."""
        ...


class NoiseSource:
    """Standard normal noise keyed by (seed, slice, sample, step).

    It is drawn on the CPU, so that every device restores from the same noise.

    Args:
        seed: seed of the restoration.
        slices: one key per slice of the batch, in its order.
        size: (H, W) of a slice.
        device: where the noise is needed.
    """

    def __init__(
        self,
        seed: int,
        slices: Sequence[str],
        size: tuple[int, int],
        device: str | torch.device = "cpu",
    ) -> None:
        self.seed = seed
        self.slices = tuple(slices)
        self.size = size
        self.device = torch.device(device)

    def __call__(self, sample: int, step: int) -> Tensor:
        """Noise [B, 1, H, W] of sample ``sample`` at ``step``."""
        drawn = [
            torch.randn((1, *self.size), generator=generator(self.seed, "noise", key, sample, step))
            for key in self.slices
        ]
        return torch.stack(drawn).to(self.device, non_blocking=True)
