"""Samplers: from noise to x_0 with a network that is bound to its conditions.

The network enters as ``predict(x_t, t) -> output`` with F already computed, so that no sampler
can compute it more than once. Images are [B, 1, H, W] in diffusion units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfdiff_core.diffusion.noise import Noise
from mfdiff_core.diffusion.process import DiffusionProcess, from_diffusion

SamplerName = Literal["ddpm", "ddim", "dpmpp2m"]
Start = Literal["noise", "lpet"]
Predict = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How x_0 is reached.

    Attributes:
        name: "ddpm" (ancestral, Eq. 8), "ddim", or "dpmpp2m" (DPM-Solver++ of order two).
        num_evaluations: network evaluations per sample; 1 is a single estimate of x_0.
        start: "noise", or "lpet" to noise the low-dose image up to `start_step`.
        start_step: step t to start from; null for the last one, T - 1.
        num_samples: K; the result is their mean and spread.
        eta: share of the ancestral noise that "ddim" adds back; 0 is deterministic.
    """

    name: SamplerName = "ddim"
    num_evaluations: int = 10
    start: Start = "noise"
    start_step: int | None = None
    num_samples: int = 1
    eta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_evaluations", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if self.start_step is not None and self.start_step < self.num_evaluations - 1:
            raise ValueError(
                "start_step must be at least num_evaluations - 1, "
                f"got start_step={self.start_step}, num_evaluations={self.num_evaluations}"
            )
        if self.start == "lpet" and self.start_step is None:
            raise ValueError("start='lpet' needs a start_step, got start_step=None")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must be in [0, 1], got eta={self.eta}")
        if self.eta > 0.0 and self.name != "ddim":
            raise ValueError(f"eta > 0 needs name='ddim', got name={self.name!r}")


class SampleResult(NamedTuple):
    """Mean and spread over K samples, and what they cost.

    Attributes:
        mean: [B, 1, H, W].
        std: unbiased standard deviation, [B, 1, H, W]; zero if K = 1.
        num_evaluations: network evaluations per image, over all K samples.
    """

    mean: Tensor
    std: Tensor
    num_evaluations: int

    def intensities(self) -> SampleResult:
        """The same in intensities instead of diffusion units."""
        return SampleResult(from_diffusion(self.mean), self.std / 2.0, self.num_evaluations)


def sampling_steps(num_evaluations: int, start_step: int) -> list[int]:
    """Steps t at which the network is evaluated, from ``start_step`` down, evenly spaced.

    The chain goes from each to the next and from the last to x_0. All steps from ``start_step``
    to 0 occur if ``num_evaluations`` is ``start_step + 1``.
    """
    length = start_step + 1
    return [
        round(length * (num_evaluations - i) / num_evaluations) - 1 for i in range(num_evaluations)
    ]


@torch.no_grad()
def sample(
    predict: Predict,
    process: DiffusionProcess,
    x_p: Tensor,
    noise: Noise,
    config: SamplerConfig,
    on_step: OnStep | None = None,
) -> SampleResult:
    """Restore a batch: K samples of x_0 given x_p, as mean and spread.

    Args:
        predict: raw network output [B, 1, H, W] for x_t and t (int64 [B]).
        process: the process the network was trained in.
        x_p: low-dose images [B, 1, H, W].
        noise: standard normal noise by sample and step, see `NoiseSource`.
        config: sampler.
        on_step: called after each evaluation with (evaluations done, evaluations in all).

    Raises:
        ValueError: more evaluations than steps, or a start beyond the last step.
    """
    last = process.num_steps - 1
    start = last if config.start_step is None else config.start_step
    if start > last or config.num_evaluations > start + 1:
        raise ValueError(
            f"a process of {process.num_steps} steps cannot start at {start} "
            f"with num_evaluations={config.num_evaluations}"
        )
    steps = sampling_steps(config.num_evaluations, start)
    total = config.num_samples * len(steps)
    samples = []
    for k in range(config.num_samples):
        chain = _Chain(predict, process, x_p, noise, config, k, on_step, total)
        samples.append(chain.run(steps))
    stacked = torch.stack(samples)
    std = stacked.std(dim=0) if config.num_samples > 1 else torch.zeros_like(x_p)
    return SampleResult(stacked.mean(dim=0), std, total)


@dataclass
class _Chain:
    """One sample on its way from the start to x_0."""

    predict: Predict
    process: DiffusionProcess
    x_p: Tensor
    noise: Noise
    config: SamplerConfig
    k: int
    on_step: OnStep | None
    total: int

    def run(self, steps: list[int]) -> Tensor:
        advance = {"ddpm": self._ddpm, "ddim": self._ddim, "dpmpp2m": self._dpmpp2m}
        x_t = self._start(steps[0])
        previous: tuple[int, Tensor] | None = None
        for index, (t, s) in enumerate(zip(steps, [*steps[1:], -1], strict=True)):
            x_0 = self._estimate(x_t, t)
            if self.on_step is not None:
                self.on_step(self.k * len(steps) + index + 1, self.total)
            x_t = x_0 if s < 0 else advance[self.config.name](x_0, x_t, t, s, previous)
            previous = (t, x_0)
        return x_t

    def _start(self, t: int) -> Tensor:
        z = self.noise(self.k, self.process.num_steps)
        if self.config.start == "noise":
            return z
        return self.process.add_noise(self.x_p, self._steps(t), z)

    def _estimate(self, x_t: Tensor, t: int) -> Tensor:
        steps = self._steps(t)
        return self.process.predict_x0(self.predict(x_t, steps), x_t, steps, self.x_p)

    def _steps(self, t: int) -> Tensor:
        return torch.full((len(self.x_p),), t, dtype=torch.int64, device=self.x_p.device)

    def _ddpm(
        self, x_0: Tensor, x_t: Tensor, t: int, s: int, previous: tuple[int, Tensor] | None
    ) -> Tensor:
        """Ancestral step, Eq. (8), by way of the clipped x_0."""
        mean = self.process.posterior_mean(x_0, x_t, t, s)
        return mean + self.process.sigma(t, s) * self.noise(self.k, t)

    def _ddim(
        self, x_0: Tensor, x_t: Tensor, t: int, s: int, previous: tuple[int, Tensor] | None
    ) -> Tensor:
        """DDIM: keep the predicted noise direction, renew the share eta of it."""
        bar_t, bar_s = (self.process.schedule.alpha_bar_at(step) for step in (t, s))
        eps = (x_t - math.sqrt(bar_t) * x_0) / math.sqrt(1.0 - bar_t)
        fresh = self.config.eta * math.sqrt((1.0 - bar_s) / (1.0 - bar_t) * (1.0 - bar_t / bar_s))
        kept = math.sqrt(1.0 - bar_s - fresh**2)
        x_s = math.sqrt(bar_s) * x_0 + kept * eps
        return x_s + fresh * self.noise(self.k, t) if fresh else x_s

    def _dpmpp2m(
        self, x_0: Tensor, x_t: Tensor, t: int, s: int, previous: tuple[int, Tensor] | None
    ) -> Tensor:
        """DPM-Solver++(2M): exact in the linear part, x_0 extrapolated from two estimates."""
        bar_t, bar_s = (self.process.schedule.alpha_bar_at(step) for step in (t, s))
        gain = self._log_snr(s) - self._log_snr(t)
        if previous is not None:
            before, x_0_before = previous
            ratio = (self._log_snr(t) - self._log_snr(before)) / gain
            x_0 = x_0 + (x_0 - x_0_before) / (2.0 * ratio)
        shrink = math.sqrt((1.0 - bar_s) / (1.0 - bar_t))
        return shrink * x_t - math.sqrt(bar_s) * math.expm1(-gain) * x_0

    def _log_snr(self, t: int) -> float:
        """Logarithm of the ratio of signal to noise amplitude at t."""
        bar = self.process.schedule.alpha_bar_at(t)
        return 0.5 * math.log(bar / (1.0 - bar))
