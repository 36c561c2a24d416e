"""Comparison systems thin enough for seconds, and what they are fed."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfdiff_core.comparison import System, SystemConfig, build_system, system_preset
from mfdiff_core.comparison.score_unet import ScoreUNetConfig
from mfdiff_core.diffusion.noise import NoiseSource
from mfdiff_core.physics.projector import Geometry

TOY = Geometry(image_px=32, voxel_mm=2.0, num_bins=40, bin_mm=2.0, num_views=24)
NAMES = (
    *("m-unet", "fb-sem", "ea-gan", "hi-net", "cncl", "csrd"),
    *("unet", "munet", "gmunet", "dmunet", "cmunet"),
)
ADVERSARIAL = ("ea-gan", "hi-net", "cncl")


class Slices(NamedTuple):
    """x_p, x_m, x_s [4, 1, 32, 32], measured data and factors [4, views, bins]."""

    x_p: Tensor
    x_m: Tensor
    x_s: Tensor
    y: Tensor
    factors: Tensor

    @property
    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x_p, self.x_m, self.x_s

    @property
    def scan(self) -> tuple[Tensor, Tensor]:
        return self.y, self.factors


# Thin enough for seconds; what differs from the tiny preset.
THIN: dict[str, dict[str, Any]] = {
    "m-unet": {"widths": (8, 16, 16)},
    "fb-sem": {"geometry": TOY, "num_subsets": 3, "channels": 8, "layers": 3},
    "ea-gan": {"channels": 8, "discriminator_channels": 4, "num_downs": 3},
    "hi-net": {"channels": 6, "discriminator_channels": 4},
    "cncl": {"channels": 6, "discriminator_channels": 4},
    "csrd": {
        "unet": ScoreUNetConfig(channels=16, multipliers=(1, 2), blocks=1, dropout=0.0),
        "patch_size": 2,
        "residual_std": 0.1,
        "num_steps": 8,
    },
}


def thin_config(name: str, **changes: Any) -> SystemConfig:
    """A narrow system on slices of 32 x 32."""
    config = system_preset(name, "tiny")
    if name not in THIN:
        fusion = dataclasses.replace(config.fusion, channels=4, heads=2)  # type: ignore[attr-defined]
        changes = {"widths": (6, 12, 12), "fusion": fusion, **changes}
    return dataclasses.replace(config, **{**THIN.get(name, {}), **changes})


def thin(name: str, **changes: Any) -> System:
    torch.manual_seed(0)
    return build_system(thin_config(name, **changes))


def extra(system: System, slices: Slices, step: int = 0) -> list[Tensor]:
    """What the loop hands to the loss beside the images."""
    if system.needs_sinograms:
        return list(slices.scan)
    return system.draw(slices.x_p.shape, 0.5, torch.Generator().manual_seed(step))


def restored(system: System, slices: Slices, rows: slice = slice(None)) -> Tensor:
    keys = ["a", "b", "c", "d"][rows]
    scan = [s[rows] for s in slices.scan] if system.needs_sinograms else []
    noise = NoiseSource(0, keys, (32, 32))
    return system.restore(slices.x_p[rows], slices.x_m[rows], noise, *scan).mean
