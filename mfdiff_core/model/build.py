"""From a config to a model with fresh weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import torch

from mfdiff_core.model.comparison_model import ComparisonModel
from mfdiff_core.model.config import AnyModelConfig, ModelConfig
from mfdiff_core.model.mfdiff_model import MFdiffModel
from mfdiff_core.model.restoration_model import RestorationModel
from mfdiff_core.seeding import derive_seed


@overload
def build_model(config: ModelConfig, seed: int) -> MFdiffModel: ...
@overload
def build_model(config: AnyModelConfig, seed: int) -> RestorationModel: ...
def build_model(config: AnyModelConfig, seed: int) -> RestorationModel:
    """A model with fresh weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        return MFdiffModel(config) if isinstance(config, ModelConfig) else ComparisonModel(config)


def stage_depths(groups: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Stages between each parameter and the output, for layer-wise learning rates."""
    order = ("up", "middle", "down", "unet_in", "decoder", "aggregation", "global", "encoders")
    beside = {"time": "middle", "detail": "global", "discriminator": "up"}
    return {
        name: order.index(beside.get(group, group))
        for group, names in groups.items()
        for name in names
    }
