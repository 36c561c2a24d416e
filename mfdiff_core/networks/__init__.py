"""The networks of MFdiff: fusion module (Sec. 3.1) and conditional U-Net (Sec. 3.2)."""

from mfdiff_core.networks.fusion import FusionConfig, FusionNet
from mfdiff_core.networks.mfdiff import MFdiff, MFdiffConfig
from mfdiff_core.networks.presets import NETWORK_PRESETS, network_preset
from mfdiff_core.networks.unet import UNet
from mfdiff_core.networks.unet_blocks import UNetConfig

__all__ = [
    "NETWORK_PRESETS",
    "FusionConfig",
    "FusionNet",
    "MFdiff",
    "MFdiffConfig",
    "UNet",
    "UNetConfig",
    "network_preset",
]
