"""The LPET against its SPET: the row that every restoration is held against, in both conventions.

The paper's divides each image by its own maximum and takes the usual defaults of the SSIM; it is
what Table 1 prints, and blind to a wrong scale. The quantitative one ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mfdiff_core.data.slices import Shard
from mfdiff_core.evaluation.metrics import METRICS, MetricRow, evaluate_slices


class LpetRows(NamedTuple):
    """Metrics by slice."""

    paper: list[MetricRow]
    quantitative: list[MetricRow]


def lpet_rows(shard: Shard) -> LpetRows:
    """The LPET's metrics in every slice of a shard."""
    x_p, x_s = shard.arrays["x_p"], shard.arrays["x_s"]
    paper = evaluate_slices(x_p, x_s, convention="paper", window="uniform")
    return LpetRows(paper.rows(), evaluate_slices(x_p, x_s).rows())


def mean_rows(parts: Iterable[LpetRows]) -> tuple[dict[str, float], dict[str, float]]:
    """Means over all slices by name of the metric: the paper's convention, the quantitative one."""
    paper, quantitative = zip(*parts, strict=True)
    return _mean(paper), _mean(quantitative)


def _mean(parts: Iterable[list[MetricRow]]) -> dict[str, float]:
    means = np.mean([list(row) for rows in parts for row in rows], axis=0)
    return {name: float(value) for name, value in zip(METRICS, means, strict=True)}
