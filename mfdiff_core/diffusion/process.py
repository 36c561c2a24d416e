"""The forward process, the training target and the posterior: Eq. (6) to (9).

Symbols: x_0 standard-dose image, x_p low-dose image, x_t noised image, eps its noise, output
what the network returned; all [B, 1, H, W] in diffusion units, an output [B, 2, H, W] where the
network is told the noise level. t is 0-based, int64 [B].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mfdiff_core.diffusion.schedule import NoiseSchedule
from mfdiff_core.similarity import ssim

Target = Literal["eps", "v", "x0"]
Variance = Literal["posterior", "beta"]
_LEAST_ACTIVITY = 1e-4
"""Added to the activity that a residual is scaled by: nowhere is a correction out of reach."""


def to_diffusion(x: Tensor) -> Tensor:
    """Intensities, about [0, 1], to diffusion units, about [-1, 1]."""
    return 2.0 * x - 1.0


def from_diffusion(x: Tensor) -> Tensor:
    """Diffusion units to intensities; the inverse of `to_diffusion`."""
    return (x + 1.0) / 2.0


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The process and what the network learns in it.

    Attributes:
        num_steps: T.
        beta_start: variance of the first step.
        beta_end: variance of the last step.
        target: what the network predicts: "eps" (the paper), "v" or "x0".
        residual: with target "x0", the network predicts x_0 - x_p.
        smoothing_px: with ``residual``, standard deviation in pixels of a Gaussian that x_p passes
            before the residual is taken. A correction of the filtered image starts where a
            clinic is today and needs far fewer iterations than one of the noisy image.
        noise_aware: with ``smoothing_px``, the network is told the noise level of x_p, and returns
            a second channel: the share of what the filter took away that is put back, one number
            all over an image. How much of a scan's detail is noise differs from one protocol to
            the next.
        activity_scaled: with ``residual``, corrections count in units of twice the square root of
            the activity of what they are added to, as the noise of counts grows: the same output
            means the most where the image is bright and next to nothing outside the head. The
            unit is 1 at a quarter of the range.
        output_scale: with target "x0", the network predicts its target divided by this. A
            residual is a tenth of an image; unscaled, its gradients are so small that training
            stalls at the low-dose image.
        clip_in_loss: with target "x0", the loss is that of the estimate cut off at the lower bound
            of ``clip``, as restoration does. Where there is no activity the network may then stay
            below zero instead of cancelling each speck of noise.
        ssim_weight: with target "x0", weight of 1 - SSIM beside the squared error. SSIM is of the
            same estimate, clipped or not, in intensities; the squared error is divided by
            ``output_scale`` squared, so a weight belongs to a scale. Squared errors are those of
            the bright; SSIM is as much of the dim, the empty background included.
        variance: sigma_t^2 of Eq. (8): "posterior" or "beta".
        clip: bounds of estimates of x_0 in diffusion units; null for none. The upper bound
            leaves room above 1, as intensities are scaled by the low-dose image.
    """

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    target: Target = "eps"
    residual: bool = False
    smoothing_px: float = 0.0
    noise_aware: bool = False
    activity_scaled: bool = False
    output_scale: float = 1.0
    clip_in_loss: bool = False
    ssim_weight: float = 0.0
    variance: Variance = "posterior"
    clip: tuple[float, float] | None = (-1.0, 1.5)

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got num_steps={self.num_steps}")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ValueError(
                "0 < beta_start <= beta_end < 1 is required, "
                f"got beta_start={self.beta_start}, beta_end={self.beta_end}"
            )
        if self.residual and self.target != "x0":
            raise ValueError(f"residual=True needs target='x0', got target={self.target!r}")
        if self.smoothing_px < 0.0 or (self.smoothing_px > 0.0 and not self.residual):
            raise ValueError(
                "smoothing_px must not be negative, and 0 unless residual=True, "
                f"got smoothing_px={self.smoothing_px}, residual={self.residual}"
            )
        if self.noise_aware and self.smoothing_px == 0.0:
            raise ValueError(
                f"noise_aware=True needs smoothing_px above 0, got {self.smoothing_px=}"
            )
        if self.activity_scaled and not self.residual:
            raise ValueError("activity_scaled=True needs residual=True")
        if self.output_scale <= 0.0 or (self.output_scale != 1.0 and self.target != "x0"):
            raise ValueError(
                "output_scale must be positive, and 1 unless target='x0', "
                f"got output_scale={self.output_scale}, target={self.target!r}"
            )
        if self.clip_in_loss and (self.target != "x0" or self.clip is None):
            raise ValueError(
                "clip_in_loss=True needs target='x0' and a clip, "
                f"got target={self.target!r}, clip={self.clip}"
            )
        if not 0.0 <= self.ssim_weight < math.inf or (self.ssim_weight and self.target != "x0"):
            raise ValueError(
                "ssim_weight must be finite and not negative, and 0 unless target='x0', "
                f"got ssim_weight={self.ssim_weight}, target={self.target!r}"
            )
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip must be (low, high) with low < high, got clip={self.clip}")

    @property
    def loss_text(self) -> str:
        """The loss in words, for the foot of a table."""
        if self.target != "x0":
            return f"squared error of {({'eps': 'the noise', 'v': 'v'})[self.target]}"
        # An error of intensities is half of that in diffusion units.
        error = f"squared error over {self.output_scale / 2:g}^2"
        similarity = f" + {self.ssim_weight:g} (1 - SSIM)" if self.ssim_weight else ""
        return f"{error}{similarity}, of the{' clipped' if self.clip_in_loss else ''} clean image"


class DiffusionProcess:
    """Eq. (6) to (9) on one device.

    Args:
        config: the process.
        device: where images will be.
    """

    def __init__(self, config: DiffusionConfig, device: str | torch.device = "cpu") -> None:
        self.config = config
        self.schedule = NoiseSchedule.linear(
            config.num_steps, config.beta_start, config.beta_end, device
        )

    @property
    def num_steps(self) -> int:
        """T."""
        return self.config.num_steps

    def draw_timesteps(self, batch: int, generator: torch.Generator) -> Tensor:
        """Uniform training steps, int64 [batch], on the generator's device."""
        return torch.randint(self.num_steps, (batch,), generator=generator, device=generator.device)

    def add_noise(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t, Eq. (7)."""
        signal, noise = self._factors(t)
        return signal * x_0 + noise * eps

    def target(self, x_0: Tensor, t: Tensor, eps: Tensor, x_p: Tensor) -> Tensor:
        """What the network should return for x_t."""
        if self.config.target == "eps":
            return eps
        if self.config.target == "x0":
            if not self.config.residual:
                return x_0 / self.config.output_scale
            base = self._base(x_p)
            return (x_0 - base) / self._unit(base)
        signal, noise = self._factors(t)
        return signal * eps - noise * x_0

    def loss(self, output: Tensor, x_0: Tensor, t: Tensor, eps: Tensor, x_p: Tensor) -> Tensor:
        """Mean squared error of the target, Eq. (9), in float32; a scalar.

        With target "x0" it may be that of the clipped estimate, SSIM may count beside it, and with
        ``activity_scaled`` it is that of the image, not of the output; see `DiffusionConfig`.

        Raises:
            ValueError: SSIM counts, and images are smaller than its window.
        """
        output, config = output.float(), self.config
        of_estimate = config.clip_in_loss or config.noise_aware or config.activity_scaled
        if not (of_estimate or config.ssim_weight):
            return F.mse_loss(output, self.target(x_0, t, eps, x_p).float())
        estimate, x_0 = self._estimate(output, x_p).float(), x_0.float()
        if config.clip_in_loss and config.clip is not None:
            estimate = estimate.clamp_min(config.clip[0])
        error = ((estimate - x_0) / config.output_scale).square().mean()
        if config.ssim_weight == 0.0:
            return error
        x, s = (from_diffusion(image).flatten(0, 1) for image in (estimate, x_0))
        return error + config.ssim_weight * (1.0 - ssim(x, s).mean())

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor, x_p: Tensor) -> Tensor:
        """Estimate of x_0 from a network output, clipped to `DiffusionConfig.clip`."""
        output = output.to(x_t.dtype)
        signal, noise = self._factors(t)
        if self.config.target == "eps":
            x_0 = (x_t - noise * output) / signal
        elif self.config.target == "v":
            x_0 = signal * x_t - noise * output
        else:
            x_0 = self._estimate(output, x_p)
        return x_0 if self.config.clip is None else x_0.clamp(*self.config.clip)

    def predict_eps(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Noise that leads from (an estimate of) x_0 to x_t."""
        signal, noise = self._factors(t)
        return (x_t - signal * x_0) / noise

    def eq8_mean(self, eps: Tensor, x_t: Tensor, t: int) -> Tensor:
        """Mean of x_{t-1} as Eq. (8) prints it, from predicted noise."""
        beta = 1.0 - self.schedule.alpha_bar_at(t) / self.schedule.alpha_bar_at(t - 1)
        sigma = math.sqrt(1.0 - self.schedule.alpha_bar_at(t))
        return (x_t - beta / sigma * eps) / math.sqrt(1.0 - beta)

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: int, s: int) -> Tensor:
        """Mean of q(x_s | x_t, x_0), s < t; equals Eq. (8) for s = t - 1 without clipping."""
        from_x_0, from_x_t, _ = self._posterior(t, s)
        return from_x_0 * x_0 + from_x_t * x_t

    def sigma(self, t: int, s: int) -> float:
        """Standard deviation sigma_t of the step from t to s; 0 where the chain ends."""
        return self._posterior(t, s)[2] if s >= 0 else 0.0

    def _estimate(self, output: Tensor, x_p: Tensor) -> Tensor:
        """Estimate of x_0 from an output of target "x0", not clipped."""
        if not self.config.residual:
            return output * self.config.output_scale
        base = self._base(x_p)
        x_0 = base + output[:, :1] * self._unit(base)
        if self.config.noise_aware:
            x_0 = x_0 + output[:, 1:] * (x_p - base)
        return x_0

    def _unit(self, base: Tensor) -> Tensor | float:
        """What a residual counts in: the output scale, with the square root of the activity."""
        if not self.config.activity_scaled:
            return self.config.output_scale
        activity = from_diffusion(base).clamp_min(0.0) + _LEAST_ACTIVITY
        return 2.0 * self.config.output_scale * activity.sqrt()

    def _base(self, x_p: Tensor) -> Tensor:
        """What a residual is added to: x_p, filtered by ``smoothing_px``."""
        if self.config.smoothing_px == 0.0:
            return x_p
        radius = math.ceil(3.0 * self.config.smoothing_px)
        offsets = torch.arange(-radius, radius + 1, device=x_p.device, dtype=x_p.dtype)
        kernel = torch.exp(-0.5 * (offsets / self.config.smoothing_px) ** 2)
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
        padded = F.pad(x_p, (radius,) * 4, mode="replicate")
        # Not in bf16: the loss would be of another base than the restored image has.
        with torch.autocast(x_p.device.type, enabled=False):
            return F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))

    def _posterior(self, t: int, s: int) -> tuple[float, float, float]:
        """Factors of x_0 and x_t in the mean of x_s, and its standard deviation."""
        bar_t, bar_s = self.schedule.alpha_bar_at(t), self.schedule.alpha_bar_at(s)
        alpha = bar_t / bar_s  # of all steps between s and t
        from_x_0 = math.sqrt(bar_s) * (1.0 - alpha) / (1.0 - bar_t)
        from_x_t = math.sqrt(alpha) * (1.0 - bar_s) / (1.0 - bar_t)
        variance = 1.0 - alpha
        if self.config.variance == "posterior":
            variance *= (1.0 - bar_s) / (1.0 - bar_t)
        return from_x_0, from_x_t, math.sqrt(variance)

    def _factors(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of x_0 and eps in x_t, [B, 1, 1, 1]."""
        shape = (-1, 1, 1, 1)
        return (
            self.schedule.sqrt_alpha_bar[t].view(shape),
            self.schedule.sqrt_one_minus_alpha_bar[t].view(shape),
        )
