"""PSNR, SSIM and NMSE of restored slices against the standard-dose PET (Sec. 4.2).

Definitions matter more than digits here: the data range, the window and the scaling move PSNR by
five decibels on the same images. They are therefore named, few, and printed by `definition`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdiff_core.errors import DataError
from mfdiff_core.similarity import Window, ssim

Convention = Literal["quantitative", "paper"]
Images = Tensor | npt.NDArray[Any]

METRICS = ("psnr", "ssim", "nmse")
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "nmse": False}
UNITS = {"psnr": "dB", "ssim": "", "nmse": ""}

DEFINITION = {
    "quantitative": (
        "Restored and SPET in the same units, both divided by the slice's SPET maximum. Restored "
        "values are neither clipped nor renormalised. This convention ranks."
    ),
    "paper": (
        "Each image divided by its own maximum, the paper's reading; blind to a wrong scale, so "
        "shown for comparison and never used to rank."
    ),
    "gaussian": "Gaussian window 11x11, sigma 1.5, population covariance (Wang et al. 2004)",
    "uniform": "uniform window 7x7, sample covariance (the default of scikit-image)",
}
"""What is computed, part by part; `definition` puts the parts together."""


def definition(convention: Convention = "quantitative", window: Window = "gaussian") -> str:
    """Text to print with every table: exactly what its numbers are."""
    return (
        f"Metrics per axial slice, whole image, background included, data range 1, in the "
        f"{convention} convention: {DEFINITION[convention]} PSNR = -10 log10(mean((x - s)^2)); "
        f"SSIM: {DEFINITION[window]}, K1 = 0.01, K2 = 0.03, mean over windows inside the image; "
        f"NMSE = sum((x - s)^2) / sum(s^2)."
    )


class MetricRow(NamedTuple):
    """PSNR in dB, SSIM and NMSE of one slice, or their means."""

    psnr: float
    ssim: float
    nmse: float


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics of N slices: float64 arrays [N], and the definition they follow."""

    psnr: npt.NDArray[np.float64]
    ssim: npt.NDArray[np.float64]
    nmse: npt.NDArray[np.float64]
    convention: Convention = "quantitative"
    window: Window = "gaussian"

    def __len__(self) -> int:
        return len(self.psnr)

    def mean(self) -> MetricRow:
        """Mean over slices, each counted once."""
        return MetricRow(*(float(getattr(self, name).mean()) for name in METRICS))

    def rows(self) -> list[MetricRow]:
        """One row per slice, in the order given."""
        columns = (getattr(self, name).tolist() for name in METRICS)
        return [MetricRow(*row) for row in zip(*columns, strict=True)]

    @property
    def definition(self) -> str:
        """Text that says exactly what these numbers are."""
        return definition(self.convention, self.window)


def psnr(x: Tensor, s: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, data range 1, of images [N, H, W]; returns [N]."""
    return -10 * torch.log10(_mean_square(x - s))


def nmse(x: Tensor, s: Tensor) -> Tensor:
    """Squared error over the squared reference ``s``, of images [N, H, W]; returns [N]."""
    return _mean_square(x - s) / _mean_square(s)


def slice_metrics(
    restored: Tensor,
    x_s: Tensor,
    convention: Convention = "quantitative",
    window: Window = "gaussian",
) -> Tensor:
    """PSNR, SSIM, NMSE of images [N, H, W] as a tensor [3, N] on their device, without a sync.

    A slice whose SPET is empty has no metrics: its column is not finite. Restored values that
    are not finite make their column NaN.
    """
    scale = _maximum(x_s)
    own = scale if convention == "quantitative" else _maximum(restored)
    x, s = restored / own, x_s / scale
    return torch.stack([psnr(x, s), ssim(x, s, window), nmse(x, s)])


def evaluate_slices(
    restored: Images,
    x_s: Images,
    convention: Convention = "quantitative",
    window: Window = "gaussian",
) -> Metrics:
    """Metrics of restored slices against the SPET.

    Args:
        restored, x_s: images [N, H, W] in the same units, tensors or arrays; float64 is kept,
            everything else is computed as float32.
        convention: how intensities are scaled, see `DEFINITION`.
        window: SSIM window, see `DEFINITION`.

    Raises:
        ValueError: shapes differ or are not [N, H, W]; unknown convention or window.
        DataError: a SPET slice is empty or holds NaN, so nothing can be compared with it.
    """
    x, s = _images(restored), _images(x_s)
    if x.shape != s.shape or x.ndim != 3 or not len(x):
        raise ValueError(
            f"restored and x_s must be [N, H, W] alike, got {tuple(x.shape)} and {tuple(s.shape)}"
        )
    if convention not in get_args(Convention) or window not in get_args(Window):
        raise ValueError(f"unknown {convention=} or {window=}")
    peaks = s.amax(dim=(1, 2))
    bad = (~(torch.isfinite(peaks) & (peaks > 0))).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"SPET slices {bad[:8]} of {len(s)} are empty or not finite; "
            "leave them out of the evaluation"
        )
    values = slice_metrics(x, s, convention, window).double().cpu().numpy()
    return Metrics(values[0], values[1], values[2], convention, window)


def _images(images: Images) -> Tensor:
    if isinstance(images, Tensor):
        tensor = images.detach()
    else:  # torch takes neither read-only views, such as mapped shards, nor flipped ones
        tensor = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _maximum(images: Tensor) -> Tensor:
    """Maximum per image [N, 1, 1]; 1 where nothing is positive, NaN where there is one."""
    peak = images.amax(dim=(-2, -1), keepdim=True)
    return torch.where(peak <= 0, torch.ones_like(peak), peak)


def _mean_square(images: Tensor) -> Tensor:
    return images.square().mean(dim=(-2, -1))
