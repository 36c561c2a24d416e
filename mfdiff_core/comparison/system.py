"""What every comparison system is: a network with its losses and its way to restore.

A system knows no optimiser and keeps no state between steps. All that is random in a training
step is drawn by `System.draw` for the global batch, row by row, and handed back to the loss, so
that a step depends neither on the number of workers nor on what came before.

Symbols: x_p LPET, x_m MR, x_s SPET, [B, 1, H, W] in intensity units (about [0, 1]).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mfdiff_core.diffusion.noise import Noise
from mfdiff_core.diffusion.samplers import SampleResult

OnStep = Callable[[int, int], None]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True)
class SystemConfig(ABC):
    """What all systems' configs share.

    Attributes:
        loss_text: what `System.training_losses` lowers, in words, for the foot of a table.
        system: the system's name; each config class fixes it, so that it tells them apart in
            files.
        image_size: H = W of the training slices in pixels.
    """

    loss_text: ClassVar[str]
    system: str
    image_size: int = 192

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.image_size % self.size_factor:
            raise ValueError(
                f"image_size must be a multiple of {self.size_factor} for this network, got"
                f" image_size={self.image_size}"
            )

    @property
    def sampler_text(self) -> str:
        """The sampler in words, for the foot of a table; empty where one pass gives the result."""
        return ""

    @property
    @abstractmethod
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""


class Losses(NamedTuple):
    """What one training step minimises.

    Attributes:
        restoration: scalar; its gradient reaches everything but the discriminator.
        discriminator: scalar whose gradient reaches the discriminator alone; None without one.
    """

    restoration: Tensor
    discriminator: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Their sum: one backward pass gives either part its own gradient."""
        if self.discriminator is None:
            return self.restoration
        return self.restoration + self.discriminator


class System(nn.Module, ABC):
    """A restoration system as the training loop and the restorer see it.

    Attributes:
        groups: parameter name prefixes by the group that freeze plans name.
        betas: of Adam, as published.
        needs_sinograms: whether losses and restoration take the measured data.
        discriminator: of an adversarial system, None for others.
    """

    groups: ClassVar[Mapping[str, tuple[str, ...]]]
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    needs_sinograms: ClassVar[bool] = False
    discriminator: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = None

    def draw(self, shape: torch.Size, progress: float, source: torch.Generator) -> list[Tensor]:
        """What is random in a step: tensors of as many rows as the global batch.

        Args:
            shape: of the global batch's images.
            progress: share of the training that is done, in [0, 1].
            source: where randomness comes from.
        """
        return []

    @abstractmethod
    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Losses of a batch; ``extra`` is what `draw` returned for these rows."""

    def forward(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Tensor:
        """Scalar whose gradient trains all parts at once, see `Losses.total`."""
        return self.training_losses(x_p, x_m, x_s, *extra).total

    @abstractmethod
    def restore(
        self,
        x_p: Tensor,
        x_m: Tensor,
        noise: Noise,
        *scan: Tensor,
        on_step: OnStep | None = None,
    ) -> SampleResult:
        """Restored slices in intensity units, not negative; called without gradients.

        Args:
            x_p, x_m: images.
            noise: where systems that sample get their noise.
            scan: measured data and factors where `needs_sinograms`.
            on_step: called after each network evaluation with (done, total).
        """

    def parameter_groups(self) -> dict[str, list[str]]:
        """Parameter names by group; every parameter is in exactly one."""
        found: dict[str, list[str]] = {group: [] for group in self.groups}
        for name, _ in self.named_parameters():
            (group,) = (g for g, prefixes in self.groups.items() if name.startswith(prefixes))
            found[group].append(name)
        return found

    def norm_parameters(self) -> list[str]:
        """Names of the affine parameters of all normalisation layers."""
        return [
            f"{path}.{name}"
            for path, module in self.named_modules()
            if isinstance(module, NORMS)
            for name, _ in module.named_parameters(recurse=False)
        ]


def check_size(x: Tensor, config: SystemConfig) -> None:
    """Refuse images that the network cannot halve evenly."""
    height, width = x.shape[-2:]
    if height % config.size_factor or width % config.size_factor:
        raise ValueError(
            f"this network needs sizes divisible by {config.size_factor}, got {height}x{width}"
        )


class OnePassSystem(System):
    """A system that restores in one pass through its network."""

    @abstractmethod
    def estimate(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """Restored slices in intensity units, before negative activity is cut off."""

    @torch.no_grad()
    def restore(
        self, x_p: Tensor, x_m: Tensor, noise: Noise, *scan: Tensor, on_step: OnStep | None = None
    ) -> SampleResult:
        """See `System.restore`."""
        x = self.estimate(x_p, x_m).clamp_min(0)
        if on_step is not None:
            on_step(1, 1)
        return SampleResult(x, torch.zeros_like(x), 1)
