"""Restoration without a network: what a model must beat to be worth using.

The LPET itself, and the LPET after a Gaussian or a non-local-means filter, each tuned on
validation slices: what a clinic does today.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from skimage.restoration import denoise_nl_means

from mfdiff_core.errors import DataError
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.physics.psf import FWHM_PER_SIGMA

Slices = npt.NDArray[np.float32]

FWHM_GRID_MM = tuple(0.5 * step for step in range(31))
"""Widths tried by default: 0 to 15 mm; 0 is the LPET itself."""

STRENGTH_GRID = (0.0, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
"""Strengths of non-local means tried by default; 0 is the LPET itself."""
_PATCH_PX, _REACH_PX = 5, 6


@dataclass(frozen=True, kw_only=True)
class GaussianFilter:
    """Gaussian filter of slices, ``fwhm_mm`` wide; 0 leaves them as they are."""

    fwhm_mm: float

    def __post_init__(self) -> None:
        if not 0 <= self.fwhm_mm < math.inf:
            raise ValueError(f"fwhm_mm must be 0 or more, got fwhm_mm={self.fwhm_mm}")

    def apply(self, x_p: npt.NDArray[Any], voxel_mm: float) -> Slices:
        """Filtered float32 copy of slices [..., H, W]; the total activity is kept.

        Args:
            x_p: slices in any unit.
            voxel_mm: edge of a pixel.
        """
        sigma = self.fwhm_mm / FWHM_PER_SIGMA / voxel_mm
        images = x_p.astype(np.float32)
        if sigma == 0:
            return images
        return np.asarray(gaussian_filter(images, sigma, axes=(-2, -1)), dtype=np.float32)


def best_gaussian(
    x_p: npt.NDArray[Any],
    x_s: npt.NDArray[Any],
    voxel_mm: float,
    fwhm_grid_mm: Sequence[float] = FWHM_GRID_MM,
) -> GaussianFilter:
    """Gaussian filter with the highest mean quantitative PSNR on validation slices.

    Args:
        x_p, x_s: LPET and SPET slices [N, H, W] in the same units.
        voxel_mm: edge of a pixel.
        fwhm_grid_mm: widths tried; of equals the narrowest wins.

    Raises:
        DataError: there are no slices, or a SPET slice is empty.
    """
    if not len(x_p):
        raise DataError("no validation slices to choose the Gaussian filter on")
    candidates = [GaussianFilter(fwhm_mm=fwhm_mm) for fwhm_mm in sorted(fwhm_grid_mm)]

    def score(candidate: GaussianFilter) -> float:
        return evaluate_slices(candidate.apply(x_p, voxel_mm), x_s).mean().psnr

    return max(candidates, key=score)


@dataclass(frozen=True, kw_only=True)
class NonLocalMeans:
    """Non-local means (Buades et al. 2005): each pixel a mean of those with alike surroundings.

    Attributes:
        strength: how unlike 5x5 surroundings may be, in intensity units; 0 changes nothing.
    """

    strength: float

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength must be 0 or more, got strength={self.strength}")

    def apply(self, x_p: npt.NDArray[Any]) -> Slices:
        """Filtered float32 copy of slices [N, H, W] in intensity units."""
        images = x_p.astype(np.float32)
        if self.strength == 0:
            return images
        options = {"patch_size": _PATCH_PX, "patch_distance": _REACH_PX, "fast_mode": True}
        return np.stack([denoise_nl_means(x, h=self.strength, **options) for x in images])


def best_non_local_means(
    x_p: npt.NDArray[Any], x_s: npt.NDArray[Any], strengths: Sequence[float] = STRENGTH_GRID
) -> NonLocalMeans:
    """Strength with the highest mean quantitative PSNR on validation slices.

    Args:
        x_p, x_s: LPET and SPET slices [N, H, W] in intensity units.
        strengths: what is tried; of equals the weakest wins.

    Raises:
        DataError: there are no slices, or a SPET slice is empty.
    """
    if not len(x_p):
        raise DataError("no validation slices to choose the non-local-means filter on")
    candidates = [NonLocalMeans(strength=strength) for strength in sorted(strengths)]

    def score(candidate: NonLocalMeans) -> float:
        return evaluate_slices(candidate.apply(x_p), x_s).mean().psnr

    return max(candidates, key=score)
