"""Named network shapes."""

from __future__ import annotations

from mfdiff_core.networks.fusion import FusionConfig
from mfdiff_core.networks.mfdiff import MFdiffConfig
from mfdiff_core.networks.unet import UNetConfig

NETWORK_PRESETS: dict[str, MFdiffConfig] = {
    # Tests: well under a second per step on one core.
    "tiny": MFdiffConfig(
        image_size=32,
        fusion=FusionConfig(channels=16, heads=4, encoder_blocks=1, decoder_blocks=1),
        unet=UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(16,)),
    ),
    # Two CPU cores and minutes of training.
    "quick": MFdiffConfig(
        image_size=128,
        patch_size=4,
        fusion=FusionConfig(channels=16, heads=4, encoder_blocks=1, decoder_blocks=1),
        unet=UNetConfig(
            channels=32, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(8,), norm_groups=8
        ),
    ),
    # A laptop and an hour.
    "small": MFdiffConfig(
        image_size=128,
        patch_size=2,
        fusion=FusionConfig(channels=16, heads=4, encoder_blocks=1, decoder_blocks=1),
        unet=UNetConfig(channels=32, multipliers=(1, 2, 4), blocks=1, attention_resolutions=(16,)),
    ),
    # The paper's method at half the U-Net width: one GPU.
    "base": MFdiffConfig(unet=UNetConfig(channels=64)),
    # The paper, with DDPM's widths for large images.
    "paper": MFdiffConfig(),
}


def network_preset(name: str) -> MFdiffConfig:
    """Network of preset ``name``.

    Raises:
        ValueError: no such preset.
    """
    if name not in NETWORK_PRESETS:
        raise ValueError(f"name must be one of {', '.join(NETWORK_PRESETS)}, got {name=}")
    return NETWORK_PRESETS[name]
