"""Denoising U-Net of DDPM [39], the network epsilon_theta of Eq. (8) and (9).

Symbols: B batch, C channels of the layer at hand, H x W its grid, E = 4 * channels size of the
time embedding. x is [B, in_channels, H, W]; t is [B], 0-based.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.networks.unet_blocks import (
    Downsample,
    ResBlock,
    SpatialAttention,
    TimeEmbedding,
    UNetConfig,
    Upsample,
    check_divisible,
    initialise,
    zero,
)


class Stage(nn.Module):
    """Residual blocks of one level, each followed by attention where that level has it."""

    def __init__(self, widths: list[tuple[int, int]], attends: bool, config: UNetConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(inner, outer, config) for inner, outer in widths)
        self.attention = nn.ModuleList(
            SpatialAttention(outer, config) if attends else nn.Identity() for _, outer in widths
        )

    def step(self, index: int, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply block ``index`` and its attention."""
        out: Tensor = self.attention[index](self.blocks[index](x, embedding))
        return out


class DownLevel(Stage):
    """A level of the way down; returns every intermediate feature as a skip."""

    def __init__(
        self, widths: list[tuple[int, int]], attends: bool, config: UNetConfig, *, last: bool
    ) -> None:
        super().__init__(widths, attends, config)
        self.resample = None if last else Downsample(widths[-1][1])

    def forward(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Features of the level, the last one being the input of the next level."""
        skips: list[Tensor] = []
        for index in range(len(self.blocks)):
            x = self.step(index, x, embedding)
            skips.append(x)
        if self.resample is not None:
            skips.append(self.resample(x))
        return skips


class UpLevel(Stage):
    """A level of the way up; each block takes one skip."""

    def __init__(
        self, widths: list[tuple[int, int]], attends: bool, config: UNetConfig, *, last: bool
    ) -> None:
        super().__init__(widths, attends, config)
        self.resample = None if last else Upsample(widths[-1][1])

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Features of the level, on the next finer grid unless it is the last."""
        for index, skip in enumerate(skips):
            x = self.step(index, torch.cat((x, skip), dim=1), embedding)
        return x if self.resample is None else self.resample(x)


class Middle(nn.Module):
    """Residual block, attention, residual block on the coarsest grid."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.block_in = ResBlock(channels, channels, config)
        self.attention = SpatialAttention(channels, config)
        self.block_out = ResBlock(channels, channels, config)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        out: Tensor = self.block_out(self.attention(self.block_in(x, embedding)), embedding)
        return out


class UNet(nn.Module):
    """DDPM U-Net; its output is zero before training.

    Args:
        config: its shape.
        in_channels: channels of the input (x_t, x_p and F together).
        out_channels: channels of the output.
        image_size: grid on which `attention_resolutions` is meant; other sizes that divide
            evenly may be given to `forward`.

    Raises:
        ValueError: see `UNetConfig.level_sizes`.
    """

    memory_format: torch.memory_format = torch.channels_last

    def __init__(
        self, config: UNetConfig, in_channels: int, out_channels: int, image_size: int
    ) -> None:
        super().__init__()
        attends = [size in config.attention_resolutions for size in config.level_sizes(image_size)]
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.time = TimeEmbedding(config.channels)
        self.conv_in = nn.Conv2d(in_channels, config.channels, 3, padding=1)
        down, skips = _down_levels(config, widths, attends)
        self.down = nn.ModuleList(down)
        self.middle = Middle(widths[-1], config)
        self.up = nn.ModuleList(_up_levels(config, widths, attends, skips))
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.skips_per_level = config.blocks + 1
        self.apply(initialise)
        zero(self.conv_out)

    def forward(self, x: Tensor, t: Tensor, beside: Tensor | None = None) -> Tensor:
        """Output [B, out_channels, H, W] for x [B, in_channels, H, W] and integer t [B].

        ``beside`` [B, E] is added to the embedding of t.

        Raises:
            ValueError: H or W does not halve evenly at every level.
        """
        check_divisible(x.shape[2], x.shape[3], len(self.down))
        embedding = self.time(t) if beside is None else self.time(t) + beside
        x = self.conv_in(x.contiguous(memory_format=self.memory_format))
        skips = [x]
        for level in self.down:
            skips += level(skips[-1], embedding)
        x = self.middle(skips[-1], embedding)
        for level in self.up:
            taken = skips[: -self.skips_per_level - 1 : -1]
            del skips[-self.skips_per_level :]
            x = level(x, taken, embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


def _down_levels(
    config: UNetConfig, widths: list[int], attends: list[bool]
) -> tuple[list[DownLevel], list[int]]:
    """Levels of the way down, and the width of each skip in the order they appear."""
    levels: list[DownLevel] = []
    skips = [config.channels]
    for level, width in enumerate(widths):
        last = level == len(widths) - 1
        inputs = [skips[-1]] + [width] * (config.blocks - 1)
        pairs = [(inner, width) for inner in inputs]
        levels.append(DownLevel(pairs, attends[level], config, last=last))
        skips += [width] * (config.blocks + (0 if last else 1))
    return levels, skips


def _up_levels(
    config: UNetConfig, widths: list[int], attends: list[bool], skips: list[int]
) -> list[UpLevel]:
    """Levels of the way up; every block takes the newest skip left."""
    levels: list[UpLevel] = []
    remaining, current = list(skips), widths[-1]
    for level in reversed(range(len(widths))):
        pairs: list[tuple[int, int]] = []
        for _ in range(config.blocks + 1):
            pairs.append((current + remaining.pop(), widths[level]))
            current = widths[level]
        levels.append(UpLevel(pairs, attends[level], config, last=level == 0))
    return levels
