"""Hi-Net: hybrid fusion of two modalities layer by layer (Zhou et al., IEEE TMI 2020; ref. [42]).

Source: the article and its official code. Adapted: whole slices instead of patches of 128 pixels
(it is fully convolutional), LPET and T1 in, SPET out; intensities up to 1.25 mapped to the tanh's
[-1, 1], as hot lesions pass 1. Not reproduced: 0.8 handed to the discriminator's normalisation as
eps, surely meant as momentum; the discriminator's loss on restored images that are not detached
and whose generator has already been changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.comparison.adversarial import (
    constant_scores,
    discriminator_loss,
    from_tanh,
    l1,
    least_squares,
    normal_start,
    to_tanh,
)
from mfdiff_core.comparison.conv_unet import conv_block, double_conv
from mfdiff_core.comparison.system import Losses, OnePassSystem, SystemConfig, check_size


@dataclass(frozen=True, kw_only=True)
class HiNetConfig(SystemConfig):
    """Shape and losses of Hi-Net.

    Attributes:
        channels: of the encoders' first stage; they double twice.
        discriminator_channels: of the discriminator's first stage; they double with each halving.
        discriminator_halvings: of the grid; at least three pixels must be left.
        intensity_top: largest intensity that can be restored.
        l1_weight: of the absolute error of the SPET, over the adversarial term.
        reconstruction_weight: of the absolute error of either input.
    """

    loss_text = "absolute error, that of both inputs, and an adversary"
    system: Literal["hi-net"] = "hi-net"
    channels: int = 32
    discriminator_channels: int = 32
    discriminator_halvings: int = 4
    intensity_top: float = 1.25
    l1_weight: float = 100.0
    reconstruction_weight: float = 20.0

    def __post_init__(self) -> None:
        if min(self.channels, self.discriminator_channels) < 1 or self.intensity_top <= 0:
            raise ValueError(
                "widths and intensity_top must be positive, got"
                f" {self.channels=}, {self.discriminator_channels=}, {self.intensity_top=}"
            )
        if self.discriminator_halvings < 1 or self.image_size >> self.discriminator_halvings < 3:
            raise ValueError(
                f"discriminator_halvings must leave 3 of {self.image_size} pixels, got"
                f" {self.discriminator_halvings=}"
            )
        if min(self.l1_weight, self.reconstruction_weight) < 0:
            raise ValueError(
                "weights must not be negative, got"
                f" {self.l1_weight=}, {self.reconstruction_weight=}"
            )
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""
        return 8


class MixedFusion(nn.Module):
    """Sum, product and maximum of two features, joined with the stream so far.

    Args:
        channels: of either feature, and of the stream where there is one.
        out_channels: of the stream from here on.
        joins: whether there is a stream so far.
        slope: of the leaky ReLU; 0 is ReLU.
    """

    def __init__(self, channels: int, out_channels: int, *, joins: bool, slope: float) -> None:
        super().__init__()
        self.mix = conv_block(3 * channels, channels, slope=slope)
        self.join = conv_block(2 * channels if joins else channels, out_channels, slope=slope)

    def forward(self, of_p: Tensor, of_m: Tensor, stream: Tensor | None = None) -> Tensor:
        """The stream [B, out_channels, H, W]."""
        mixed = self.mix(torch.cat((of_p + of_m, of_p * of_m, torch.maximum(of_p, of_m)), dim=1))
        joined = mixed if stream is None else torch.cat((mixed, stream), dim=1)
        out: Tensor = self.join(joined)
        return out


class Encoder(nn.Module):
    """One modality to features on grids 2, 4 and 8 times coarser."""

    def __init__(self, c: int) -> None:
        super().__init__()
        pairs = ((1, c), (c, 2 * c), (2 * c, 4 * c))
        self.stages = nn.ModuleList(double_conv(i, o, o, slope=0.2) for i, o in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of c, 2c and 4c channels, each after its pooling."""
        features = []
        for stage in self.stages:
            x = F.max_pool2d(stage(x), 2)
            features.append(x)
        return features


class FusedDecoder(nn.Module):
    """Both modalities' features, fused on the way down and again on the way up, to the SPET."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            (
                MixedFusion(c, 2 * c, joins=False, slope=0.2),
                MixedFusion(2 * c, 4 * c, joins=True, slope=0.2),
                MixedFusion(4 * c, 4 * c, joins=True, slope=0.2),
            )
        )
        self.widen = conv_block(4 * c, 8 * c, slope=0.2)
        self.narrow = conv_block(8 * c, 4 * c)
        self.up = nn.ModuleList(
            (
                MixedFusion(4 * c, 2 * c, joins=True, slope=0.0),
                MixedFusion(2 * c, c, joins=True, slope=0.0),
                MixedFusion(c, c, joins=True, slope=0.0),
            )
        )
        self.head = nn.Sequential(conv_block(c, c), nn.Conv2d(c, 1, 3, padding=1), nn.Tanh())

    def forward(self, of_p: Sequence[Tensor], of_m: Sequence[Tensor]) -> Tensor:
        """Image [B, 1, H, W] in [-1, 1] of either modality's features, finest first."""
        stream = self.down[0](of_p[0], of_m[0])
        for level in (1, 2):
            stream = self.down[level](of_p[level], of_m[level], F.max_pool2d(stream, 2))
        stream = self.narrow(self.widen(stream))
        for fusion, level in zip(self.up, (2, 1, 0), strict=True):
            stream = _doubled(fusion(of_p[level], of_m[level], stream))
        out: Tensor = self.head(stream)
        return out


def _reconstruction(c: int) -> nn.Sequential:
    """Decoder of one modality from its own coarsest features, without skips."""
    stages: list[nn.Module] = [conv_block(4 * c, 4 * c)]
    for width in (4 * c, 2 * c):
        stages += [nn.Upsample(scale_factor=2), double_conv(width, width, width // 2)]
    stages += [nn.Upsample(scale_factor=2), conv_block(c, c)]
    return nn.Sequential(*stages, nn.Conv2d(c, 1, 3, padding=1), nn.Tanh())


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class HiNet(OnePassSystem):
    """Two encoders, fused decoding, reconstruction of both inputs, and a discriminator."""

    groups = {  # noqa: RUF012
        "encoders": ("encoder_p.", "encoder_m."),
        "aggregation": ("fused.down.", "fused.widen."),
        "up": ("fused.narrow.", "fused.up.", "fused.head.", "again_p.", "again_m."),
        "discriminator": ("discriminator.",),
    }
    betas = (0.5, 0.999)
    discriminator: nn.Sequential

    def __init__(self, config: HiNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_p, self.encoder_m = Encoder(config.channels), Encoder(config.channels)
        self.fused = FusedDecoder(config.channels)
        self.again_p, self.again_m = (_reconstruction(config.channels) for _ in range(2))
        self.discriminator = _discriminator(config)
        self.apply(normal_start())

    def estimate(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """The restored image."""
        check_size(x_p, self.config)
        top = self.config.intensity_top
        of_p, of_m = self.encoder_p(to_tanh(x_p, top)), self.encoder_m(to_tanh(x_m, top))
        return from_tanh(self.fused(of_p, of_m), top)

    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Adversarial term, errors of SPET and of both inputs; and the discriminator's."""
        check_size(x_p, self.config)
        p, m, y = (to_tanh(x, self.config.intensity_top) for x in (x_p, x_m, x_s))
        of_p, of_m = self.encoder_p(p), self.encoder_m(m)
        y_hat = self.fused(of_p, of_m)
        adversarial = least_squares(constant_scores(self.discriminator, y_hat), 1.0)
        again = l1(self.again_p(of_p[-1]), p) + l1(self.again_m(of_m[-1]), m)
        return Losses(
            adversarial
            + self.config.l1_weight * l1(y_hat, y)
            + self.config.reconstruction_weight * again,
            discriminator_loss(self.discriminator, (y,), (y_hat,)),
        )


def _discriminator(config: HiNetConfig) -> nn.Sequential:
    """10 x 10 scores of 192 x 192 pixels; it sees the PET image alone."""
    width = config.discriminator_channels
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1), nn.LeakyReLU(0.2)]
    for _ in range(config.discriminator_halvings - 1):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width)]
        layers.append(nn.LeakyReLU(0.2))
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3))
