"""Intensity scales: what maps a slice's physical units to about [0, 1].

The PET scale comes from the LPET alone, so it is known when a new scan is restored, and divides
LPET and SPET alike. Dividing each image by its own maximum (the literal reading of Sec. 4.3.1)
makes the SPET's scale a secret that no network can know; `own_maximum` keeps that reading for
reproducing the paper's LPET row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Image = npt.NDArray[np.float32]

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
    """Scale of the paper's reading: the image's own maximum."""
    return float(image.max()) or 1.0
