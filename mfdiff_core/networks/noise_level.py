"""The noise level of a low-dose image, and what a network makes of it.

A site's scans differ in dose and duration, so by several times in noise, and one model serves all
of them. Normalisation takes amplitudes out of a U-Net's features; told the level, it need not infer
it from what is left.

Symbols: B batch, E size of the time embedding; x_p is [B, 1, H, W] in diffusion units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.networks.unet_blocks import zero

_MIDDLE, _REACH = -2.0, 2.0
"""About half-way between simulated phantoms at a tenth of the dose (-1.2) and brains of minutes of
scanning (-3.4); levels further off than the reach count as at its end. A site's post-filter and
pixels can lie anywhere, and no gain is to be extrapolated to them."""


class Told(NamedTuple):
    """What the network gets: added to its time embedding [B, E], and the gain [B, 1]."""

    embedding: Tensor
    gain: Tensor


class NoiseLevel(nn.Module):
    """Noise level of x_p to an embedding beside that of t, and a gain; both 0 before training.

    The gain says how much of the detail that a filter takes from x_p is put back, one number per
    image: noise alike would be taken off further (below 0), detail of a good scan kept (towards 1).
    `DiffusionConfig.noise_aware` is where it is put back, and ``smoothing_px`` the filter.

    Args:
        channels: base width of the U-Net; E is four times that.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = 4 * channels
        self.hidden = nn.Linear(1, size)
        self.embedding = nn.Linear(size, size)
        self.gain = nn.Linear(size, 1)
        zero(self.embedding)
        zero(self.gain)

    def forward(self, x_p: Tensor) -> Told:
        """What to tell the network of x_p."""
        level = (noise_level(x_p) - _MIDDLE).clamp(-_REACH, _REACH).unsqueeze(1)
        hidden = F.silu(self.hidden(level.to(self.hidden.weight.dtype)))
        return Told(self.embedding(hidden), self.gain(hidden))


def noise_level(x_p: Tensor) -> Tensor:
    """Log of the norm of an image's finest detail over that of the image, [B], in float32.

    The detail is what a mean over 3 x 3 pixels takes away. Simulated brains of 2 mm pixels: -3.4
    for scans of minutes, -2.9 to -2.3 at low doses, -1.2 for unfiltered phantoms. It tells scans of
    one reconstruction apart; a post-filter or smaller pixels lower it as a higher dose does.
    """
    p = (x_p.float() + 1.0) / 2.0
    smooth = F.avg_pool2d(F.pad(p, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    tiny = 1e-6  # an empty image has level 0
    detail, whole = ((x.square().mean(dim=(1, 2, 3)) + tiny) for x in (p - smooth, p))
    return 0.5 * torch.log(detail / whole)
