"""A dataset in one table and two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfdiff_core.data.dataset import Contents
from mfdiff_core.data.facts import intensity_of
from mfdiff_core.data.slices import Shard
from mfdiff_core.errors import DataError
from mfdiff_core.evaluation.figures import Triplet, contact_sheet
from mfdiff_core.evaluation.histograms import histogram_chart
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.files import write_bytes

GREY, WHITE = 2, 3
"""BrainWeb classes."""
HEAD = 0.05
"""Share of a slice's highest SPET above which a pixel counts as head."""


class SettingSummary(NamedTuple):
    """One setting of a dataset.

    ``psnr``, ``ssim`` and ``nmse`` are the LPET's in the quantitative convention, ``paper_psnr``
    and so on in the paper's. ``noise`` is the standard deviation of LPET minus SPET in white matter
    over the SPET's mean there, and ``grey_white`` the SPET's ratio of means; both NaN where tissue
    is not known. ``level`` is the LPET's activity over the SPET's, NaN where they have no common
    scale.
    """

    setting: str
    slices: int
    subjects: int
    psnr: float
    ssim: float
    nmse: float
    noise: float
    grey_white: float
    level: float
    paper_psnr: float
    paper_ssim: float
    paper_nmse: float


def summarise_dataset(dataset: Contents) -> list[SettingSummary]:
    """A row per setting, over all subjects."""
    rows = []
    for setting in dataset.manifest.settings:
        images, subjects = _of_setting(dataset, setting)
        x_p, x_s, tissue = images["x_p"], images["x_s"], images["tissue"]
        metrics = evaluate_slices(x_p, x_s).mean()
        paper = evaluate_slices(x_p, x_s, convention="paper", window="uniform").mean()
        white, grey = tissue == WHITE, tissue == GREY
        known = bool(white.any() and grey.any())
        noise = float((x_p - x_s)[white].std() / x_s[white].mean()) if known else float("nan")
        ratio = float(x_s[grey].mean() / x_s[white].mean()) if known else float("nan")
        alike = intensity_of(dataset.manifest.facts) == "lpet"
        level = float(x_p.sum() / x_s.sum()) if alike else float("nan")
        figures = (*metrics, noise, ratio, level, *paper)
        rows.append(SettingSummary(setting, len(x_p), subjects, *figures))
    return rows


def _of_setting(dataset: Contents, setting: str) -> tuple[dict[str, np.ndarray], int]:
    """Images and tissue [N, H, W] of a setting by name, and how many subjects it has."""
    parts: dict[str, list[np.ndarray]] = {"x_p": [], "x_m": [], "x_s": [], "tissue": []}
    subjects = 0
    for shard in dataset.shards:
        rows = [row for row, info in enumerate(shard.infos) if info.setting == setting]
        subjects += bool(rows)
        for name, found in parts.items():
            found.append(shard.arrays[name][rows])
    return {name: np.concatenate(found) for name, found in parts.items()}, subjects


def write_contact_sheet(dataset: Contents, path: Path) -> None:
    """PNG with a middle slice of each setting, of the first subject that has it."""
    rows = {}
    alike = intensity_of(dataset.manifest.facts) == "lpet"
    for setting in dataset.manifest.settings:
        shard, row = _middle(dataset, setting)
        scale = np.float32(shard.infos[row].scale if alike else 1)
        x_m, x_p, x_s = (shard.arrays[name][row] for name in ("x_m", "x_p", "x_s"))
        rows[setting] = Triplet(x_m, x_p * scale, x_s * scale)
    voxel_mm = dataset.shards[0].infos[0].voxel_mm
    unit = "activity" if alike else "own maximum"
    write_bytes(path, contact_sheet(rows, unit=unit, voxel_mm=voxel_mm))


def _middle(dataset: Contents, setting: str) -> tuple[Shard, int]:
    """Where a setting is first found, and the middle one of its rows there."""
    for shard in dataset.shards:
        rows = [row for row, info in enumerate(shard.infos) if info.setting == setting]
        if rows:
            return shard, rows[len(rows) // 2]
    raise DataError(f"{dataset.folder}: no slice of setting {setting!r}")


def write_histograms(dataset: Contents, path: Path) -> None:
    """PNG with the intensities of LPET, SPET and T1 in each setting, as a network sees them."""
    rows = {}
    for setting in dataset.manifest.settings:
        images, _ = _of_setting(dataset, setting)
        head = images["x_s"] > HEAD * images["x_s"].max(axis=(1, 2), keepdims=True)
        names = {"LPET": "x_p", "SPET": "x_s", "T1": "x_m"}
        rows[setting] = {shown: images[name][head] for shown, name in names.items()}
    write_bytes(path, histogram_chart(rows))
