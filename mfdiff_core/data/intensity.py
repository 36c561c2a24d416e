"""Intensity scales: what maps a slice's physical units to about [0, 1].

"lpet", the default: the PET scale comes from the LPET alone, so it is known when a new scan is
restored, and divides LPET and SPET alike. "own_maximum": each image by its own maximum, the literal
reading of Sec. 4.3.1. It makes the SPET's scale a secret that no network can know, and a restored
image is as wrong as the two maxima differ; it is there to compare with the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Image = npt.NDArray[np.float32]
Intensity = Literal["lpet", "own_maximum"]

SMOOTHING_SIGMA_PX = 1.0
PET_PERCENTILE = 99.5
PET_HEADROOM = 1.5
MR_PERCENTILE = 99.5


def pet_scale(x_p: Image) -> float:
    """Activity that becomes 1.0: 1.5 times the 99.5th percentile of the lightly smoothed LPET.

    Args:
        x_p: LPET slice [H, W] in physical units, not negative.

    Returns:
        A positive scale; 1.0 for an empty slice, which has nothing to normalise.
    """
    smooth = gaussian_filter(x_p.astype(np.float64), SMOOTHING_SIGMA_PX)
    scale = PET_HEADROOM * float(np.percentile(smooth, PET_PERCENTILE))
    return scale if scale > 0 else 1.0


def mr_scale(x_m: Image) -> float:
    """MR intensity that becomes 1.0: the 99.5th percentile of the slice [H, W]."""
    scale = float(np.percentile(x_m, MR_PERCENTILE))
    return scale if scale > 0 else 1.0


def own_maximum(image: Image) -> float:
    """Scale of the paper's reading: the image's own maximum; 1.0 for an empty image."""
    return float(image.max()) or 1.0


INPUT_SCALES: dict[Intensity, tuple[Callable[[Image], float], Callable[[Image], float]]] = {
    "lpet": (pet_scale, mr_scale),
    "own_maximum": (own_maximum, own_maximum),
}
"""Scales of LPET and MR by setting: all that is known when a scan is restored."""


def triplet_scales(
    x_p: Image, x_m: Image, x_s: Image, intensity: Intensity = "lpet"
) -> tuple[float, float, float]:
    """What x_p, x_m and x_s [H, W] of one slice are divided by; the default never looks at x_s."""
    of_pet, of_mr = INPUT_SCALES[intensity]
    scale = of_pet(x_p)
    return scale, of_mr(x_m), scale if intensity == "lpet" else own_maximum(x_s)
