"""Figures of a comparison, in the manner of the paper's Figs. 3 to 6."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import center_of_mass, label

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.data.slices import MR_LESION, PET_LESION
from mfdiff_core.evaluation.agreement import agreement_figure
from mfdiff_core.evaluation.charts import methods_chart
from mfdiff_core.evaluation.figures import Arrow, comparison_figure
from mfdiff_core.evaluation.scores import subject_regions
from mfdiff_core.evaluation.tables import Table
from mfdiff_core.files import write_bytes
from mfdiff_platform.slice_parts import by_setting

KBQ = 1e-3
"""Bq/mL to kBq/mL."""
PET_ONLY, MR_ONLY = "#39d353", "#35c7f0"
"""Green points at lesions the MR does not show, blue at those the PET does not."""


def write_figures(
    folder: Path, table: Table, restored: Mapping[str, torch.Tensor], test: SliceSet
) -> None:
    """Per setting: one slice by all methods, PSNR with intervals, and agreement of regions.

    Args:
        folder: gets ``slices-``, ``psnr-`` and ``agreement-<setting>.png``.
        table: the comparison.
        restored: slices [N, 1, H, W] by method, in the order of ``test``.
        test: the truth.
    """
    for setting, rows, part in by_setting(test):
        images = {name: x_s[rows] for name, x_s in restored.items()}
        row = _telling_row(part)
        write_bytes(folder / f"slices-{setting}.png", _slice_figure(part, images, row, table.title))
        estimates = {
            found.method: found.score.quantitative["psnr"]
            for found in table.rows
            if found.setting == setting
        }
        chart = methods_chart(estimates, title=f"{table.title}, {setting}")
        write_bytes(folder / f"psnr-{setting}.png", chart)
        last = list(images)[-1]
        regions = subject_regions(images[last], part)
        if any(regions.values()):
            figure = agreement_figure(regions, title=f"{last}, {setting}")
            write_bytes(folder / f"agreement-{setting}.png", figure)


def _telling_row(slices: SliceSet) -> int:
    """The slice with most of a lesion that only the PET shows; the middle one where none does."""
    pixels = _only(slices.lesions, PET_LESION).sum(dim=(1, 2))
    return int(pixels.argmax()) if pixels.any() else len(slices) // 2


def _only(lesions: torch.Tensor, bit: int) -> torch.Tensor:
    return lesions == bit


def _slice_figure(
    slices: SliceSet, images: Mapping[str, torch.Tensor], row: int, title: str
) -> bytes:
    info = slices.infos[row]
    scale = info.scale * KBQ
    return comparison_figure(
        {name: (x_s[row, 0] * scale).numpy() for name, x_s in images.items()},
        (slices.x_s[row, 0] * scale).numpy(),
        x_m=slices.x_m[row, 0].numpy(),
        voxel_mm=info.voxel_mm,
        title=f"{title}: {info.setting}, {info.subject}, slice {info.slice_index}",
        arrows=_arrows(slices.lesions[row]),
    )


def _arrows(lesions: torch.Tensor) -> list[Arrow]:
    """An arrow for each lesion that one image alone shows."""
    arrows: list[Arrow] = []
    for bit, colour in ((PET_LESION, PET_ONLY), (MR_LESION, MR_ONLY)):
        parts, count = label(_only(lesions, bit).numpy())
        for row, column in center_of_mass(np.ones(parts.shape), parts, range(1, count + 1)):
            arrows.append(Arrow(float(row), float(column), colour))
    return arrows
