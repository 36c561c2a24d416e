"""Numbers of a method on the test slices: metrics, bias of regions and activity, lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.evaluation.lesions import (
    LesionSummary,
    null_excesses,
    score_lesions,
    summarise_lesions,
)
from mfdiff_core.evaluation.metrics import Metrics, evaluate_slices
from mfdiff_core.evaluation.regions import (
    RegionBias,
    activity_ratio,
    region_bias,
    simulated_regions,
)
from mfdiff_core.evaluation.statistics import Estimate, estimate_metrics


@dataclass(frozen=True, kw_only=True)
class MeanBias:
    """Relative bias of a region's mean and maximum, averaged over subjects that have it."""

    mean: float
    maximum: float
    num_subjects: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """How restored slices fare.

    Attributes:
        subjects: subject of each slice.
        slices: quantitative metrics, slice by slice.
        quantitative, paper: estimate of each metric in either convention of `metrics`.
        regions: bias by region of simulated slices; none where there is no tissue map.
        lesions: shares of lost and invented lesions; None where there are none to judge.
        activity: total activity over that of the SPET.
    """

    subjects: tuple[str, ...]
    slices: Metrics
    quantitative: Mapping[str, Estimate]
    paper: Mapping[str, Estimate]
    regions: Mapping[str, MeanBias]
    activity: float
    lesions: LesionSummary | None


def score_slices(restored: Tensor, slices: SliceSet, *, seed: int) -> Score:
    """Score of restored slices [N, 1, H, W] in intensity units.

    Args:
        restored: in the order of ``slices``.
        slices: the truth.
        seed: of the bootstrap.
    """
    subjects = tuple(info.subject for info in slices.infos)
    x, s = restored[:, 0].cpu(), slices.x_s[:, 0].cpu()
    quantitative, paper = evaluate_slices(x, s), evaluate_slices(x, s, "paper")
    biases = [bias for part in subject_regions(restored, slices).values() for bias in part]
    scale = slices.scale.numpy()[:, None, None]
    return Score(
        subjects=subjects,
        slices=quantitative,
        quantitative=estimate_metrics(quantitative, subjects, seed=seed),
        paper=estimate_metrics(paper, subjects, seed=seed),
        regions={
            name: _mean_bias([bias for bias in biases if bias.region == name])
            for name in dict.fromkeys(bias.region for bias in biases)
        },
        activity=activity_ratio(x.numpy() * scale, s.numpy() * scale),
        lesions=_lesions(x.numpy(), s.numpy(), slices),
    )


def _lesions(x: npt.NDArray[Any], s: npt.NDArray[Any], slices: SliceSet) -> LesionSummary | None:
    maps, people = slices.lesions.numpy(), [info.subject for info in slices.infos]
    scores = score_lesions(x, s, maps, people)
    return summarise_lesions(scores, null_excesses(x, s, maps))


def subject_regions(restored: Tensor, slices: SliceSet) -> dict[str, list[RegionBias]]:
    """Regions of each subject in physical units; none where there is no tissue map."""
    found: dict[str, list[RegionBias]] = {}
    scale = slices.scale.numpy()[:, None, None]
    x, s = (_array(images) * scale for images in (restored, slices.x_s))
    people = np.array([info.subject for info in slices.infos])
    tissue, lesions = slices.tissue.numpy(), slices.lesions.numpy()
    for person in dict.fromkeys(people.tolist()) if tissue.any() else ():
        rows = people == person
        regions = simulated_regions(tissue[rows], lesions[rows])
        found[person] = region_bias(x[rows], s[rows], regions)
    return found


def _array(images: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = images[:, 0].cpu().numpy()
    return array


def _mean_bias(biases: list[RegionBias]) -> MeanBias:
    return MeanBias(
        mean=_mean([bias.mean_bias for bias in biases]),
        maximum=_mean([bias.maximum_bias for bias in biases]),
        num_subjects=len(biases),
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
