"""MFdiff: the fusion module and the conditional U-Net, f_theta of Eq. (1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mfdiff_core.networks.fusion import FusionConfig, FusionNet
from mfdiff_core.networks.noise_level import NoiseLevel
from mfdiff_core.networks.patches import PatchTransform
from mfdiff_core.networks.unet import UNet
from mfdiff_core.networks.unet_blocks import UNetConfig


@dataclass(frozen=True, kw_only=True)
class MFdiffConfig:
    """Shape of the whole network.

    Attributes:
        image_size: H = W for which attention resolutions are meant, in pixels.
        patch_size: p; images become p*p coefficients on a grid p times coarser before the
            fusion module and the U-Net, see `PatchTransform`. 1 is the paper.
        fusion: fusion module.
        unet: U-Net; its attention resolutions count on the coarser grid.
    """

    image_size: int = 192
    patch_size: int = 1
    fusion: FusionConfig = field(default_factory=FusionConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                "image_size must be a multiple of patch_size, "
                f"got image_size={self.image_size}, patch_size={self.patch_size}"
            )
        self.unet.level_sizes(self.grid_size)

    @property
    def grid_size(self) -> int:
        """Height and width of the grid that fusion module and U-Net work on."""
        return self.image_size // self.patch_size

    @property
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""
        factor: int = 2 ** (len(self.unet.multipliers) - 1)
        return self.patch_size * factor


class MFdiff(nn.Module):
    """Conditional denoiser epsilon_theta(x_t, t, x_p, F) with its fusion module.

    All images are in diffusion units (2x - 1 of intensities in [0, 1]). The output is zero
    before training.

    Args:
        config: shape of the network.
        noise_aware: tell the U-Net the noise level of x_p, and return the gain of its detail, see
            `NoiseLevel`.
    """

    def __init__(self, config: MFdiffConfig, *, noise_aware: bool = False) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch_size**2
        self.patches = PatchTransform(config.patch_size)
        self.fusion = FusionNet(config.fusion, pixels)
        self.unet = UNet(config.unet, 2 * pixels + config.fusion.channels, pixels, config.grid_size)
        self.noise_level = NoiseLevel(config.unet.channels) if noise_aware else None

    def fuse(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """F [B, C, H/p, W/p] of LPET x_p and MR x_m [B, 1, H, W]; needed once per image.

        Raises:
            ValueError: the images are not of one shape, or do not fit the patches.
        """
        if x_p.shape != x_m.shape:
            shapes = f"{tuple(x_p.shape)} and {tuple(x_m.shape)}"
            raise ValueError(f"LPET and MR must be of one shape, got {shapes}")
        split = self.patches.split
        f: Tensor = self.fusion(split(x_p, whiten=True), split(x_m, whiten=True))
        return f.contiguous(memory_format=self.unet.memory_format)

    def forward(self, x_t: Tensor, t: Tensor, x_p: Tensor, f: Tensor) -> Tensor:
        """Raw output for x_t and x_p [B, 1, H, W], 0-based t [B] int64, and F.

        [B, 1, H, W], or [B, 2, H, W] of a noise-aware network, the second being the gain.
        """
        images = (self.patches.split(x_t), self.patches.split(x_p, whiten=True), f)
        if self.noise_level is None:
            return self.patches.join(self.unet(torch.cat(images, dim=1), t))
        embedding, gain = self.noise_level(x_p)
        image = self.patches.join(self.unet(torch.cat(images, dim=1), t, embedding))
        return torch.cat((image, gain.to(image.dtype)[:, :, None, None].expand_as(image)), dim=1)

    def set_memory_format(self, *, fusion: torch.memory_format, unet: torch.memory_format) -> None:
        """Choose the layout of activations and weights of either part.

        The default, channels_last for both, is the fastest on CPUs.
        """
        self.fusion.memory_format = fusion
        self.unet.memory_format = unet
        self.fusion.to(memory_format=fusion)  # type: ignore[call-overload]
        self.unet.to(memory_format=unet)  # type: ignore[call-overload]

    def parameter_groups(self) -> dict[str, list[str]]:
        """Parameter names by part; every parameter is in exactly one group."""
        groups: dict[str, list[str]] = {name: [] for name in GROUP_PREFIXES}
        for parameter, _ in self.named_parameters():
            groups[_group_of(parameter)].append(parameter)
        return groups

    def norm_parameters(self) -> list[str]:
        """Names of the affine parameters of all normalisation layers, across groups."""
        return [
            f"{path}.{name}"
            for path, module in self.named_modules()
            if isinstance(module, nn.LayerNorm | nn.GroupNorm)
            for name, _ in module.named_parameters(recurse=False)
        ]


GROUP_PREFIXES: dict[str, tuple[str, ...]] = {
    "encoders": ("fusion.encoder_p.", "fusion.encoder_m."),
    "global": ("fusion.global_p.", "fusion.global_m."),
    "detail": ("fusion.detail_p.", "fusion.detail_m."),
    "aggregation": ("fusion.global_fuse.", "fusion.detail_fuse."),
    "decoder": ("fusion.decoder.",),
    "time": ("unet.time.", "noise_level."),
    "unet_in": ("unet.conv_in.",),
    "down": ("unet.down.",),
    "middle": ("unet.middle.",),
    "up": ("unet.up.", "unet.norm_out.", "unet.conv_out."),
}


def _group_of(parameter: str) -> str:
    for group, prefixes in GROUP_PREFIXES.items():
        if parameter.startswith(prefixes):
            return group
    raise AssertionError(f"{parameter} is in no group")
