"""The convolutional U-Net that the regression systems share; each brings its own stages.

Symbols: B batch, C channels of the stage at hand, H x W its grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvUNet(nn.Module):
    """Stages with 2 x 2 max pooling between them on the way down, skips on the way up.

    Args:
        down: stages from the finest grid on; each halving follows a stage.
        middle: stage of the coarsest grid.
        resample: what doubles the grid before each stage of the way up.
        up: stages of the way up, the finest last; they read (skip, doubled) on the channels.
        head: from the last stage to the output.
    """

    def __init__(
        self,
        down: Sequence[nn.Module],
        middle: nn.Module,
        resample: Sequence[nn.Module],
        up: Sequence[nn.Module],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(down)
        self.middle = middle
        self.resample = nn.ModuleList(resample)
        self.up = nn.ModuleList(up)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, out, H, W] of x [B, in, H, W]."""
        skips = []
        for stage in self.down:
            skips.append(stage(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for resample, stage in zip(self.resample, self.up, strict=True):
            x = stage(torch.cat((skips.pop(), resample(x)), dim=1))
        out: Tensor = self.head(x)
        return out


UNET_GROUPS = {
    "down": ("down.",),
    "middle": ("middle.",),
    "up": ("resample.", "up.", "head."),
}
"""Prefixes of `ConvUNet`'s parameters by group."""


def unet_groups(*paths: str) -> dict[str, tuple[str, ...]]:
    """Groups of the U-Nets that a system keeps at ``paths``."""
    return {
        group: tuple(f"{path}.{prefix}" for path in paths for prefix in prefixes)
        for group, prefixes in UNET_GROUPS.items()
    }


def conv_block(
    in_channels: int, out_channels: int, *, bias: bool = True, slope: float = 0.0
) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU (leaky with ``slope``)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(slope) if slope else nn.ReLU(),
    )


def double_conv(
    in_channels: int, mid_channels: int, out_channels: int, *, bias: bool = True, slope: float = 0.0
) -> nn.Sequential:
    """Two of `conv_block`."""
    return nn.Sequential(
        conv_block(in_channels, mid_channels, bias=bias, slope=slope),
        conv_block(mid_channels, out_channels, bias=bias, slope=slope),
    )


def down_stages(in_channels: int, widths: Sequence[int], *, bias: bool = True) -> list[nn.Module]:
    """`double_conv` of each width."""
    inputs = [in_channels, *widths[:-1]]
    return [double_conv(i, w, w, bias=bias) for i, w in zip(inputs, widths, strict=True)]
