"""The comparison systems by name, at the sizes of the presets.

`base` and `paper` are the published sizes (for the ablations, the fusion of that preset). The
smaller presets narrow every network to about MFdiff's parameters there, 0.5 to 0.8 million;
FB-SEM is small as published, and takes fewer passes over the data instead. What works on patches
in MFdiff's preset does so in CSRD's and the ablations' too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from mfdiff_core.comparison.ablations import (
    BRANCHES,
    AblationConfig,
    AblationName,
    AblationUNet,
)
from mfdiff_core.comparison.cncl import CNCL, CNCLConfig
from mfdiff_core.comparison.csrd import CSRD, CSRDConfig
from mfdiff_core.comparison.ea_gan import EAGAN, EAGANConfig
from mfdiff_core.comparison.fb_sem import FBSEM, FBSEMConfig
from mfdiff_core.comparison.hi_net import HiNet, HiNetConfig
from mfdiff_core.comparison.m_unet import MUNet, MUNetConfig
from mfdiff_core.comparison.score_unet import ScoreUNetConfig
from mfdiff_core.comparison.system import System, SystemConfig
from mfdiff_core.networks.presets import network_preset


class Kind(NamedTuple):
    """A system's config and class, and what its smaller presets change.

    Attributes:
        config: config class; its defaults are the published system.
        system: built from one config.
        narrow: changes of `quick` and `small`, on 128 pixels.
        tiny: further changes of `tiny`, on 32 pixels.
    """

    config: Callable[..., Any]
    system: Callable[[Any], System]
    narrow: Mapping[str, Any]
    tiny: Mapping[str, Any] = {}


SYSTEMS: Mapping[str, Kind] = {
    "m-unet": Kind(MUNetConfig, MUNet, {}),
    "fb-sem": Kind(FBSEMConfig, FBSEM, {"train_iterations": 2, "restore_iterations": 2}),
    "ea-gan": Kind(
        EAGANConfig, EAGAN, {"channels": 10, "discriminator_channels": 10}, {"num_downs": 5}
    ),
    "hi-net": Kind(
        HiNetConfig,
        HiNet,
        {"channels": 13, "discriminator_channels": 13},
        {"discriminator_halvings": 3},
    ),
    "cncl": Kind(CNCLConfig, CNCL, {"channels": 8, "discriminator_channels": 8}),
    "csrd": Kind(
        CSRDConfig, CSRD, {"unet": ScoreUNetConfig(channels=16, blocks=2), "residual_std": 0.07}
    ),
    **{
        name: Kind(AblationConfig, AblationUNet, {"widths": (9, 18, 36, 72, 144)})
        for name in get_args(AblationName)
    },
}
"""Every comparison system by the name it has on the command line."""


def build_system(config: SystemConfig) -> System:
    """The system of ``config``, with fresh weights from torch's global stream."""
    return SYSTEMS[config.system].system(config)


def system_preset(name: str, preset: str) -> SystemConfig:
    """Config of system ``name`` at preset ``preset``.

    Raises:
        ValueError: no such system or preset.
    """
    if name not in SYSTEMS:
        raise ValueError(f"name must be one of {', '.join(SYSTEMS)}, got {name=}")
    network, kind = network_preset(preset), SYSTEMS[name]
    values: dict[str, Any] = {"system": name, "image_size": network.image_size}
    if preset not in ("base", "paper"):
        values |= kind.narrow
    if preset == "tiny":
        values |= kind.tiny
    if kind.config in (AblationConfig, CSRDConfig):
        values |= {"patch_size": network.patch_size}
    if kind.config is AblationConfig:
        fusion = dataclasses.replace(
            network.fusion, branches=BRANCHES.get(name, network.fusion.branches)
        )
        values |= {"fusion": fusion}
    config: SystemConfig = kind.config(**values)
    return config
