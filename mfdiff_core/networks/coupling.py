"""Invertible detail branch: affine coupling layers around inverted residual blocks, Eq. (4).

Symbols: first and second are the halves [B, C/2, H, W] of a feature (F_f and F_l in the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.networks.blocks import Pointwise, mix_pixels

CouplingForm = Literal["paper", "cddfuse"]
Halves = tuple[Tensor, Tensor]

# Bound of the log scale, so that exp() stays within e^-2 ... e^2 whatever the features are.
LOG_SCALE_BOUND = 2.0


class InvertedResidual(nn.Sequential):
    """IRB of Eq. (4): 1x1 to twice the width, 3x3 depthwise, 1x1 back; no norm, no skip.

    The last convolution starts at zero, so a coupling layer starts as the identity.
    """

    def __init__(self, channels: int) -> None:
        width = 2 * channels
        project = Pointwise(width, channels)
        nn.init.zeros_(project.weight)
        super().__init__(
            Pointwise(channels, width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", groups=width, bias=False),
            nn.ReLU6(),
            project,
        )


def side_by_side(blocks: Sequence[InvertedResidual], x: Tensor) -> list[Tensor]:
    """What ``blocks`` make of the same x, their hidden channels computed as one wide layer."""
    expand, local = (
        torch.cat([cast("nn.Conv2d", block[layer]).weight for block in blocks]) for layer in (0, 2)
    )
    hidden = F.pad(F.relu6(mix_pixels(x, expand)), (1, 1, 1, 1), mode="reflect")
    hidden = F.relu6(F.conv2d(hidden, local, groups=len(local)))
    parts = hidden.chunk(len(blocks), dim=1)
    return [block[4](part) for block, part in zip(blocks, parts, strict=True)]


def bounded_exp(u: Tensor) -> Tensor:
    """exp(k tanh(u/k)), k = `LOG_SCALE_BOUND`: about exp(u) near 0; computed in float32."""
    precise = u.to(torch.promote_types(u.dtype, torch.float32))
    return torch.exp(LOG_SCALE_BOUND * torch.tanh(precise / LOG_SCALE_BOUND)).to(u.dtype)


class AffineCoupling(nn.Module):
    """One coupling layer, Eq. (4): one half is scaled and shifted by functions of the other.

    Args:
        channels: C/2, of either half.
        swapped: change the second half instead of the first.
    """

    def __init__(self, channels: int, *, swapped: bool) -> None:
        super().__init__()
        self.scale = InvertedResidual(channels)
        self.shift = InvertedResidual(channels)
        self.swapped = swapped

    def forward(self, first: Tensor, second: Tensor) -> Halves:
        """Halves after the layer."""
        if self.swapped:
            factor, shift = self._factor_and_shift(first)
            return first, second * factor + shift
        factor, shift = self._factor_and_shift(second)
        return first * factor + shift, second

    def inverse(self, first: Tensor, second: Tensor) -> Halves:
        """Halves before the layer."""
        if self.swapped:
            factor, shift = self._factor_and_shift(first)
            return first, (second - shift) / factor
        factor, shift = self._factor_and_shift(second)
        return (first - shift) / factor, second

    def _factor_and_shift(self, half: Tensor) -> Halves:
        u, shift = side_by_side((self.scale, self.shift), half)
        return bounded_exp(u), shift


class MixedCoupling(nn.Module):
    """CDDFuse's form of the layer: channels mixed by a 1x1 first, then both halves change.

    second += phi(first); first = first * exp(scale(second)) + shift(second).

    Args:
        channels: C/2, of either half.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = Pointwise(2 * channels, 2 * channels, bias=True)
        nn.init.orthogonal_(self.mix.weight)  # any start is invertible, a rotation stays accurate
        self.phi = InvertedResidual(channels)
        self.scale = InvertedResidual(channels)
        self.shift = InvertedResidual(channels)

    def forward(self, first: Tensor, second: Tensor) -> Halves:
        """Halves after the layer."""
        first, second = self.mix(torch.cat((first, second), dim=1)).chunk(2, dim=1)
        second = second + self.phi(first)
        u, shift = side_by_side((self.scale, self.shift), second)
        return first * bounded_exp(u) + shift, second

    def inverse(self, first: Tensor, second: Tensor) -> Halves:
        """Halves before the layer."""
        u, shift = side_by_side((self.scale, self.shift), second)
        first = (first - shift) / bounded_exp(u)
        mixed = torch.cat((first, second - self.phi(first)), dim=1)
        assert self.mix.bias is not None
        unmix = torch.linalg.inv(self.mix.weight.flatten(1))
        pixels = torch.einsum("ij,bjhw->bihw", unmix, mixed - self.mix.bias[:, None, None])
        first, second = pixels.chunk(2, dim=1)
        return first, second


class DetailBranch(nn.Module):
    """Detail extractor D_i of Eq. (4): coupling layers with the halves taking turns.

    Without the turns the second half would leave unchanged however many layers there are.

    Args:
        channels: C; even.
        couplings: number of layers (three in the paper).
        form: "paper" for Eq. (4) as printed, "cddfuse" for `MixedCoupling`.
    """

    def __init__(self, channels: int, couplings: int, form: CouplingForm = "paper") -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.ModuleList(
            AffineCoupling(half, swapped=index % 2 == 1) if form == "paper" else MixedCoupling(half)
            for index in range(couplings)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Detail features of [B, C, H, W], same shape."""
        first, second = x.chunk(2, dim=1)
        for layer in self.layers:
            first, second = layer(first, second)
        return torch.cat((first, second), dim=1)

    def inverse(self, details: Tensor) -> Tensor:
        """The features whose details these are."""
        first, second = details.chunk(2, dim=1)
        for layer in reversed(self.layers):
            assert isinstance(layer, AffineCoupling | MixedCoupling)
            first, second = layer.inverse(first, second)
        return torch.cat((first, second), dim=1)
