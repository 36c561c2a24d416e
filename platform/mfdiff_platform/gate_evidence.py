"""What is measured on held-out subjects before a model may become champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.evaluation.lesions import (
    LesionSummary,
    null_excesses,
    score_lesions,
    summarise_lesions,
)
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.evaluation.regions import (
    Mask,
    activity_ratio,
    region_bias,
    simulated_regions,
    t1_regions,
)
from mfdiff_core.evaluation.statistics import Estimate, coverage, paired_difference
from mfdiff_core.evaluation.validation import restore_slices

Images = npt.NDArray[np.float32]

_SEED = 0  # of noise and bootstrap: the same model on the same slices gets the same verdict


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Figures of one model on the test subjects of its dataset.

    Attributes:
        model, weights_sha256: which model.
        data_fingerprint, setting, subject_names, slices: what it was measured on.
        champion: the present champion, "" if there is none.
        missing_provenance: what is not on record about it.
        gain_over_lpet: PSNR difference in dB.
        gain_over_champion: the same; None without another model as champion.
        activity_bias: relative error of total activity, mean size over subjects and the worst.
        region_bias: relative error of each region's mean, mean over subjects.
        lesions: None where the slices mark none.
        notes: what a reader of the verdict must know.
    """

    model: str
    weights_sha256: str
    data_fingerprint: str
    setting: str
    subject_names: tuple[str, ...]
    slices: int
    champion: str
    missing_provenance: tuple[str, ...]
    gain_over_lpet: Estimate
    gain_over_champion: Estimate | None
    activity_bias: tuple[float, float]
    region_bias: Mapping[str, float]
    lesions: LesionSummary | None
    notes: tuple[str, ...]


def restore_test(bundle: Bundle, test: SliceSet) -> Images:
    """The bundle's restoration of a set in intensity units [N, H, W], on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    restored = restore_slices(bundle.model().to(device), test, seed=_SEED).x_s
    return _array(restored)


def psnr_gain(first: Images, second: Images, test: SliceSet) -> Estimate:
    """PSNR of ``first`` minus that of ``second``, subjects as units, with its interval."""
    x_s, subjects = _array(test.x_s), [info.subject for info in test.infos]
    ours, theirs = (evaluate_slices(images, x_s).psnr for images in (first, second))
    return paired_difference(ours, theirs, subjects, seed=_SEED).estimate


def activity_biases(restored: Images, test: SliceSet) -> dict[str, float]:
    """Relative error of each subject's total activity."""
    scale, x_s = test.scale.numpy()[:, None, None], _array(test.x_s)
    return {
        subject: activity_ratio((restored * scale)[rows], (x_s * scale)[rows]) - 1
        for subject, rows in _rows(test).items()
    }


def region_biases(restored: Images, test: SliceSet) -> dict[str, float]:
    """Relative error of each region's mean activity, mean over subjects."""
    scale, x_s = test.scale.numpy()[:, None, None], _array(test.x_s)
    found: dict[str, list[float]] = {}
    for rows in _rows(test).values():
        regions = _regions(test, rows)
        for bias in region_bias((restored * scale)[rows], (x_s * scale)[rows], regions):
            if math.isfinite(bias.mean_bias):
                found.setdefault(bias.region, []).append(bias.mean_bias)
    return {name: float(np.mean(values)) for name, values in found.items()}


def lesion_summary(restored: Images, test: SliceSet) -> LesionSummary | None:
    """Lost and invented lesions; None where the slices mark none."""
    x_s, lesions = _array(test.x_s), test.lesions.numpy()
    scores = score_lesions(restored, x_s, lesions, [info.subject for info in test.infos])
    return summarise_lesions(scores, null_excesses(restored, x_s, lesions))


def notes_on(test: SliceSet, looks: int) -> tuple[str, ...]:
    """Caveats of a verdict from these slices, after ``looks`` earlier ones from the same."""
    number = len(_rows(test))
    notes = []
    if covered := coverage(number):
        subjects = "1 test subject" if number == 1 else f"{number} test subjects"
        notes.append(f"{subjects}: the nominal 95 % interval covers {covered}")
    if looks:
        notes.append(
            f"these test subjects have been used for {looks} earlier verdict(s); the more often "
            "they choose, the less they prove"
        )
    if not _has_tissue(test):
        notes.append("no tissue maps: regions are thirds of the head by T1 intensity")
    return tuple(notes)


def _regions(test: SliceSet, rows: Sequence[int]) -> dict[str, Mask]:
    if _has_tissue(test):
        known = simulated_regions(test.tissue.numpy()[rows], test.lesions.numpy()[rows])
        return {name: known[name] for name in ("grey matter", "white matter")}
    return t1_regions(_array(test.x_m)[rows], _array(test.x_s)[rows])


def _has_tissue(test: SliceSet) -> bool:
    regions = simulated_regions(test.tissue.numpy(), test.lesions.numpy())
    return bool(regions["grey matter"].any() and regions["white matter"].any())


def _rows(test: SliceSet) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, info in enumerate(test.infos):
        rows.setdefault(info.subject, []).append(row)
    return rows


def _array(images: Any) -> Images:
    array: Images = images[:, 0].cpu().numpy()
    return array
