"""Configs of all models, and their named sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, overload

from mfdiff_core.comparison import SYSTEMS, system_preset
from mfdiff_core.comparison.ablations import AblationConfig
from mfdiff_core.comparison.cncl import CNCLConfig
from mfdiff_core.comparison.csrd import CSRDConfig
from mfdiff_core.comparison.ea_gan import EAGANConfig
from mfdiff_core.comparison.fb_sem import FBSEMConfig
from mfdiff_core.comparison.hi_net import HiNetConfig
from mfdiff_core.comparison.m_unet import MUNetConfig
from mfdiff_core.diffusion.process import DiffusionConfig
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import ConfigError
from mfdiff_core.networks.mfdiff import MFdiffConfig
from mfdiff_core.networks.presets import NETWORK_PRESETS, network_preset
from mfdiff_core.similarity import GAUSSIAN_SIZE


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides what MFdiff computes; stored in its bundle as ``config.json``."""

    system: Literal["mfdiff"] = "mfdiff"
    network: MFdiffConfig = field(default_factory=lambda: network_preset("base"))
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        last = self.diffusion.num_steps - 1
        start = last if self.sampler.start_step is None else self.sampler.start_step
        if not self.sampler.num_evaluations - 1 <= start <= last:
            raise ValueError(
                f"a process of {self.diffusion.num_steps} steps cannot start at {start} with"
                f" {self.sampler.num_evaluations=}"
            )
        if self.diffusion.ssim_weight > 0.0 and self.network.image_size < GAUSSIAN_SIZE:
            raise ValueError(
                f"diffusion.ssim_weight needs images of {GAUSSIAN_SIZE} pixels or more, or must be"
                f" 0; got network.image_size={self.network.image_size}"
            )

    @property
    def loss_text(self) -> str:
        """The loss in words, for the foot of a table."""
        return self.diffusion.loss_text

    @property
    def sampler_text(self) -> str:
        """The sampler in words, for the foot of a table."""
        return f"{self.sampler.name}, {self.sampler.num_evaluations} evaluations a sample"

    @property
    def image_size(self) -> int:
        """H = W of the training slices in pixels."""
        return self.network.image_size


AnyModelConfig = (
    ModelConfig
    | MUNetConfig
    | FBSEMConfig
    | EAGANConfig
    | HiNetConfig
    | CNCLConfig
    | CSRDConfig
    | AblationConfig
)
"""Config of any model; in files its ``system`` says of which, and MFdiff's where there is none."""

MODELS = ("mfdiff", *SYSTEMS)
"""Every model's name on the command line."""
PRESETS = NETWORK_PRESETS
_FEW_STEPS = {
    "diffusion": DiffusionConfig(
        target="x0",
        residual=True,
        smoothing_px=0.9,
        noise_aware=True,
        activity_scaled=True,
        output_scale=0.1,
        clip_in_loss=True,
        ssim_weight=0.3,
    ),
    "sampler": SamplerConfig(name="ddim", num_evaluations=2),
}
_AS_IN_THE_PAPER = {
    "diffusion": DiffusionConfig(target="eps"),
    "sampler": SamplerConfig(name="ddpm", num_evaluations=1000),
}


@overload
def preset(name: str) -> ModelConfig: ...
@overload
def preset(name: str, system: str) -> AnyModelConfig: ...
def preset(name: str, system: str = "mfdiff") -> AnyModelConfig:
    """Named size of a model: ``tiny``, ``quick``, ``small``, ``base``, ``paper``.

    All but ``paper`` of MFdiff predict x_0 as a correction of the LPET and restore in two
    evaluations; PAPER.md says why. `comparison.systems` has the other systems' sizes.

    Raises:
        ConfigError: no such preset or system.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; valid presets are {', '.join(PRESETS)}")
    if system not in MODELS:
        raise ConfigError(f"unknown model {system!r}; valid models are {', '.join(MODELS)}")
    if system != "mfdiff":
        return system_preset(system, name)  # type: ignore[return-value]
    parts = _AS_IN_THE_PAPER if name == "paper" else _FEW_STEPS
    return ModelConfig(network=network_preset(name), **parts)  # type: ignore[arg-type]


def averaging(config: AnyModelConfig, num_samples: int) -> AnyModelConfig:
    """``config`` with the mean of K samples as its result; the weights stay what they are.

    Raises:
        ConfigError: the model gives one result per image, so there is nothing to take a mean of.
    """
    if isinstance(config, ModelConfig):
        return replace(config, sampler=replace(config.sampler, num_samples=num_samples))
    if isinstance(config, CSRDConfig):
        return replace(config, num_samples=num_samples)
    raise ConfigError(f"{config.system} gives one result per image: there are no samples to mean")
