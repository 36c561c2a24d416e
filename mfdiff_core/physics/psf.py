"""Point spread function: a separable Gaussian in image space, equal to its own adjoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))
_TRUNCATE = 4.0  # in sigma; what lies beyond holds 6e-5 of the kernel


class GaussianBlur:
    """Gaussian blur of images [H, W, B] in H and W; zero outside, so the operator is symmetric.

    Args:
        fwhm_mm: full width at half maximum; 0 leaves images as they are.
        voxel_mm: pixel size.

    Raises:
        ValueError: negative width.
    """

    def __init__(self, fwhm_mm: float, voxel_mm: float) -> None:
        if fwhm_mm < 0:
            raise ValueError(f"fwhm_mm must not be negative, got {fwhm_mm=}")
        self.weights = _kernel(fwhm_mm / FWHM_PER_SIGMA / voxel_mm)

    def __call__(self, x: Tensor) -> Tensor:
        """Blurred copy of ``x`` [H, W, ...]; applying it twice to <x, y> shows the symmetry."""
        if len(self.weights) == 1:
            return x
        return self._along_columns(self._along_rows(x))

    def _along_rows(self, x: Tensor) -> Tensor:
        y = x * self.weights[0]
        for shift, weight in enumerate(self.weights[1:], 1):
            y[shift:].add_(x[:-shift], alpha=weight)
            y[:-shift].add_(x[shift:], alpha=weight)
        return y

    def _along_columns(self, x: Tensor) -> Tensor:
        y = x * self.weights[0]
        for shift, weight in enumerate(self.weights[1:], 1):
            y[:, shift:].add_(x[:, :-shift], alpha=weight)
            y[:, :-shift].add_(x[:, shift:], alpha=weight)
        return y


def _kernel(sigma_px: float) -> list[float]:
    """Weights at distance 0, 1, 2... pixels; both sides together sum to one."""
    if sigma_px == 0:
        return [1.0]
    radius = max(1, round(_TRUNCATE * sigma_px))
    half = torch.exp(-0.5 * (torch.arange(radius + 1, dtype=torch.float64) / sigma_px) ** 2)
    return (half / (half[0] + 2 * half[1:].sum())).tolist()
