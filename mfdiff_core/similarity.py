"""Structural similarity (SSIM) of images: one definition to rank by and to train with.

Source: Wang et al. 2004, DOI 10.1109/TIP.2003.819861.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Window = Literal["gaussian", "uniform"]

_C1, _C2 = 0.01**2, 0.03**2
_GAUSSIAN_SIGMA, _GAUSSIAN_RADIUS = 1.5, 5
GAUSSIAN_SIZE = 2 * _GAUSSIAN_RADIUS + 1
"""Side of the Gaussian window in pixels."""
_UNIFORM_SIZE = 7
_CPU_PIXELS = 2**17  # three slices of 192x192 and their temporaries stay in a core's cache


def ssim(x: Tensor, s: Tensor, window: Window = "gaussian") -> Tensor:
    """Structural similarity, data range 1, of images [N, H, W]; returns [N].

    Windows that would leave the image are left out, as scikit-image does. Differentiable.

    Raises:
        ValueError: the images are smaller than the window.
    """
    side = GAUSSIAN_SIZE if window == "gaussian" else _UNIFORM_SIZE
    if min(x.shape[-2:]) < side:
        raise ValueError(f"images must be at least {side} pixels wide, got {tuple(x.shape)}")
    on_cpu = x.device.type == "cpu"
    batch = max(1, _CPU_PIXELS // x[0].numel() if on_cpu else len(x))
    pairs = zip(torch.split(x, batch), torch.split(s, batch), strict=True)
    return torch.cat([_ssim(part_x, part_s, window) for part_x, part_s in pairs])


def _ssim(x: Tensor, s: Tensor, window: Window) -> Tensor:
    """SSIM by window sums rather than means, so that no rounded 1/49 biases the variances.

    The variances of x and s are needed only as their sum: four filters instead of five.
    """
    smooth = _gaussian if window == "gaussian" else _uniform_sum
    n = 1 if window == "gaussian" else _UNIFORM_SIZE**2
    correction = 1.0 if window == "gaussian" else n / (n - 1)
    c1, c2 = _C1 * n**2, _C2 * n**2
    sum_x, sum_s = smooth(x), smooth(s)
    squares = smooth((x * x).addcmul_(s, s)).mul_(n)
    products = smooth(x * s).mul_(n)
    square_sums = (sum_x * sum_x).addcmul_(sum_s, sum_s)
    sum_product = sum_x * sum_s  # not in place: the square above keeps sum_x for its gradient
    variances = squares.sub_(square_sums).mul_(correction).add_(c2)
    covariance = products.sub_(sum_product).mul_(2 * correction).add_(c2)
    luminance = sum_product.mul_(2).add_(c1).div_(square_sums.add_(c1))
    return covariance.div_(variances).mul_(luminance).mean(dim=(-2, -1))


def _gaussian_weights() -> list[float]:
    """Weights at offsets 0..5; the two-sided kernel sums to one."""
    offsets = range(_GAUSSIAN_RADIUS + 1)
    weights = [math.exp(-0.5 * (offset / _GAUSSIAN_SIGMA) ** 2) for offset in offsets]
    total = 2 * sum(weights) - weights[0]
    return [weight / total for weight in weights]


def _gaussian(images: Tensor) -> Tensor:
    """Gaussian mean of every window inside the images, by shifted sums along each axis."""
    weights = _gaussian_weights()
    for axis in (-2, -1):
        size = images.shape[axis] - 2 * _GAUSSIAN_RADIUS
        total = images.narrow(axis, _GAUSSIAN_RADIUS, size) * weights[0]
        for offset, weight in enumerate(weights[1:], start=1):
            total.add_(images.narrow(axis, _GAUSSIAN_RADIUS - offset, size), alpha=weight)
            total.add_(images.narrow(axis, _GAUSSIAN_RADIUS + offset, size), alpha=weight)
        images = total
    return images


def _uniform_sum(images: Tensor) -> Tensor:
    """Sum of every 7x7 window inside the images; sums of 2, 4 and 7 share their terms."""
    for axis in (-2, -1):
        size = images.shape[axis]
        twos = images.narrow(axis, 0, size - 1) + images.narrow(axis, 1, size - 1)
        fours = twos.narrow(axis, 0, size - 3) + twos.narrow(axis, 2, size - 3)
        sevens = fours.narrow(axis, 0, size - 6) + twos.narrow(axis, 4, size - 6)
        images = sevens.add_(images.narrow(axis, 6, size - 6))
    return images
