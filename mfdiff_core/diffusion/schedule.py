"""Noise schedule: beta, alpha and alpha_bar of Eq. (5) to (7).

Steps t are 0-based, t = 0 ... T-1; step -1 stands for the clean image, alpha_bar = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Tables over t, [T] each: float64 on the host, float32 on a device for indexing by t.

    Attributes:
        alpha_bars: cumulative product of 1 - beta, float64.
        beta: variance added at t, Eq. (6).
        alpha_bar: share of the clean image's power left at t, Eq. (7).
        sqrt_alpha_bar: factor of x_0 in x_t.
        sqrt_one_minus_alpha_bar: factor of eps in x_t.
    """

    alpha_bars: np.ndarray
    beta: Tensor
    alpha_bar: Tensor
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor

    @classmethod
    def linear(
        cls,
        num_steps: int,
        beta_start: float,
        beta_end: float,
        device: str | torch.device = "cpu",
    ) -> NoiseSchedule:
        """Schedule with beta rising linearly from ``beta_start`` to ``beta_end``."""
        betas = np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)
        alpha_bars = np.cumprod(1.0 - betas)
        tables = (betas, alpha_bars, np.sqrt(alpha_bars), np.sqrt(1.0 - alpha_bars))
        return cls(
            alpha_bars, *(torch.tensor(x, dtype=torch.float32, device=device) for x in tables)
        )

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.alpha_bars)

    def alpha_bar_at(self, t: int) -> float:
        """alpha_bar of one step in double precision; 1 for t = -1."""
        return 1.0 if t < 0 else float(self.alpha_bars[t])
