"""A comparison system as a model, so that it is trained and used as MFdiff is.

Batch norms make its losses depend on how many rows a worker takes at once: unlike MFdiff's they
change with the number of workers and with micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfdiff_core.comparison import System, SystemConfig, build_system
from mfdiff_core.diffusion.noise import NoiseSource
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import ConfigError
from mfdiff_core.model.restoration_model import RestorationModel, Restored

NEEDS_SINOGRAMS = (
    "reconstructs from measured sinograms, which images do not carry; only a phantom set made by"
    " `mfdiff-platform simulate --domain phantom --sinograms` does"
)
"""Why a system cannot be used; its name goes before."""


class ComparisonModel(RestorationModel):
    """A system of `comparison` in MFdiff's place."""

    network: System

    def __init__(self, config: SystemConfig) -> None:
        super().__init__()
        self.config = config  # type: ignore[assignment]  # AnyModelConfig lists them all
        self.network = build_system(config)

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam, as published."""
        return self.network.betas

    @property
    def adversary(self) -> frozenset[nn.Parameter]:
        """The discriminator's parameters."""
        judge = self.network.discriminator
        return frozenset() if judge is None else frozenset(judge.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set the mode; batch norms that are frozen as a whole keep their statistics too."""
        super().train(mode)
        for norm in self._batch_norms():
            if not any(p.requires_grad for p in norm.parameters()):
                norm.eval()
        return self

    @property
    def needs_sinograms(self) -> bool:
        """Whether the system reconstructs."""
        return self.network.needs_sinograms

    def statistics(self) -> list[Tensor]:
        """Running statistics of the batch norms."""
        return [buffer for norm in self._batch_norms() for buffer in norm.buffers()]

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def draw(self, shape: torch.Size, progress: float, source: torch.Generator) -> list[Tensor]:
        """See `System.draw`."""
        return self.network.draw(shape, progress, source)

    def forward(
        self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *drawn: Tensor, f: Tensor | None = None
    ) -> Tensor:
        """Sum of all the system's losses, see `Losses.total`."""
        loss: Tensor = self.network(x_p, x_m, x_s, *drawn)
        return loss

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
        """Restore slices.

        Raises:
            ConfigError: a sampler was given, which only MFdiff has; or no sinograms, which the
                system needs.
        """
        if sampler is not None:
            raise ConfigError(f"{self.config.system} has no sampler to replace; only mfdiff has")
        noise = NoiseSource(seed, keys, (x_p.shape[-2], x_p.shape[-1]), x_p.device)
        scan: tuple[Tensor, ...] = ()
        if self.needs_sinograms:
            if sinograms is None:
                raise ConfigError(f"{self.config.system} {NEEDS_SINOGRAMS}")
            scan = sinograms.unbind(1)
        drawn = self.network.restore(x_p, x_m, noise, *scan, on_step=on_step)
        return Restored(drawn.mean, drawn.std)
