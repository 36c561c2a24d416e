"""What a restoration model is to whoever trains it, saves it or restores with it.

`RestorationModel.forward` is one training loss (`DiffusionProcess.loss` for MFdiff);
`RestorationModel.restore` is x_S = f(x_P, x_M) (Eq. 1). Images go in and come out in intensity
units, about [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mfdiff_core.comparison import System
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.model.config import AnyModelConfig
from mfdiff_core.networks.mfdiff import MFdiff

Layout = Literal["channels_last", "contiguous", "mixed"]
"""``mixed`` is channels_last for the fusion module only."""


class Restored(NamedTuple):
    """Restored slices [B, 1, H, W] in intensity units and the spread of K samples (0 if K = 1)."""

    x_s: torch.Tensor
    spread: torch.Tensor


class RestorationModel(nn.Module, ABC):
    """What is trained, saved and restored with: a network and how it is used.

    Attributes:
        config: rebuilds it.
        network: the layers; all of the model's parameters are below it.
    """

    config: AnyModelConfig
    network: MFdiff | System

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam."""
        return (0.9, 0.999)

    @property
    def adversary(self) -> frozenset[nn.Parameter]:
        """Parameters whose loss is an opponent's, so that their gradients are clipped apart."""
        return frozenset()

    def statistics(self) -> list[Tensor]:
        """What a forward pass in training changes: running statistics of batch norms."""
        return []

    @property
    def needs_sinograms(self) -> bool:
        """Whether losses and restoration take the measured data."""
        return False

    @abstractmethod
    def draw(self, shape: torch.Size, progress: float, source: torch.Generator) -> list[Tensor]:
        """What is random in a step: tensors of as many rows as the global batch.

        Args:
            shape: of the global batch's images.
            progress: share of the training that is done, in [0, 1].
            source: where randomness comes from.
        """

    @abstractmethod
    def forward(
        self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *drawn: Tensor, f: Tensor | None = None
    ) -> Tensor:
        """Training loss of a batch, a scalar.

        Args:
            x_p, x_m, x_s: images [B, 1, H, W] in intensity units.
            drawn: what `draw` returned for these rows, behind y and AN if `needs_sinograms`.
            f: what `fuse` gives for x_p and x_m, where it is known.
        """

    def set_layout(self, layout: Layout) -> None:
        """Choose how activations and weights lie in memory; results agree up to rounding."""
        contiguous = layout == "contiguous"
        wanted = torch.contiguous_format if contiguous else torch.channels_last
        self.network.to(memory_format=wanted)  # type: ignore[call-overload]

    @abstractmethod
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

        Args:
            x_p, x_m: images [B, 1, H, W] in intensity units.
            keys: one name per slice; its noise depends on (seed, name) alone.
            seed: seed of the restoration noise.
            sampler: instead of the model's own; only MFdiff has one.
            sinograms: y and AN [B, 2, views, bins]; read if `needs_sinograms`.
            on_step: called after each network evaluation with (done, total).
        """
