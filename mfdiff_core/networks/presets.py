"""Named network shapes."""

from __future__ import annotations

from mfdiff_core.networks.fusion import FusionConfig
from mfdiff_core.networks.mfdiff import MFdiffConfig
from mfdiff_core.networks.unet_blocks import UNetConfig

NETWORK_PRESETS: dict[str, MFdiffConfig] = {
    # Tests: well under a second per step on one core.
    "tiny": MFdiffConfig(
        image_size=32,
        fusion=FusionConfig(channels=16, heads=4, encoder_blocks=1, decoder_blocks=1),
        unet=UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(16,)),
    ),
    # Two CPU cores and minutes of training. One norm group and two equal levels were best
    # of those tried and bear a learning rate of 4e-3; PAPER.md has the figures.
    "quick": MFdiffConfig(
        image_size=128,
        patch_size=4,
        fusion=FusionConfig(channels=16, heads=4, encoder_blocks=1, decoder_blocks=1),
        unet=UNetConfig(
            channels=48, multipliers=(1, 1), blocks=1, attention_resolutions=(16,), norm_groups=1
        ),
    ),
    # A laptop and an hour: three times the cost of `quick` per step.
    "small": MFdiffConfig(
        image_size=128,
        patch_size=2,
        fusion=FusionConfig(channels=16, heads=4, encoder_blocks=1, decoder_blocks=1),
        unet=UNetConfig(
            channels=24, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(16,), norm_groups=1
        ),
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
