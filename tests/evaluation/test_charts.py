from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mfdiff_core.evaluation.canvas import ACCENT, to_png
from mfdiff_core.evaluation.charts import best_so_far_chart, methods_chart
from mfdiff_core.evaluation.statistics import Estimate, estimate

SIGNATURE = b"\x89PNG"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Axes of the charts drawn, in order."""
    axes: list[Any] = []

    def spy(figure: Any) -> bytes:
        axes.extend(figure.axes)
        return to_png(figure)

    monkeypatch.setattr("mfdiff_core.evaluation.charts.to_png", spy)
    return axes


def line_of(axes: Any) -> list[float]:
    return [
        y for line in axes.lines if line.get_drawstyle() == "steps-post" for y in line.get_ydata()
    ]


def method(*values: float) -> Estimate:
    return estimate(values, [str(i) for i in range(len(values))], seed=0)


def test_best_so_far_rises_for_psnr_and_falls_for_nmse(drawn: list[Any]) -> None:
    best_so_far_chart([29.0, None, 28.0, 30.5], {})
    best_so_far_chart([0.02, 0.03, 0.01], {}, "nmse")
    assert line_of(drawn[0]) == [29.0, 29.0, 29.0, 30.5]
    assert line_of(drawn[1]) == [0.02, 0.02, 0.01]


def test_failed_and_diverged_trials_are_marked_and_do_not_set_the_scale(drawn: list[Any]) -> None:
    best_so_far_chart([29.0, None, 4.0, 30.5, 29.5, 29.7], {"LPET": 23.0})
    marks = {line.get_marker(): list(line.get_xdata()) for line in drawn[0].lines}
    assert marks["x"] == [2]
    assert marks["v"] == [3]
    assert drawn[0].get_ylim()[0] > 20
    best_so_far_chart([0.02, 2.7, 0.01, 0.015, 0.02], {"LPET": 0.1}, "nmse")
    marks = {line.get_marker(): list(line.get_xdata()) for line in drawn[1].lines}
    assert marks["^"] == [2]
    assert drawn[1].get_ylim()[1] < 0.2


def test_references_are_named_without_touching(drawn: list[Any]) -> None:
    best_so_far_chart([29.0, 30.0], {"two_stage": 29.50, "internal": 29.49, "LPET": 23.0})
    places = sorted(text.get_position()[1] for text in drawn[0].texts)
    low, high = drawn[0].get_ylim()
    assert len(places) == 4
    assert np.diff(places).min() >= 0.06 * (high - low)


@pytest.mark.parametrize("values", [[], [None], [29.0]])
def test_a_study_that_has_hardly_begun_is_drawn(values: list[float | None]) -> None:
    assert best_so_far_chart(values, {}, title="Study").startswith(SIGNATURE)


def test_methods_are_listed_in_order_with_the_best_coloured(drawn: list[Any]) -> None:
    methods = {"LPET": method(23, 24, 26), "MFdiff": method(30, 31, 33)}
    methods_chart(methods)
    methods_chart(methods, "nmse", title="all")
    for axes, best in zip(drawn, (1, 0), strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == ["LPET", "MFdiff"]
        colours = [text.get_color() for text in axes.texts]
        assert [colour == ACCENT for colour in colours] == [best == 0, best == 1]
        assert axes.yaxis_inverted()


def test_each_method_shows_its_interval_and_its_subjects(drawn: list[Any]) -> None:
    shown = method(23, 24, 26)
    methods_chart({"LPET": shown})
    ends = [list(np.atleast_1d(line.get_xdata())) for line in drawn[0].lines]
    assert ends == [[23, 24, 26], [shown.low, shown.high], [shown.mean]]
