"""The ablation ladder of Table 5 (Sec. 5.3): from a plain U-Net to MFdiff without diffusion.

    unet    U-Net of x_p                         gmunet  fusion of two global branches
    munet   U-Net of x_p and x_m                 dmunet  fusion of two detail branches
                                                 cmunet  MFdiff's fusion

Source: the paper; the U-Net is Ronneberger et al. 2015 (ref. [53]). Adapted: "same" padding and
batch normalisation in place of valid convolutions without. Open in the paper, our reading: the
fusions' U-Net also reads x_p, so that cmunet differs from MFdiff by the restorer and what it is
trained to lower, and what goes in is in diffusion units as there; what comes out is the image
itself, no correction of x_p, in intensities, whose background of 0 a linear output has at once; the
loss is the squared error, the family of Eq. (9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.comparison.conv_unet import ConvUNet, double_conv, down_stages, unet_groups
from mfdiff_core.comparison.system import Losses, OnePassSystem, SystemConfig, check_size
from mfdiff_core.diffusion.process import to_diffusion
from mfdiff_core.networks.fusion import Branches, FusionConfig, FusionNet
from mfdiff_core.networks.mfdiff import GROUP_PREFIXES
from mfdiff_core.networks.patches import PatchTransform

AblationName = Literal["unet", "munet", "gmunet", "dmunet", "cmunet"]
BRANCHES: Mapping[str, Branches] = {
    "gmunet": "global",
    "dmunet": "detail",
    "cmunet": "global+detail",
}
"""Branches of the rungs that have a fusion module."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig(SystemConfig):
    """One rung of Table 5.

    Attributes:
        system: which.
        widths: channels of the U-Net's stages, finest first.
        fusion: fusion module of the last three rungs, its `branches` as their name says.
        patch_size: as in `MFdiffConfig`, so that a rung works on the grid of its MFdiff.
    """

    loss_text = "squared error"
    system: AblationName = "cmunet"
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    patch_size: int = 1

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be two or more positive numbers, got {self.widths=}")
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size=}")
        if self.fusion.branches != BRANCHES.get(self.system, self.fusion.branches):
            raise ValueError(
                f"fusion.branches of {self.system} must be {BRANCHES[self.system]!r},"
                f" got {self.fusion.branches!r}"
            )
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""
        return self.patch_size << (len(self.widths) - 1)


class AblationUNet(OnePassSystem):
    """A U-Net on x_p, on x_p and x_m, or on x_p and fused features; mean squared error."""

    groups = {
        name: prefixes for name, prefixes in GROUP_PREFIXES.items() if prefixes[0][0] == "f"
    } | unet_groups("unet")

    def __init__(self, config: AblationConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch_size**2
        self.patches = PatchTransform(config.patch_size)
        self.fusion = FusionNet(config.fusion, pixels) if config.system in BRANCHES else None
        beside = {"unet": 0, "munet": pixels}.get(config.system, config.fusion.channels)
        self.unet = plain_unet(pixels + beside, config.widths, pixels)

    def estimate(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """The restored image."""
        check_size(x_p, self.config)
        p, m = (self.patches.split(to_diffusion(x), whiten=True) for x in (x_p, x_m))
        read = [p]
        if self.fusion is not None:
            read.append(self.fusion(p, m))
        elif self.config.system == "munet":
            read.append(m)
        return self.patches.join(self.unet(torch.cat(read, dim=1)))

    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Mean squared error."""
        return Losses(F.mse_loss(self.estimate(x_p, x_m).float(), x_s.float()))


def plain_unet(in_channels: int, widths: tuple[int, ...], out_channels: int) -> ConvUNet:
    """U-Net of ref. [53] with transposed convolutions on the way up."""
    pairs = list(zip(widths[-2::-1], widths[:0:-1], strict=True))  # (fine, coarse)
    return ConvUNet(
        down=down_stages(in_channels, widths[:-1]),
        middle=double_conv(widths[-2], widths[-1], widths[-1]),
        resample=[nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs],
        up=[double_conv(2 * fine, fine, fine) for fine, _ in pairs],
        head=nn.Conv2d(widths[0], out_channels, 1),
    )
