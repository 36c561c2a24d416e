"""Patches: images as frequency coefficients on a coarser grid, and back.

With a patch size p > 1 each p x p patch becomes p*p channels of one pixel: its orthonormal
cosine transform. Neighbouring pixels are nearly equal, so as raw channels they would be almost
collinear and training would crawl; coefficients are almost uncorrelated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchTransform(nn.Module):
    """Orthonormal 2-D cosine transform of p x p patches; the identity for p = 1.

    Args:
        patch_size: p.
    """

    basis: Tensor
    whitening: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        basis = _cosine_basis(patch_size)
        gain = _whitening_gain(patch_size)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("whitening", basis * gain[:, None, None, None], persistent=False)

    def split(self, x: Tensor, *, whiten: bool = False) -> Tensor:
        """Coefficients [B, k*p*p, H/p, W/p] of images [B, k, H, W].

        Args:
            x: images.
            whiten: scale each coefficient to about unit variance, for images of a brain; noise
                has that as it is.

        Raises:
            ValueError: H or W is no multiple of p; the rest would be cut off.
        """
        if self.patch_size == 1:
            return x
        height, width = x.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patches of {self.patch_size} pixels need sizes divisible by {self.patch_size},"
                f" got {height}x{width}"
            )
        kernel = (self.whitening if whiten else self.basis).to(x.dtype)
        patches = F.conv2d(x.flatten(0, 1).unsqueeze(1), kernel, stride=self.patch_size)
        return patches.reshape(len(x), -1, *patches.shape[2:])

    def join(self, coefficients: Tensor) -> Tensor:
        """Image [B, 1, H, W] of unscaled coefficients [B, p*p, H/p, W/p]."""
        if self.patch_size == 1:
            return coefficients
        kernel = self.basis.to(coefficients.dtype)
        return F.conv_transpose2d(coefficients, kernel, stride=self.patch_size)


def _cosine_basis(p: int) -> Tensor:
    """Kernels [p*p, 1, p, p] of the orthonormal cosine transform, vertical frequency first."""
    pixel = torch.arange(p, dtype=torch.float64) + 0.5
    frequency = torch.arange(p, dtype=torch.float64)
    lines = torch.cos(math.pi / p * frequency[:, None] * pixel) * math.sqrt(2.0 / p)
    lines[0] /= math.sqrt(2.0)
    return torch.einsum("iy,jx->ijyx", lines, lines).reshape(p * p, 1, p, p).float()


def _whitening_gain(p: int) -> Tensor:
    """Gain [p*p] of each coefficient: (3 + 10 r) / p at radial frequency r = 0 ... p.

    Brain images fall off as one over the frequency. On simulated LPET (128 px, diffusion units)
    the standard deviation is 0.37 p at r = 0 and p / (10 r) to p / (13 r) above, p = 2, 4, 8.
    """
    frequency = torch.arange(p, dtype=torch.float64)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).flatten()
    return ((3.0 + 10.0 * radius) / p).float()
