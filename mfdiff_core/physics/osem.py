"""OSEM reconstruction (paper ref. [50]); with one subset it is MLEM.

Model of the data: y = AN * (A G x) + b, with the projector A, the blur G, the multiplicative
factors AN (attenuation and normalisation) and a known background b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfdiff_core.physics.projector import Projector
from mfdiff_core.physics.psf import GaussianBlur

_LEAST = 1e-5  # smallest expected value; makes 0 / 0 of empty lines 0, data are of order 1e3
_FLOOR = 1e-18  # stops pixels outside the head from becoming denormal, which is slow


def osem(
    measured: Tensor,
    factors: Tensor,
    projector: Projector,
    psf: GaussianBlur,
    num_iterations: int,
    background: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Ordered-subsets expectation maximisation from a uniform image.

    x <- x / (G A_k' AN) * G A_k' [AN y / (AN A_k G x + b)] for each subset k in turn.

    Args:
        measured: y, [views, bins, B], not negative.
        factors: AN, same shape.
        projector: A with its subsets.
        psf: G.
        num_iterations: passes over all subsets.
        background: b, same shape as ``measured``; none by default.
        start: first estimate [H, W, B]; ones by default.

    Returns:
        Images [H, W, B], never negative.
    """
    n, batch = projector.geometry.image_px, measured.shape[2]
    x = measured.new_ones(n, n, batch) if start is None else start.clone()
    an = projector.split(factors)
    weighted = [a * y for a, y in zip(an, projector.split(measured), strict=True)]
    offsets = None if background is None else projector.split(background)
    gains = [_gain(psf(projector.adjoint(k, a).view(n, n, batch))) for k, a in enumerate(an)]
    # all of the loop's memory: new pages at every step would cost as much as a blur
    near, far, scratch = (torch.empty_like(x) for _ in range(3))
    lines = torch.empty_like(weighted[0])
    for _ in range(num_iterations):
        for k in range(projector.num_subsets):
            blurred = psf(x, near, scratch).view(n * n, batch)
            expected = projector.forward(k, blurred, lines[: len(an[k])]).mul_(an[k])
            if offsets is not None:
                expected.add_(offsets[k])
            ratio = torch.div(weighted[k], expected.clamp_(min=_LEAST), out=expected)
            back = projector.adjoint(k, ratio, near.view(n * n, batch)).view(n, n, batch)
            x.mul_(psf(back, far, scratch)).mul_(gains[k])
        x.clamp_(min=_FLOOR)
    return x


def _gain(sensitivity: Tensor) -> Tensor:
    """1 / sensitivity, and 0 where no line of the subset passes."""
    return (1 / sensitivity).masked_fill_(sensitivity <= 0, 0.0)
