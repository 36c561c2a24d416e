"""A restoration model: a network, the diffusion it serves and the sampler that uses it.

`RestorationModel.forward` is one training loss (Eq. 9); `RestorationModel.restore` is
x_S = f(x_P, x_M) (Eq. 1). Images go in and come out in intensity units, about [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

import torch
from torch import nn

from mfdiff_core.diffusion.noise import NoiseSource
from mfdiff_core.diffusion.process import (
    DiffusionConfig,
    DiffusionProcess,
    from_diffusion,
    to_diffusion,
)
from mfdiff_core.diffusion.samplers import SamplerConfig, sample
from mfdiff_core.errors import ConfigError
from mfdiff_core.networks.mfdiff import MFdiff, MFdiffConfig
from mfdiff_core.networks.presets import NETWORK_PRESETS, network_preset
from mfdiff_core.seeding import derive_seed

Layout = Literal["channels_last", "contiguous", "mixed"]
"""``mixed`` is channels_last for the fusion module only."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides what a model computes; stored in its bundle as ``config.json``."""

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


class Restored(NamedTuple):
    """Restored slices [B, 1, H, W] in intensity units and the spread of K samples (0 if K = 1)."""

    x_s: torch.Tensor
    spread: torch.Tensor


class RestorationModel(nn.Module):
    """MFdiff: fusion-conditioned diffusion from (x_P, x_M) to x_S."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = MFdiff(config.network)
        self.process = DiffusionProcess(config.diffusion)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move the noise schedule along with the weights; it is no part of the state."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.process = DiffusionProcess(self.config.diffusion, next(self.parameters()).device)
        return self

    def forward(
        self,
        x_p: torch.Tensor,
        x_m: torch.Tensor,
        x_s: torch.Tensor,
        t: torch.Tensor,
        eps: torch.Tensor,
        f: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of Eq. (9) for drawn steps and noise, a scalar.

        Args:
            x_p, x_m, x_s: images [B, 1, H, W] in intensity units.
            t: 0-based diffusion steps, int64 [B].
            eps: standard normal noise [B, 1, H, W].
            f: what `fuse` gives for x_p and x_m, where it is known.
        """
        p, x_0 = to_diffusion(x_p), to_diffusion(x_s)
        x_t = self.process.add_noise(x_0, t, eps)
        output = self.network(x_t, t, p, self.fuse(x_p, x_m) if f is None else f)
        return self.process.loss(output, x_0, t, eps, p)

    def fuse(self, x_p: torch.Tensor, x_m: torch.Tensor) -> torch.Tensor:
        """Fused features F [B, C, h, w] of images [B, 1, H, W] in intensity units."""
        f: torch.Tensor = self.network.fuse(to_diffusion(x_p), to_diffusion(x_m))
        return f

    @property
    def fusion_is_frozen(self) -> bool:
        """Whether F of an image stays what it is during training."""
        return not any(p.requires_grad for p in self.network.fusion.parameters())

    def set_layout(self, layout: Layout) -> None:
        """Choose how activations and weights lie in memory; results agree up to rounding."""
        formats = {
            "channels_last": (torch.channels_last, torch.channels_last),
            "contiguous": (torch.contiguous_format, torch.contiguous_format),
            "mixed": (torch.channels_last, torch.contiguous_format),
        }
        fusion, unet = formats[layout]
        self.network.set_memory_format(fusion=fusion, unet=unet)

    @torch.no_grad()
    def restore(
        self,
        x_p: torch.Tensor,
        x_m: torch.Tensor,
        keys: Sequence[str],
        *,
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Restored:
        """Restore slices; the fusion runs once per slice, whatever the number of steps.

        Args:
            x_p, x_m: images [B, 1, H, W] in intensity units.
            keys: one name per slice; its noise depends on (seed, name) alone.
            seed: seed of the restoration noise.
            sampler: instead of the model's own sampler.
            on_step: called after each network evaluation with (done, total).
        """
        p, f = to_diffusion(x_p), self.fuse(x_p, x_m)

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.network(x_t, t, p, f)
            return output

        noise = NoiseSource(seed, keys, (x_p.shape[-2], x_p.shape[-1]), x_p.device)
        drawn = sample(predict, self.process, p, noise, sampler or self.config.sampler, on_step)
        # An affine map of [0, 1] to [-1, 1] doubles every spread.
        return Restored(from_diffusion(drawn.mean).clamp_min(0), drawn.std / 2)


def build_model(config: ModelConfig, seed: int) -> RestorationModel:
    """A model with fresh weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        return RestorationModel(config)


PRESETS = NETWORK_PRESETS
_FEW_STEPS = {
    "diffusion": DiffusionConfig(target="x0", residual=True, smoothing_px=0.9, output_scale=0.1),
    "sampler": SamplerConfig(name="ddim", num_evaluations=2),
}
_AS_IN_THE_PAPER = {
    "diffusion": DiffusionConfig(target="eps"),
    "sampler": SamplerConfig(name="ddpm", num_evaluations=1000),
}


def preset(name: str) -> ModelConfig:
    """Named model: ``tiny``, ``quick``, ``small``, ``base``, ``paper``.

    All but ``paper`` predict x_0 as a correction of the LPET and restore in two evaluations;
    PAPER.md says why.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; valid presets are {', '.join(PRESETS)}")
    parts = _AS_IN_THE_PAPER if name == "paper" else _FEW_STEPS
    return ModelConfig(network=network_preset(name), **parts)  # type: ignore[arg-type]


def stage_depths(groups: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Stages between each parameter and the output, for layer-wise learning rates."""
    order = ("up", "middle", "down", "unet_in", "decoder", "aggregation", "global", "encoders")
    beside = {"time": "middle", "detail": "global"}
    return {
        name: order.index(beside.get(group, group))
        for group, names in groups.items()
        for name in names
    }
