"""MFdiff as a model: its network, the diffusion it serves and the sampler that uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from mfdiff_core.diffusion.noise import NoiseSource
from mfdiff_core.diffusion.process import DiffusionProcess, from_diffusion, to_diffusion
from mfdiff_core.diffusion.samplers import SamplerConfig, sample
from mfdiff_core.model.config import ModelConfig
from mfdiff_core.model.restoration_model import Layout, RestorationModel, Restored
from mfdiff_core.networks.mfdiff import MFdiff


class MFdiffModel(RestorationModel):
    """MFdiff: fusion-conditioned diffusion from (x_P, x_M) to x_S."""

    network: MFdiff

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config: ModelConfig = config
        self.network = MFdiff(config.network, noise_aware=config.diffusion.noise_aware)
        self.process = DiffusionProcess(config.diffusion)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the noise schedule along with the weights; it is no part of the state."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.process = DiffusionProcess(self.config.diffusion, next(self.parameters()).device)
        return self

    def draw(self, shape: torch.Size, progress: float, source: torch.Generator) -> list[Tensor]:
        """0-based diffusion steps t, int64 [B], and standard normal noise eps [B, 1, H, W]."""
        t = self.process.draw_timesteps(shape[0], source)
        return [t, torch.randn(shape, generator=source)]

    def forward(
        self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *drawn: Tensor, f: Tensor | None = None
    ) -> Tensor:
        """Loss for drawn t and eps, a scalar: Eq. (9), or what `DiffusionConfig` makes of it."""
        t, eps = drawn
        p, x_0 = to_diffusion(x_p), to_diffusion(x_s)
        x_t = self.process.add_noise(x_0, t, eps)
        output = self.network(x_t, t, p, self.fuse(x_p, x_m) if f is None else f)
        return self.process.loss(output, x_0, t, eps, p)

    def fuse(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """Fused features F [B, C, h, w] of images [B, 1, H, W] in intensity units."""
        return self.network.fuse(to_diffusion(x_p), to_diffusion(x_m))

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
        x_p: Tensor,
        x_m: Tensor,
        keys: Sequence[str],
        *,
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        sinograms: Tensor | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Restored:
        """Restore slices; the fusion runs once per slice, whatever the number of steps."""
        p, f = to_diffusion(x_p), self.fuse(x_p, x_m)

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            output: Tensor = self.network(x_t, t, p, f)
            return output

        noise = NoiseSource(seed, keys, (x_p.shape[-2], x_p.shape[-1]), x_p.device)
        drawn = sample(predict, self.process, p, noise, sampler or self.config.sampler, on_step)
        # An affine map of [0, 1] to [-1, 1] doubles every spread.
        return Restored(from_diffusion(drawn.mean).clamp_min(0), drawn.std / 2)
