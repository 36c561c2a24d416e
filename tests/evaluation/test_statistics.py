from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from mfdiff_core.evaluation.metrics import Metrics
from mfdiff_core.evaluation.statistics import (
    estimate,
    estimate_metrics,
    paired_difference,
    subject_means,
    wilcoxon_exact,
)


def names(num_subjects: int, num_slices: int) -> list[str]:
    return [f"s{i}" for i in range(num_subjects) for _ in range(num_slices)]


def test_a_subject_counts_once_however_many_slices_it_has() -> None:
    result = estimate([1.0, 1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "a", "b"], seed=0)
    assert result.mean == 3.0
    assert result.slice_mean == pytest.approx(1.8)
    assert (result.num_subjects, result.num_slices) == (2, 5)


def test_subject_means_keep_the_order_of_first_appearance() -> None:
    means = subject_means([1.0, 4.0, 3.0], ["z", "a", "z"])
    assert list(means.items()) == [("z", 2.0), ("a", 4.0)]


def test_interval_of_equal_values_is_a_point() -> None:
    result = estimate([2.0] * 6, names(3, 2), seed=0)
    assert (result.low, result.mean, result.high) == (2.0, 2.0, 2.0)


def test_same_seed_gives_the_same_interval_and_another_seed_does_not() -> None:
    values = np.random.default_rng(0).standard_normal(40)
    first, again, other = (estimate(values, names(8, 5), seed=seed) for seed in (1, 1, 2))
    assert (first.low, first.high) == (again.low, again.high)
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize(("num_subjects", "least"), [(3, 0.75), (6, 0.88), (20, 0.88)])
def test_interval_covers_the_truth_about_as_often_as_it_says(
    num_subjects: int, least: float
) -> None:
    r = np.random.default_rng(0)
    subjects = names(num_subjects, 4)
    covered = 0
    for trial in range(300):
        effects = r.standard_normal(num_subjects).repeat(4)
        values = effects + 0.5 * r.standard_normal(len(subjects))
        result = estimate(values, subjects, seed=trial, num_resamples=300)
        covered += result.low <= 0 <= result.high
    assert least <= covered / 300 <= 0.99


def test_resampling_slices_alone_would_be_too_sure_of_itself() -> None:
    r = np.random.default_rng(0)
    values = r.standard_normal(6).repeat(50) + 0.1 * r.standard_normal(300)
    by_subject = estimate(values, names(6, 50), seed=0)
    by_slice = estimate(values, names(300, 1), seed=0)
    assert by_subject.high - by_subject.low > 3 * (by_slice.high - by_slice.low)


def test_one_subject_still_gets_an_interval_over_its_slices() -> None:
    result = estimate([1.0, 2.0, 3.0], ["a"] * 3, seed=0)
    assert 1.0 <= result.low < 2.0 < result.high <= 3.0


def test_pairing_takes_out_what_subjects_share() -> None:
    r = np.random.default_rng(0)
    base = 5 * r.standard_normal(8).repeat(5)
    result = paired_difference(base + 1.0, base, names(8, 5), seed=0)
    assert result.estimate.mean == pytest.approx(1.0)
    assert result.estimate.low == pytest.approx(1.0)
    assert result.p_value == pytest.approx(2 / 2**8)


def test_five_subjects_get_a_reason_instead_of_a_p_value() -> None:
    result = paired_difference([1.0] * 5, [0.0] * 5, names(5, 1), seed=0)
    assert result.p_value is None
    assert result.no_test.startswith("5 subjects differ; below 6")


def test_subjects_without_any_difference_do_not_count_for_the_test() -> None:
    first = [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]
    assert paired_difference(first, [0.0] * 6, names(6, 1), seed=0).p_value is None


@pytest.mark.parametrize("num_subjects", [6, 9, 14])
def test_exact_wilcoxon_agrees_with_scipy(num_subjects: int) -> None:
    differences = np.random.default_rng(num_subjects).standard_normal(num_subjects) + 0.4
    expected = wilcoxon(differences, method="exact").pvalue
    assert wilcoxon_exact(differences) == pytest.approx(expected, rel=1e-12)


def test_exact_wilcoxon_handles_ties() -> None:
    assert wilcoxon_exact(np.ones(6)) == pytest.approx(2 / 2**6)
    assert wilcoxon_exact(np.array([1.0, -1, 1, -1, 1, -1])) == 1.0
    sizes = np.array([1.0, 1, 1, 2, 3, 3, 4, 5])
    ranks = rankdata(sizes)
    patterns = np.array(list(product([-1, 1], repeat=8)))
    sums = np.abs(patterns @ ranks)
    for signs in patterns[::17]:
        expected = (sums >= abs(signs @ ranks)).mean()
        assert wilcoxon_exact(signs * sizes) == pytest.approx(expected)


def test_metrics_are_estimated_by_name() -> None:
    columns = np.arange(4.0), np.arange(4.0) / 10, np.arange(4.0) / 100
    result = estimate_metrics(Metrics(*columns), names(2, 2), seed=0)
    assert [round(e.mean, 6) for e in result.values()] == [1.5, 0.15, 0.015]


def test_values_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"slices \[1\]"):
        estimate([1.0, np.inf], ["a", "b"], seed=0)
    with pytest.raises(ValueError, match="one value per slice"):
        estimate([1.0], ["a", "b"], seed=0)
    with pytest.raises(ValueError, match="one value per slice"):
        estimate([], [], seed=0)
    with pytest.raises(ValueError, match="level=95"):
        estimate([1.0], ["a"], seed=0, level=95)
    with pytest.raises(ValueError, match="slice by slice"):
        paired_difference([1.0], [1.0, 2.0], ["a"], seed=0)
