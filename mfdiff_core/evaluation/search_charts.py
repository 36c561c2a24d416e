"""Charts of a search space: what mattered in it, and which values went with which result."""

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
    SMALL_PT,
    add_panel,
    new_figure,
    style_axes,
    to_png,
)
from mfdiff_core.evaluation.statistics import Values

Value = bool | int | float | str

_ROW_IN = 0.24
_DECADES = 10.0
"""Ratio of largest to smallest value from which an axis counts orders of magnitude."""


def importance_chart(importance: Mapping[str, float]) -> bytes:
    """Parameters by their share of the results' variation, the largest on top.

    Args:
        importance: share by parameter; shares add up to 1.

    Returns:
        PNG.
    """
    names = sorted(importance, key=lambda name: -importance[name])
    height = _ROW_IN * len(names)
    figure = new_figure(5.2, height + 0.6)
    axes = add_panel(figure, 1.5, 0.45, 3.2, height)
    axes.set_axis_on()
    style_axes(axes)
    axes.barh(range(len(names)), [importance[n] for n in names], height=0.62, color=ACCENT)
    for row, name in enumerate(names):
        text = f" {importance[name]:.0%}"
        axes.text(importance[name], row, text, va="center", size=SMALL_PT, color=MUTED)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, color=INK, size=LABEL_PT)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.set_xlabel("share of the variation of results", size=LABEL_PT, color=MUTED)
    return to_png(figure)


def parallel_chart(
    points: Sequence[Mapping[str, Value]],
    scores: Sequence[float | None],
    label: str,
) -> bytes:
    """One line per point of a search across one axis per parameter; the best are dark.

    Args:
        points: values by parameter; one that a point lacks interrupts its line.
        scores: result of each point, higher is better; None for one that was stopped (faint).
        label: what the results are.

    Returns:
        PNG.
    """
    names = list(dict.fromkeys(name for point in points for name in point))
    axes_of = {name: _Axis([p[name] for p in points if name in p]) for name in names}
    width = 0.85 * max(len(names) - 1, 1)
    figure = new_figure(width + 1.2, 3.4)
    axes = add_panel(figure, 0.6, 0.75, width, 2.4)
    ranks = _ranks(scores)
    for row in np.argsort(ranks):
        y = [axes_of[n].place(points[row][n]) if n in points[row] else np.nan for n in names]
        stopped = scores[row] is None
        style = {"color": RULE, "lw": 0.7, "alpha": 0.8}
        if not stopped:
            style = {"color": ACCENT, "lw": 0.8 + ranks[row], "alpha": 0.15 + 0.8 * ranks[row] ** 3}
        axes.plot(range(len(names)), y, solid_capstyle="round", marker="o", ms=2, **style)
    for column, name in enumerate(names):
        _draw_axis(axes, column, name, axes_of[name])
    axes.set_xlim(-0.2, len(names) - 0.8)
    axes.set_ylim(-0.05, 1.05)
    note = f"dark: best {label}; grey: stopped early"
    axes.text(0, -0.28, note, transform=axes.transAxes, size=SMALL_PT, color=MUTED)
    return to_png(figure)


class _Axis:
    """Places the values of a parameter between 0 and 1."""

    def __init__(self, values: Sequence[Value]) -> None:
        self._numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        self._values = list(dict.fromkeys(values))
        if self._numeric:
            numbers = np.array([float(v) for v in values])
            low, high = float(numbers.min()), float(numbers.max())
            self._log = low > 0 and high / low >= _DECADES
            self._low, self._high = self._scaled(low), self._scaled(high)
        else:
            self._values.sort(key=str)

    def place(self, value: Value) -> float:
        """Height of ``value``."""
        if not self._numeric:
            return self._values.index(value) / max(len(self._values) - 1, 1)
        span = self._high - self._low
        return (self._scaled(float(value)) - self._low) / span if span else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and texts: all values of a choice, the ends of a range."""
        shown = self._values
        if self._numeric and len(shown) > 4:
            shown = [min(shown, key=float), max(shown, key=float)]
        texts = [f"{v:.2g}" if self._numeric else str(v) for v in shown]
        return [(self.place(value), text) for value, text in zip(shown, texts, strict=True)]

    def _scaled(self, value: float) -> float:
        return float(np.log10(value)) if self._log else value


def _draw_axis(axes: Any, column: int, name: str, axis: _Axis) -> None:
    axes.plot([column, column], [0, 1], color=RULE, lw=0.8, zorder=0)
    for height, text in axis.ticks():
        axes.text(column + 0.05, height, text, size=SMALL_PT - 1, color=MUTED, va="center")
    axes.text(
        column, -0.09, name.replace("_", "_\n"), size=SMALL_PT, color=INK, ha="center", va="top"
    )


def _ranks(scores: Sequence[float | None]) -> Values:
    """Place of each score from 0, the worst, to 1; stopped ones below all."""
    known = sorted(score for score in scores if score is not None)
    steps = max(len(known) - 1, 1)
    return np.array([-1.0 if s is None else known.index(s) / steps for s in scores])
