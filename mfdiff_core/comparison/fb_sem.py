"""FB-SEM: unrolled MAP reconstruction with a learned prior (Mehranian & Reader 2020; ref. [22]).

Source: the article and its official code. Each sub-iteration is an EM step on one subset, a CNN
that reads the image and the MR, and a closed form that weighs both; all sub-iterations share the
CNN. As in the official code the EM step passes no gradient. It reconstructs from sinograms, so it
exists on simulated data only.

Adapted: intensity units (the measured data are divided by the slice's scale), so that gamma and
the CNN see the same range in every slice; gamma is the exponential of what is learned, which keeps
it positive without the official reset to 0.01; a flipped image has its sinogram flipped with it;
PET and MR both about [0, 1] rather than MR up to
5; no crop, as the grid holds little more than the head; no background, as the phantom set has none;
our projector in place of NumPy's. Where
x_em is 0 and the prior strong the published form of the root is 0 / 0; the other form of the same
root is taken there. Batch normalisation behind every convolution, the last one included, is kept.

Symbols: y measured data, AN factors, [B, views, bins]; x image [B, 1, n, n] on the grid of the
reconstruction, where LPET and MR are interpolated to; S 1 / sensitivity; r the CNN's image.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.comparison.system import Losses, OnStep, System, SystemConfig
from mfdiff_core.diffusion.noise import Noise
from mfdiff_core.diffusion.samplers import SampleResult
from mfdiff_core.physics.projector import Geometry, Projector, cached_projector
from mfdiff_core.physics.psf import GaussianBlur

_LEAST = 1e-5  # smallest expected value, as in `osem`
_PHANTOM = Geometry(image_px=128, voxel_mm=2.08626, num_bins=128, bin_mm=2.08626, num_views=252)


@dataclass(frozen=True, kw_only=True)
class FBSEMConfig(SystemConfig):
    """Reconstruction and CNN of FB-SEM.

    Attributes:
        geometry: grids of image and sinogram; the image covers the field of the slices.
        num_subsets: subsets of the views.
        train_iterations: passes over all subsets in training.
        restore_iterations: the same in restoration.
        psf_mm: FWHM of the resolution model.
        channels: of the CNN.
        layers: convolutions of the CNN.
    """

    loss_text = "squared error"
    system: Literal["fb-sem"] = "fb-sem"
    geometry: Geometry = field(default_factory=lambda: _PHANTOM)
    num_subsets: int = 6
    train_iterations: int = 8
    restore_iterations: int = 10
    psf_mm: float = 1.5
    channels: int = 32
    layers: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.num_subsets <= self.geometry.num_views:
            raise ValueError(
                f"num_subsets must be 1 to {self.geometry.num_views}, got {self.num_subsets=}"
            )
        if min(self.train_iterations, self.restore_iterations, self.channels) < 1:
            raise ValueError(
                "iterations and channels must be at least 1, got"
                f" {self.train_iterations=}, {self.restore_iterations=}, {self.channels=}"
            )
        if self.layers < 2 or self.psf_mm < 0:
            raise ValueError(
                "layers must be at least 2 and psf_mm not negative, got"
                f" {self.layers=}, {self.psf_mm=}"
            )
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Any size can be restored."""
        return 1


class FBSEM(System):
    """OSEM with a CNN between its steps; mean squared error."""

    groups = {"up": ("cnn.", "log_gamma")}  # noqa: RUF012
    needs_sinograms = True

    def __init__(self, config: FBSEMConfig) -> None:
        super().__init__()
        self.config = config
        self.cnn = _cnn(config.channels, config.layers)
        self.log_gamma = nn.Parameter(torch.rand(()).clamp_min(0.01).log())

    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Mean squared error; ``extra`` is the measured data y and the factors AN."""
        y, factors = extra
        x = self.reconstruct(x_m, y, factors, self.config.train_iterations)
        return Losses(F.mse_loss(_resized(x, x_s.shape[-1]).float(), x_s.float()))

    @torch.no_grad()
    def restore(
        self, x_p: Tensor, x_m: Tensor, noise: Noise, *scan: Tensor, on_step: OnStep | None = None
    ) -> SampleResult:
        """The reconstruction on the grid of the slices; ``scan`` is y and AN."""
        y, factors = scan
        x = self.reconstruct(x_m, y, factors, self.config.restore_iterations, on_step)
        restored = _resized(x, x_p.shape[-1]).clamp_min(0)
        evaluations = self.config.restore_iterations * self.config.num_subsets
        return SampleResult(restored, torch.zeros_like(restored), evaluations)

    def reconstruct(
        self,
        x_m: Tensor,
        y: Tensor,
        factors: Tensor,
        num_iterations: int,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Image [B, 1, n, n] from the measured data, starting from ones.

        Args:
            x_m: MR [B, 1, H, W].
            y, factors: measured data and AN [B, views, bins].
            num_iterations: passes over all subsets.
            on_step: called after each sub-iteration with (done, total).
        """
        subsets = em_subsets(self.config, y, factors)
        total = num_iterations * len(subsets)
        m = _resized(x_m, self.config.geometry.image_px)
        x = torch.ones_like(m)
        for done in range(total):
            subset = subsets[done % len(subsets)]
            x_em = subset.em_step(x)
            r = F.relu(x + self.cnn(torch.cat((x, m), dim=1)))
            x = fuse(x_em, r, self.log_gamma.exp() * subset.gain)
            if on_step is not None:
                on_step(done + 1, total)
        return x


@dataclass(frozen=True)
class EMSubset:
    """One subset of a batch's data.

    Attributes:
        projector: A with its subsets.
        blur: G.
        index: k, which subset.
        y, an: its measured data and factors [views * bins, B].
        gain: S, 1 / sensitivity [B, 1, n, n]; 0 where no line of the subset passes.
    """

    projector: Projector
    blur: GaussianBlur
    index: int
    y: Tensor
    an: Tensor
    gain: Tensor

    def em_step(self, x: Tensor) -> Tensor:
        """x S G A' [AN y / (AN A G x)] in float32; no gradient passes."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            columns = x.detach().to(self.y.dtype).permute(2, 3, 0, 1).squeeze(3).contiguous()
            lines = self.projector.forward(self.index, self.blur(columns).flatten(0, 1))
            ratio = self.an * self.y / (self.an * lines).clamp_min(_LEAST)
            back = self.blur(self.projector.adjoint(self.index, ratio).view_as(columns))
            return (columns * back).permute(2, 0, 1).unsqueeze(1) * self.gain


@torch.no_grad()
def em_subsets(config: FBSEMConfig, y: Tensor, factors: Tensor) -> list[EMSubset]:
    """The subsets of measured data y and factors [B, views, bins]."""
    n = config.geometry.image_px
    projector = cached_projector(config.geometry, config.num_subsets, y.device)
    blur = GaussianBlur(config.psf_mm, config.geometry.voxel_mm)
    parts = zip(*(projector.split(s.permute(1, 2, 0)) for s in (y, factors)), strict=True)
    subsets = []
    for k, (measured, an) in enumerate(parts):
        sensitivity = blur(projector.adjoint(k, an).view(n, n, -1)).permute(2, 0, 1).unsqueeze(1)
        gain = (1 / sensitivity).masked_fill_(sensitivity <= 0, 0.0)
        subsets.append(EMSubset(projector, blur, k, measured, an, gain))
    return subsets


def fuse(x_em: Tensor, r: Tensor, weight: Tensor) -> Tensor:
    """Positive root of w x^2 + (1 - w r) x - x_em = 0, w = gamma S; x_em itself for w = 0.

    Either form of the root is taken where it is stable.
    """
    b = 1 - weight * r
    root = (b.square() + 4 * weight * x_em + 1e-20).sqrt()
    rising = b >= 0
    below = torch.where(rising, b + root, 1.0)
    by_weight = torch.where(rising, 1.0, 2 * weight)
    return torch.where(rising, 2 * x_em / below, (root - b) / by_weight)


def _cnn(channels: int, layers: int) -> nn.Sequential:
    """3x3 convolutions with batch normalisation behind each and ReLU in between; 2 to 1 channel."""
    widths = [2, *[channels] * (layers - 1), 1]
    stages: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        stages += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*stages[:-1])


def _resized(x: Tensor, size: int) -> Tensor:
    """x [B, 1, H, W] on a grid of size x size over the same field."""
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
