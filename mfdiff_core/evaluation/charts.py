"""Charts of numbers: methods with their intervals, and how a search has gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mfdiff_core.evaluation.canvas import (
    ACCENT,
    INK,
    LABEL_PT,
    MUTED,
    RULE,
    SECOND,
    SMALL_PT,
    TITLE_PT,
    add_panel,
    new_figure,
    style_axes,
    to_png,
)
from mfdiff_core.evaluation.metrics import HIGHER_IS_BETTER, UNITS
from mfdiff_core.evaluation.statistics import Estimate, Values

_ROW_IN = 0.3


def methods_chart(
    estimates: Mapping[str, Estimate], metric: str = "psnr", *, title: str = ""
) -> bytes:
    """Methods from top to bottom: mean, interval, and each subject as a small dot.

    Args:
        estimates: by method, in the order shown; the best mean is coloured.
        metric: ``psnr``, ``ssim`` or ``nmse``; says which end is best and the unit.
        title: line above the chart.

    Returns:
        PNG.
    """
    names = list(estimates)
    page_height = 0.75 + _ROW_IN * len(names) + (0.25 if title else 0)
    figure = new_figure(5.2, page_height)
    axes = add_panel(figure, 1.5, 0.5, 2.7, _ROW_IN * len(names))
    axes.set_axis_on()
    style_axes(axes)
    best = (max if HIGHER_IS_BETTER[metric] else min)(names, key=lambda n: estimates[n].mean)
    for row, name in enumerate(names):
        _method_row(axes, row, name, estimates[name], ACCENT if name == best else MUTED, metric)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, color=INK, size=LABEL_PT)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.grid(axis="x", color=RULE, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(_axis_label(metric), size=LABEL_PT, color=MUTED)
    _heading(figure, title)
    return to_png(figure)


def best_so_far_chart(
    values: Sequence[float | None],
    references: Mapping[str, float],
    metric: str = "psnr",
    *,
    title: str = "",
) -> bytes:
    """A search trial by trial: results as dots, the best so far as a line.

    Args:
        values: final metric of each trial in order of completion; None where it failed
            (a cross at the bottom). A trial far worse than all else is a triangle at the edge.
        references: horizontal lines by name, for example the LPET and the paper's recipe.
        metric, title: as for `methods_chart`.

    Returns:
        PNG.
    """
    figure = new_figure(5.2, 2.9)
    axes = add_panel(figure, 0.6, 0.5, 3.3, 2.05)
    axes.set_axis_on()
    style_axes(axes)
    y = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    x = np.arange(1, len(y) + 1)
    running = np.fmax.accumulate(y) if HIGHER_IS_BETTER[metric] else np.fmin.accumulate(y)
    axes.plot(x, y, "o", ms=3.2, mfc=MUTED, mec="none", alpha=0.55)
    _mark(axes, x[np.isnan(y)], 0.03, "x", SECOND)
    axes.step(x, running, where="post", color=ACCENT, lw=1.6)
    for value in references.values():
        axes.axhline(value, color=RULE, lw=0.9, ls=(0, (4, 2)), zorder=0)
    ends = {name: (value, MUTED) for name, value in references.items()}
    if np.isfinite(running).any():
        ends[f"best {running[-1]:.{_digits(metric)}f}"] = (float(running[-1]), ACCENT)
    axes.set_xlim(0.5, max(len(y), 1) + 0.5)
    if np.isfinite(y).any():
        _keep_scale(axes, y, [*references.values()], higher_is_better=HIGHER_IS_BETTER[metric])
    _label_ends(axes, ends)
    axes.set_xlabel("trial", size=LABEL_PT, color=MUTED)
    axes.set_ylabel(_axis_label(metric), size=LABEL_PT, color=MUTED)
    _heading(figure, title)
    return to_png(figure)


def _method_row(
    axes: Any, row: int, name: str, estimate: Estimate, colour: str, metric: str
) -> None:
    subjects = list(estimate.per_subject.values())
    beneath = [row + 0.27] * len(subjects)
    axes.plot(subjects, beneath, "o", ms=2.6, mfc=colour, mec="none", alpha=0.4)
    digits = _digits(metric)
    text = f"{estimate.mean:.{digits}f}"
    if len(subjects) > 1:  # the choice of one subject's slices is no interval over subjects
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, lw=1.8)
        text += f"  [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    axes.plot(estimate.mean, row, "o", ms=5, mfc=colour, mec="white", mew=0.8)
    axes.text(
        1.02, row, text, transform=axes.get_yaxis_transform(), size=SMALL_PT, color=colour,
        va="center",
    )  # fmt: skip


def _keep_scale(
    axes: Any, y: Values, references: Sequence[float], *, higher_is_better: bool
) -> None:
    """End the axis a little beyond all but the worst trials; those become triangles there."""
    sign = 1 if higher_is_better else -1
    worst = min([float(np.nanpercentile(sign * y, 25)), *(sign * r for r in references)])
    limit = worst - 0.15 * (float(np.nanmax(sign * y)) - worst)
    beyond = 1 + np.flatnonzero(sign * y < limit)
    if not len(beyond):
        return
    _mark(axes, beyond, 0.03 if higher_is_better else 0.97, "v" if higher_is_better else "^", MUTED)
    axes.set_ylim(**{"bottom" if higher_is_better else "top": sign * limit})


def _mark(axes: Any, x: Any, height: float, marker: str, colour: str) -> None:
    """Marks at a height given as a share of the axes."""
    style = {"ms": 3, "mew": 0.9, "color": colour, "ls": "none"}
    transform = axes.get_xaxis_transform()
    axes.plot(x, np.full(len(x), height), marker=marker, transform=transform, **style)


def _label_ends(axes: Any, ends: Mapping[str, tuple[float, str]]) -> None:
    """Names at the right end of their lines, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    distance = 0.065 * (high - low)
    previous = -np.inf
    for name, (value, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        place = max(value, previous + distance)
        axes.text(
            1.02, place, name, transform=axes.get_yaxis_transform(), size=SMALL_PT, color=colour,
            va="center",
        )  # fmt: skip
        previous = place


def _heading(figure: Any, title: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.1 / width, 1 - 0.08 / height, title, va="top", size=TITLE_PT, color=INK)


def _axis_label(metric: str) -> str:
    unit = f" ({UNITS[metric]})" if UNITS[metric] else ""
    return metric.upper() + unit


def _digits(metric: str) -> int:
    return 2 if metric == "psnr" else 4
