"""What can be claimed from slices of a few subjects: the subject is the unit.

Slices of one subject resemble each other, so a mean is taken per subject first and over subjects
second, and the bootstrap draws subjects first and slices second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from mfdiff_core.evaluation.metrics import METRICS, Metrics
from mfdiff_core.seeding import rng

Values = npt.NDArray[np.float64]

NUM_RESAMPLES = 2000
MIN_SUBJECTS_FOR_TEST = 6
"""With five pairs the smallest two-sided exact p is 2 / 2^5 = 0.0625: 0.05 is out of reach."""
_COVERAGE = {
    1: "the choice of slices only",
    2: "50 to 85 %",
    3: "75 to 90 %",
    4: "85 to 96 %",
    5: "92 to 97 %",
}
"""Measured on normal subjects: the lower end where their slices agree, the upper where slices vary
as much as subjects do."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean over subjects of their means over slices, with a bootstrap interval.

    Attributes:
        mean: mean of ``per_subject``; each subject counts once, however many slices it has.
        low, high: ends of the bootstrap interval (subjects, then slices), expanded for their
            small number (Hesterberg 2015).
        level: its nominal coverage; few subjects still give less, see `coverage`.
        per_subject: mean over slices by subject, in order of first appearance.
        num_slices: slices of all subjects.
        slice_mean, slice_std: over all slices, each counted once, as the paper's tables have it;
            the standard deviation is the population's.
    """

    mean: float
    low: float
    high: float
    level: float
    per_subject: Mapping[str, float]
    num_slices: int
    slice_mean: float
    slice_std: float

    @property
    def num_subjects(self) -> int:
        """Number of subjects behind the mean."""
        return len(self.per_subject)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Difference of two methods on the same slices, and whether it could be chance.

    Attributes:
        estimate: of first minus second.
        p_value: exact two-sided Wilcoxon signed-rank test of the subjects' differences, or None.
        no_test: why there is no p-value; empty where there is one.
    """

    estimate: Estimate
    p_value: float | None
    no_test: str


def coverage(num_subjects: int) -> str:
    """What a nominal 95 % interval of `estimate` covers in fact; empty where that is 95 %."""
    return _COVERAGE.get(num_subjects, "")


def subject_means(values: npt.ArrayLike, subjects: Sequence[str]) -> dict[str, float]:
    """Mean over slices of each subject, in order of first appearance."""
    return {name: float(group.mean()) for name, group in _grouped(values, subjects).items()}


def estimate(
    values: npt.ArrayLike,
    subjects: Sequence[str],
    *,
    seed: int,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """Mean over subjects with its bootstrap interval.

    Args:
        values: one finite number per slice [N].
        subjects: subject of each slice [N].
        seed: the same seed, values and subjects give the same interval.
        level: coverage aimed at, in (0, 1).
        num_resamples: bootstrap samples.

    Raises:
        ValueError: no slices, lengths differ, values are not finite, or ``level`` is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level=}")
    groups = _grouped(values, subjects)
    means = {name: float(group.mean()) for name, group in groups.items()}
    resampled = _bootstrap(list(groups.values()), num_resamples, rng(seed, "bootstrap"))
    tail = _tail((1 - level) / 2, len(groups))
    low, high = np.quantile(resampled, [tail, 1 - tail]).tolist()
    pooled = np.concatenate(list(groups.values()))
    return Estimate(
        mean=float(np.mean(list(means.values()))),
        low=low,
        high=high,
        level=level,
        per_subject=means,
        num_slices=len(pooled),
        slice_mean=float(pooled.mean()),
        slice_std=float(pooled.std()),
    )


def estimate_metrics(
    metrics: Metrics, subjects: Sequence[str], *, seed: int
) -> dict[str, Estimate]:
    """`estimate` of each metric, by its name."""
    return {name: estimate(getattr(metrics, name), subjects, seed=seed) for name in METRICS}


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    subjects: Sequence[str],
    *,
    seed: int,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedDifference:
    """First minus second, slice by slice on the same slices; arguments as for `estimate`."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must match slice by slice, got {a.shape} and {b.shape}")
    result = estimate(a - b, subjects, seed=seed, level=level, num_resamples=num_resamples)
    differences = np.array(list(result.per_subject.values()))
    num_different = int(np.count_nonzero(differences))
    if num_different >= MIN_SUBJECTS_FOR_TEST:
        return PairedDifference(estimate=result, p_value=wilcoxon_exact(differences), no_test="")
    reason = (
        f"{num_different} subjects differ; below {MIN_SUBJECTS_FOR_TEST} an exact test cannot "
        "reach p = 0.05, so the subjects are shown one by one instead"
    )
    return PairedDifference(estimate=result, p_value=None, no_test=reason)


def wilcoxon_exact(differences: Values) -> float:
    """Exact two-sided p of the Wilcoxon signed-rank test; ties get mid-ranks, zeros are left out.

    Counts, among all 2^n sign patterns, those whose rank sum is as far from its centre as the
    one observed.
    """
    nonzero = differences[differences != 0]
    ranks = _doubled_ranks(np.abs(nonzero))
    counts = np.zeros(int(ranks.sum()) + 1)
    counts[0] = 1
    for rank in ranks:
        counts[rank:] += counts[:-rank].copy()
    observed = int(ranks[nonzero > 0].sum())
    distance = np.abs(2 * np.arange(len(counts)) - ranks.sum())
    extreme = distance >= abs(2 * observed - ranks.sum())
    return float(counts[extreme].sum() / 2.0 ** len(ranks))


def _doubled_ranks(sizes: Values) -> npt.NDArray[np.int64]:
    """Twice the mid-rank of each size: whole numbers even where sizes are tied."""
    below = (sizes[None, :] < sizes[:, None]).sum(axis=1)
    equal = (sizes[None, :] == sizes[:, None]).sum(axis=1)
    return np.asarray(2 * below + equal + 1)


def _grouped(values: npt.ArrayLike, subjects: Sequence[str]) -> dict[str, Values]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) != len(subjects) or not len(array):
        raise ValueError(f"need one value per slice, got {array.shape} for {len(subjects)} slices")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array))
        raise ValueError(f"values must be finite; slices {bad[:8].tolist()} are not")
    names = np.asarray(subjects)
    return {name: array[names == name] for name in dict.fromkeys(subjects)}


def _tail(tail: float, num_subjects: int) -> float:
    """Tail of the bootstrap distribution that plays the part of ``tail``.

    Resampling n subjects spreads too little by sqrt((n - 1) / n), and its tails are a normal
    distribution's where Student's are due; looking further out repairs both.
    """
    if num_subjects == 1:
        return tail
    spread = math.sqrt(num_subjects / (num_subjects - 1))
    return float(ndtr(spread * stdtrit(num_subjects - 1, tail)))


def _bootstrap(groups: list[Values], num_resamples: int, generator: np.random.Generator) -> Values:
    """Means [num_resamples] of resampled subjects, each with its slices resampled anew."""
    chosen = generator.integers(len(groups), size=(num_resamples, len(groups)))
    drawn = np.empty(chosen.shape)
    for index, group in enumerate(groups):
        places = chosen == index
        picks = generator.integers(len(group), size=(int(places.sum()), len(group)))
        drawn[places] = group[picks].mean(axis=1)
    return np.asarray(drawn.mean(axis=1))
