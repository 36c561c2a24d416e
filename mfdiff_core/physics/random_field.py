"""Smooth random fields: the randomness of shapes, textures and shading."""

from __future__ import annotations

import numpy as np

from mfdiff_core.physics.phantom import Floats

_SPACING_SIGMA = 1.25  # wider spacing would show: the variance would differ between nodes
_EXTENT_MM = 140.0  # half width of the region that a field covers, head included
_REACH_SIGMA = 5.0  # what lies beyond weighs less than 4e-6


class RandomField:
    """Gaussian random field of unit variance in head space, smooth on the scale ``sigma_mm``.

    White noise on a grid of similar spacing, convolved with a Gaussian of that sigma. Separable,
    so three small matrix products evaluate it on any product grid; a point's value does not depend
    on which others are asked for.

    Args:
        sigma_mm: standard deviation of the smoothing kernel.
        rng: source of the noise.
        num_fields: independent fields, evaluated together.
    """

    def __init__(self, sigma_mm: float, rng: np.random.Generator, num_fields: int = 1) -> None:
        spacing = _SPACING_SIGMA * sigma_mm
        half = int(np.ceil(_EXTENT_MM / spacing)) + 3
        self.nodes_mm = np.arange(-half, half + 1, dtype=np.float32) * np.float32(spacing)
        self.sigma_mm = sigma_mm
        size = len(self.nodes_mm)
        self.noise = rng.standard_normal((num_fields, size, size, size), np.float32)

    def __call__(self, z_mm: Floats, row_mm: Floats, column_mm: Floats) -> Floats:
        """Values on the product grid, [num_fields, len(z), len(row), len(column)]."""
        across_z = self._weights(z_mm)
        near = across_z.any(0)  # few of the planes of nodes matter to few slices
        planes: Floats = np.tensordot(across_z[:, near], self.noise[:, near], axes=(1, 1))
        planes = planes.swapaxes(0, 1)
        rows: Floats = np.matmul(self._weights(row_mm), planes)
        values: Floats = np.matmul(rows, self._weights(column_mm).T)
        return values

    def _weights(self, at_mm: Floats) -> Floats:
        distance = (np.asarray(at_mm, np.float32)[:, None] - self.nodes_mm) / self.sigma_mm
        kernel = np.exp(-0.5 * distance**2)
        kernel[abs(distance) > _REACH_SIGMA] = 0
        # the sum of squares hardly varies between nodes; dividing by it gives unit variance
        unit: Floats = kernel / np.sqrt((kernel**2).sum(1, keepdims=True))
        return unit.astype(np.float32)
