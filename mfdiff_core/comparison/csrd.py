"""CSRD: diffusion of the residual x_s - x_p, given MR and LPET (Yoon et al., MICCAI 2024; [34]).

Source: the article and its official code, an extension of EDM (Karras et al. 2022, "Elucidating
the design space of diffusion-based generative models", whose equations these are). Adapted: whole
2-D slices instead of 3-D patches, hence two coordinates instead of three and box resampling.

Not reproduced of the official code: a down-sampling filter divided by the square of its sum, which
weakens shortcuts 27 times; a ramp of the learning rate over ten million images, longer than a
whole training here; gradients that are not finite turned into numbers (the loop skips the step);
averaged weights with a base of 0.9 (the loop has its own average). Negative activity is set to
zero. The standard deviation of residuals is far below the 0.5 that is assumed of the data (0.07 on
the phantom set): `residual_std` brings them there, so that all noise levels keep their meaning.

Symbols: r = x_s - x_p (times `gain`), sigma noise level [B], n = sigma * eps, F the network, D the
denoiser.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from mfdiff_core.comparison.score_unet import ScoreUNet, ScoreUNetConfig
from mfdiff_core.comparison.system import Losses, OnStep, System, SystemConfig, check_size
from mfdiff_core.diffusion.noise import Noise
from mfdiff_core.diffusion.samplers import SampleResult
from mfdiff_core.networks.patches import PatchTransform

_IMAGES, _COORDINATES = 3, 2


@dataclass(frozen=True, kw_only=True)
class CSRDConfig(SystemConfig):
    """Shape, training noise and sampler of CSRD.

    Attributes:
        unet: the network.
        sigma_data: standard deviation that is assumed of r.
        residual_std: standard deviation of x_s - x_p, which is scaled to have `sigma_data`; as
            published nothing is scaled, and both are 0.5.
        log_sigma_mean: of the training noise levels' logarithm.
        log_sigma_std: of the same.
        sigma_min: last noise level of the sampler before 0.
        sigma_max: its first.
        rho: bends the levels in between towards the low end.
        num_steps: steps of the sampler; all but the last evaluate the network twice.
        num_samples: K; the result is their mean and spread.
        patch_size: as in `MFdiffConfig`, for the presets that must do with a CPU; 1 is CSRD.
    """

    loss_text = "squared error of the residual, weighted by noise level"
    system: Literal["csrd"] = "csrd"
    unet: ScoreUNetConfig = field(default_factory=ScoreUNetConfig)
    sigma_data: float = 0.5
    residual_std: float = 0.5
    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    num_steps: int = 18
    num_samples: int = 1
    patch_size: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"0 < sigma_min < sigma_max is required, got {self.sigma_min=}, {self.sigma_max=}"
            )
        if min(self.sigma_data, self.residual_std) <= 0:
            raise ValueError(
                "standard deviations must be positive, got"
                f" {self.sigma_data=}, {self.residual_std=}"
            )
        if self.rho <= 0 or self.log_sigma_std <= 0:
            raise ValueError(
                f"rho and log_sigma_std must be positive, got {self.rho=}, {self.log_sigma_std=}"
            )
        if self.num_steps < 2 or self.num_samples < 1 or self.patch_size < 1:
            raise ValueError(
                "num_steps must be at least 2, num_samples and patch_size at least 1, got"
                f" {self.num_steps=}, {self.num_samples=}, {self.patch_size=}"
            )
        super().__post_init__()

    @property
    def sampler_text(self) -> str:
        """The sampler in words, for the foot of a table."""
        return f"Heun's method, {2 * self.num_steps - 1} evaluations a sample"

    @property
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""
        return self.patch_size << (len(self.unet.multipliers) - 1)

    @property
    def gain(self) -> float:
        """Factor on x_s - x_p that gives it `sigma_data`."""
        return self.sigma_data / self.residual_std


class CSRD(System):
    """x_p plus a sample of the residual."""

    groups = {  # noqa: RUF012
        "unet_in": ("unet.conv_in.",),
        "time": ("unet.embed.",),
        "down": ("unet.down.",),
        "middle": ("unet.middle.",),
        "up": ("unet.up.", "unet.norm_out.", "unet.conv_out."),
    }

    def __init__(self, config: CSRDConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch_size**2
        self.patches = PatchTransform(config.patch_size)
        self.unet = ScoreUNet(config.unet, _IMAGES * pixels + _COORDINATES, pixels)

    def draw(self, shape: torch.Size, progress: float, source: torch.Generator) -> list[Tensor]:
        """Noise levels sigma and noise eps."""
        log_sigma = torch.randn(shape[0], generator=source)
        sigma = (log_sigma * self.config.log_sigma_std + self.config.log_sigma_mean).exp()
        return [sigma, torch.randn(shape, generator=source)]

    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Squared error of D, weighted by 1 / c_out^2, in float32."""
        sigma, eps = extra
        r = self.config.gain * (x_s - x_p)
        level = sigma.view(-1, 1, 1, 1)
        denoised = self.denoise(r + level * eps, sigma, x_p, x_m)
        data = self.config.sigma_data
        weight = (level**2 + data**2) / (level * data) ** 2
        return Losses((weight * (denoised - r).float().square()).mean())

    def denoise(self, x: Tensor, sigma: Tensor, x_p: Tensor, x_m: Tensor) -> Tensor:
        """D(x; sigma) = c_skip x + c_out F(c_in x, conditions; c_noise) of x = r + n.

        Args:
            x: noised residuals [B, 1, H, W].
            sigma: their noise levels [B].
            x_p, x_m: conditions.
        """
        check_size(x, self.config)
        data, level = self.config.sigma_data, sigma.view(-1, 1, 1, 1)
        total = level**2 + data**2
        split = self.patches.split
        noised = split(x / total.sqrt())
        conditions = (split(x_m, whiten=True), split(x_p, whiten=True), _coordinates(noised))
        output = self.unet(torch.cat((noised, *conditions), dim=1), sigma.log() / 4)
        output = self.patches.join(output).to(x.dtype)
        denoised: Tensor = data**2 / total * x + level * data / total.sqrt() * output
        return denoised

    def levels(self) -> list[float]:
        """Noise levels of the sampler, from sigma_max to sigma_min, then 0."""
        c = self.config
        high, low = c.sigma_max ** (1 / c.rho), c.sigma_min ** (1 / c.rho)
        steps = [i / (c.num_steps - 1) for i in range(c.num_steps)]
        return [*((high + step * (low - high)) ** c.rho for step in steps), 0.0]

    @torch.no_grad()
    def restore(
        self, x_p: Tensor, x_m: Tensor, noise: Noise, *scan: Tensor, on_step: OnStep | None = None
    ) -> SampleResult:
        """Mean and spread of K samples, see `System.restore`."""
        k = self.config.num_samples
        per_sample = 2 * self.config.num_steps - 1
        done = 0

        def denoise(x: Tensor, sigma: float) -> Tensor:
            nonlocal done
            level = torch.full((len(x),), sigma, dtype=x_p.dtype, device=x.device)
            denoised = self.denoise(x.to(x_p.dtype), level, x_p, x_m)
            done += 1
            if on_step is not None:
                on_step(done, k * per_sample)
            return denoised.double()

        samples = []
        for index in range(k):
            start = self.config.sigma_max * noise(index, 0).double()
            r = heun(denoise, start, self.levels()).to(x_p.dtype)
            samples.append((x_p + r / self.config.gain).clamp_min(0))
        stacked = torch.stack(samples)
        std = stacked.std(dim=0) if k > 1 else torch.zeros_like(x_p)
        return SampleResult(stacked.mean(dim=0), std, k * per_sample)


class Denoise(Protocol):
    """D with its conditions bound."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Estimate of the clean image in x, noised by sigma."""
        ...


def heun(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """Deterministic sampler of second order, Karras et al. 2022, Algorithm 1.

    Args:
        denoise: D.
        x: start, noise of the first level.
        levels: falling noise levels, the last one 0.
    """
    for sigma, following in itertools.pairwise(levels):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (following - sigma) * slope
        if following > 0:
            ahead = (euler - denoise(euler, following)) / following
            euler = x + (following - sigma) * (slope + ahead) / 2
        x = euler
    return x


def _coordinates(x: Tensor) -> Tensor:
    """Row and column in [-1, 1], [B, 2, H, W]."""
    height, width = x.shape[-2:]
    axes = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in (height, width)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.expand(len(x), -1, -1, -1)
