"""Blocks of the DDPM U-Net, and its config.

Symbols: B batch, C channels of the layer at hand, H x W its grid, E = 4 * channels size of the
time embedding; t is [B], 0-based.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfdiff_core.networks.blocks import Pointwise


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the U-Net.

    Attributes:
        channels: base width.
        multipliers: width of each level over `channels`; each level halves the grid.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention_resolutions: grid sizes at which attention follows each residual block; each
            must occur among the levels. The middle block attends in any case.
        dropout: probability inside residual blocks.
        norm_groups: groups of every group normalisation; divides every width.
        checkpointing: store only the inputs of residual blocks for the backward pass.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (12,)
    dropout: float = 0.0
    norm_groups: int = 32
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.norm_groups < 1 or self.channels < 4 or self.channels % self.norm_groups:
            raise ValueError(
                "channels must be at least 4 and a multiple of norm_groups, "
                f"got channels={self.channels}, norm_groups={self.norm_groups}"
            )
        if self.channels % 2:
            raise ValueError(f"channels must be even, got channels={self.channels}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multipliers must be one or more integers >= 1, got {self.multipliers=}"
            )
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, got blocks={self.blocks}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got dropout={self.dropout}")

    def level_sizes(self, image_size: int) -> tuple[int, ...]:
        """Grid size of each level for inputs of ``image_size``.

        Raises:
            ValueError: a level would not halve evenly, or a requested attention resolution is
                at no level (it would silently give a U-Net without that attention).
        """
        check_divisible(image_size, image_size, len(self.multipliers))
        sizes = tuple(image_size // 2**level for level in range(len(self.multipliers)))
        missed = [size for size in self.attention_resolutions if size not in sizes]
        if missed:
            raise ValueError(
                f"attention_resolutions must be among the level sizes {sizes}, got {missed}"
            )
        return sizes


def check_divisible(height: int, width: int, levels: int) -> None:
    """Refuse grids that ``levels`` levels cannot halve evenly."""
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        raise ValueError(
            f"a U-Net of {levels} levels needs sizes divisible by {factor}, got {height}x{width}"
        )


def timestep_features(t: Tensor, channels: int) -> Tensor:
    """Sinusoids [B, channels] of t [B]: sines, then cosines, frequencies 1 ... 1e-4."""
    half = channels // 2
    index = torch.arange(half, device=t.device, dtype=torch.float32)
    frequencies = torch.exp(index * (-math.log(10_000.0) / (half - 1)))
    phases = t.float().unsqueeze(1) * frequencies
    return torch.cat((phases.sin(), phases.cos()), dim=1)


class TimeEmbedding(nn.Module):
    """t to SiLU(embedding) [B, E]; the nonlinearity all residual blocks need is applied once."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.expand = nn.Linear(channels, 4 * channels)
        self.mix = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        """Embed t [B]."""
        features = timestep_features(t, self.channels).to(self.expand.weight.dtype)
        return F.silu(self.mix(F.silu(self.expand(features))))


class ResBlock(nn.Module):
    """Norm, SiLU, 3x3 twice, the time embedding added in between, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(config.norm_groups, in_channels, eps=1e-6)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(4 * config.channels, out_channels)
        self.norm_out = nn.GroupNorm(config.norm_groups, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = Pointwise(in_channels, out_channels, bias=True)
        self.checkpointing = config.checkpointing

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, in_channels, H, W] and embedding [B, E] to [B, out_channels, H, W]."""
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(
                self._transform,
                x,
                embedding,
                use_reentrant=False,
                preserve_rng_state=self.dropout.p > 0,
            )
            return out
        return self._transform(x, embedding)

    def _transform(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = h + self.time(embedding)[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        out: Tensor = self.shortcut(x) + h
        return out


class SpatialAttention(nn.Module):
    """Single-head self-attention over the pixels of [B, C, H, W], with a residual."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.qkv = Pointwise(channels, 3 * channels, bias=True)
        self.project = Pointwise(channels, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; the scale is 1/sqrt(C)."""
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # [B, N, 3C]
        # Fused kernels want the channels of a token side by side; no copy in channels_last.
        q, k, v = tokens.contiguous().unsqueeze(1).chunk(3, dim=3)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        out: Tensor = x + self.project(attended.reshape(x.shape))
        return out


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the grid of [B, C, H, W]."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double the grid of [B, C, H, W]."""
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def initialise(module: nn.Module) -> None:
    """Xavier weights, zero biases; layers that end a residual start at zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    # `apply` visits children first, so these overrule the lines above.
    if isinstance(module, ResBlock):
        zero(module.conv_out)
    if isinstance(module, SpatialAttention):
        for part in module.qkv.weight.chunk(3):  # q, k and v are layers of their own in DDPM
            nn.init.xavier_uniform_(part)
        zero(module.project)


def zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Set a layer to zero, so that it starts without effect."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
