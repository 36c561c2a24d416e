"""M-UNet: residual U-Net over LPET and MR (Chen et al., Radiology 2019; ref. [40]).

Source: the article's description and a third-party re-implementation; no official code is known.
Adapted: T1 is the only contrast beside the LPET, 192 x 192 slices. The correction that is added to
the LPET starts at zero instead of at random, so that an untrained system returns its input. The
re-implementation's author is unsure of the number of convolutions per stage; two, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mfdiff_core.comparison.adversarial import l1
from mfdiff_core.comparison.conv_unet import ConvUNet, double_conv, down_stages, unet_groups
from mfdiff_core.comparison.system import Losses, OnePassSystem, SystemConfig, check_size


@dataclass(frozen=True, kw_only=True)
class MUNetConfig(SystemConfig):
    """Shape of M-UNet.

    Attributes:
        widths: channels of each stage, finest first; the grid halves between them.
    """

    loss_text = "absolute error"
    system: Literal["m-unet"] = "m-unet"
    widths: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be two or more positive numbers, got {self.widths=}")
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""
        return 1 << (len(self.widths) - 1)


class MUNet(OnePassSystem):
    """x_p plus a correction read from x_p and x_m; mean absolute error."""

    groups = unet_groups("unet")

    def __init__(self, config: MUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = _unet(config.widths)
        for parameter in self.unet.head.parameters():
            nn.init.zeros_(parameter)

    def estimate(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """x_p corrected."""
        check_size(x_p, self.config)
        corrected: Tensor = x_p + self.unet(torch.cat((x_p, x_m), dim=1))
        return corrected

    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Mean absolute error."""
        return Losses(l1(self.estimate(x_p, x_m), x_s))


def _unet(widths: tuple[int, ...]) -> ConvUNet:
    up = [
        double_conv(fine + coarse, fine, fine, bias=False)
        for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
    ]
    return ConvUNet(
        down=down_stages(2, widths[:-1], bias=False),
        middle=double_conv(widths[-2], widths[-1], widths[-1], bias=False),
        resample=[nn.Upsample(scale_factor=2, mode="bilinear") for _ in up],
        up=up,
        head=nn.Conv2d(widths[0], 1, 1),
    )
