"""CNCL: content and noise, each predicted by a U-Net (Geng et al., IEEE TMI 2021; ref. [32]).

Source: the article and its official code (CNCL-U-Net). Adapted: both U-Nets and the discriminator
also read the MR; the noise is that of the PET, n = x_p - x_s. Not reproduced: both images were
standardised by the noisy one's variance (not its deviation), which on slices with much background
scales them by 10 to 100 and upsets the balance of the losses; intensities stay about [0, 1] here.
The official code has the noise target as noisy minus clean, as here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mfdiff_core.comparison.adversarial import (
    constant_scores,
    discriminator_loss,
    l1,
    least_squares,
    normal_start,
    patch_stage,
)
from mfdiff_core.comparison.conv_unet import ConvUNet, double_conv, down_stages, unet_groups
from mfdiff_core.comparison.system import Losses, OnePassSystem, SystemConfig, check_size


@dataclass(frozen=True, kw_only=True)
class CNCLConfig(SystemConfig):
    """Shape and losses of CNCL.

    Attributes:
        channels: of the U-Nets' finest stage, an even number; they double four times.
        discriminator_channels: of the discriminator's first stage.
        l1_weight: of the absolute error of content and noise, over the adversarial term.
    """

    loss_text = "absolute error of content and noise, and an adversary"
    system: Literal["cncl"] = "cncl"
    channels: int = 64
    discriminator_channels: int = 64
    l1_weight: float = 100.0

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2 or self.discriminator_channels < 1:
            raise ValueError(
                "channels must be even and discriminator_channels positive, got"
                f" {self.channels=}, {self.discriminator_channels=}"
            )
        if self.l1_weight < 0:
            raise ValueError(f"l1_weight must not be negative, got {self.l1_weight=}")
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""
        return 16


class CNCL(OnePassSystem):
    """The image from a content U-Net and from x_p minus a noise U-Net, weighed by a 1x1."""

    groups = unet_groups("content", "noise") | {
        "up": (*unet_groups("content", "noise")["up"], "weigh."),
        "discriminator": ("discriminator.",),
    }
    betas = (0.5, 0.999)
    discriminator: nn.Sequential

    def __init__(self, config: CNCLConfig) -> None:
        super().__init__()
        self.config = config
        self.content, self.noise = _unet(config.channels), _unet(config.channels)
        self.weigh = nn.Conv2d(2, 1, 1)
        self.discriminator = _discriminator(config.discriminator_channels)
        self.apply(normal_start())

    def estimate(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """The restored image."""
        return self._separate(x_p, x_m)[0]

    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Adversarial term, errors of content and noise; and the discriminator's."""
        content, noise = self._separate(x_p, x_m)
        fake = (content, noise, x_p, x_m)
        real = (x_s, x_p - x_s, x_p, x_m)
        adversarial = least_squares(constant_scores(self.discriminator, *fake), 1.0)
        error = 0.5 * (l1(content, real[0]) + l1(noise, real[1]))
        return Losses(
            adversarial + self.config.l1_weight * error,
            discriminator_loss(self.discriminator, real, fake),
        )

    def _separate(self, x_p: Tensor, x_m: Tensor) -> tuple[Tensor, Tensor]:
        """Content and noise."""
        check_size(x_p, self.config)
        x = torch.cat((x_p, x_m), dim=1)
        noise = self.noise(x)
        return self.weigh(torch.cat((self.content(x), x_p - noise), dim=1)), noise


def _unet(c: int) -> ConvUNet:
    """Stages on the way up already narrow to the next one; the finest is two bare convolutions."""
    widths = (c, 2 * c, 4 * c, 8 * c)
    up: list[nn.Module] = [double_conv(2 * w, w, w // 2) for w in widths[:0:-1]]
    up.append(
        nn.Sequential(nn.Conv2d(2 * c, c // 2, 3, padding=1), nn.Conv2d(c // 2, 1, 3, padding=1))
    )
    return ConvUNet(
        down=down_stages(2, widths),
        middle=double_conv(8 * c, 16 * c, 8 * c),
        resample=[nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) for _ in up],
        up=up,
        head=nn.Identity(),
    )


def _discriminator(width: int) -> nn.Sequential:
    """12 x 12 scores of 192 x 192 pixels."""
    return nn.Sequential(
        patch_stage(4, width, None),
        *(
            patch_stage(
                width << level, width << (level + 1), nn.InstanceNorm2d(width << (level + 1))
            )
            for level in range(3)
        ),
        nn.ZeroPad2d((1, 0, 1, 0)),
        nn.Conv2d(8 * width, 1, 4, padding=1, bias=False),
    )
