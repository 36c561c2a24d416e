"""Denoising U-Net of score models (Song et al. 2021, "DDPM++"), the network of CSRD.

It differs from DDPM's U-Net in `networks/unet.py`: the grid changes inside residual blocks, every
sum is scaled by the root of 1/2, norm groups follow the width, and only the coarsest grid attends.

Symbols: B batch, C channels of the layer at hand, E = 4 * channels size of the noise embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.networks.unet_blocks import timestep_features

Resample = Literal["none", "down", "up"]
ROOT_HALF = math.sqrt(0.5)
NEARLY_ZERO = 1e-5


@dataclass(frozen=True, kw_only=True)
class ScoreUNetConfig:
    """Shape of the U-Net.

    Attributes:
        channels: base width.
        multipliers: width of each level over `channels`; each level halves the grid.
        blocks: residual blocks per level on the way down (one more on the way up).
        dropout: probability inside residual blocks.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    dropout: float = 0.13

    def __post_init__(self) -> None:
        if self.channels < 4 or self.channels % 4:
            raise ValueError(f"channels must be a multiple of 4, got {self.channels=}")
        if not self.multipliers or min(self.multipliers) < 1 or self.blocks < 1:
            raise ValueError(
                "multipliers and blocks must be at least 1, got"
                f" {self.multipliers=}, {self.blocks=}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout=}")


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in range(min(32, channels // 4), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ScoreBlock(nn.Module):
    """Norm, SiLU, 3x3 twice with the noise embedding in between, a shortcut, and attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: ScoreUNetConfig,
        *,
        resample: Resample = "none",
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm_in = _norm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.noise = nn.Linear(4 * config.channels, out_channels)
        self.norm_out = _norm(out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or resample != "none":
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.attention = ScoreAttention(out_channels) if attends else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, in_channels, H, W] and embedding [B, E] to [B, out_channels, H', W']."""
        h = self.conv_in(_resampled(F.silu(self.norm_in(x)), self.resample))
        h = h + self.noise(embedding)[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        out: Tensor = (self.shortcut(_resampled(x, self.resample)) + h) * ROOT_HALF
        return out if self.attention is None else self.attention(out)


def _resampled(x: Tensor, resample: Resample) -> Tensor:
    if resample == "none":
        return x
    return F.avg_pool2d(x, 2) if resample == "down" else F.interpolate(x, scale_factor=2.0)


class ScoreAttention(nn.Module):
    """Single-head self-attention over the pixels of [B, C, H, W], with a scaled residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; the scale is 1/sqrt(C)."""
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)
        q, k, v = tokens.contiguous().unsqueeze(1).chunk(3, dim=3)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        out: Tensor = (x + self.project(attended.reshape(x.shape))) * ROOT_HALF
        return out


class ScoreUNet(nn.Module):
    """The network F of Karras et al. 2022; its output is nearly zero before training.

    Args:
        config: its shape.
        in_channels: of the noised image, the conditions and the coordinates together.
        out_channels: of the output.
    """

    def __init__(self, config: ScoreUNetConfig, in_channels: int, out_channels: int = 1) -> None:
        super().__init__()
        c = config.channels
        widths = [c * multiplier for multiplier in config.multipliers]
        self.channels = c
        self.embed = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, 4 * c))
        self.conv_in = nn.Conv2d(in_channels, c, 3, padding=1)
        down, skips = _down(config, widths)
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(
            ScoreBlock(widths[-1], widths[-1], config, attends=attends) for attends in (True, False)
        )
        self.up = nn.ModuleList(_up(config, widths, skips))
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.apply(_initialise)
        _shrink(self.conv_out)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Output [B, out_channels, H, W] for x [B, in_channels, H, W] and c_noise [B]."""
        features = timestep_features(c_noise, self.channels).to(self.conv_in.weight.dtype)
        embedding = F.silu(self.embed(features))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.up:
            joined = x if block.resample == "up" else torch.cat((x, skips.pop()), dim=1)
            x = block(joined, embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


def _down(config: ScoreUNetConfig, widths: list[int]) -> tuple[list[ScoreBlock], list[int]]:
    """Blocks of the way down, and the width of each skip in the order they appear."""
    blocks: list[ScoreBlock] = []
    skips = [config.channels]
    for level, width in enumerate(widths):
        if level:
            blocks.append(ScoreBlock(skips[-1], skips[-1], config, resample="down"))
            skips.append(skips[-1])
        for _ in range(config.blocks):
            blocks.append(ScoreBlock(skips[-1], width, config))
            skips.append(width)
    return blocks, skips


def _up(config: ScoreUNetConfig, widths: list[int], skips: list[int]) -> list[ScoreBlock]:
    """Blocks of the way up; each takes the newest skip left, but those that double the grid."""
    blocks: list[ScoreBlock] = []
    remaining, current = list(skips), widths[-1]
    for level in reversed(range(len(widths))):
        if level < len(widths) - 1:
            blocks.append(ScoreBlock(current, current, config, resample="up"))
        for _ in range(config.blocks + 1):
            blocks.append(ScoreBlock(current + remaining.pop(), widths[level], config))
            current = widths[level]
    return blocks


def _initialise(module: nn.Module) -> None:
    """Xavier weights, zero biases; layers that end a residual start nearly at zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    # `apply` visits children first, so these overrule the lines above.
    if isinstance(module, ScoreBlock):
        _shrink(module.conv_out)
    if isinstance(module, ScoreAttention):
        _shrink(module.project)


def _shrink(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        conv.weight.mul_(NEARLY_ZERO)
