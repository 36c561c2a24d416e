"""Histograms of a dataset's images: what a network is given, and what it is to return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.evaluation.canvas import (
    ACCENT,
    INK,
    LABEL_PT,
    MUTED,
    SECOND,
    SMALL_PT,
    TITLE_PT,
    add_panel,
    new_figure,
    style_axes,
    to_png,
)

Images = npt.NDArray[np.float32]
HIGHEST, BINS = 1.25, 50
HIGHEST_PERCENT = 14  # the peak of scalp and cerebrospinal fluid may reach beyond
COLOURS = {"LPET": SECOND, "SPET": ACCENT, "T1": MUTED}
_WIDTH_IN, _HEIGHT_IN, _GAP_IN, _LEFT_IN, _BOTTOM_IN = 1.6, 1.2, 0.18, 0.5, 0.45


def histogram_chart(settings: Mapping[str, Mapping[str, Images]]) -> bytes:
    """One panel per setting, one line per kind of image, all on the same axes.

    Args:
        settings: ``LPET``, ``SPET`` and ``T1`` by setting: intensities of any shape, those of
            pixels outside the head left out.

    Returns:
        PNG. Pixels above `HIGHEST` are in the last bin.
    """
    edges = np.linspace(0, HIGHEST, BINS + 1)
    figure = new_figure(
        _LEFT_IN + len(settings) * (_WIDTH_IN + _GAP_IN) + 0.1, _BOTTOM_IN + _HEIGHT_IN + 0.35
    )
    for place, (setting, images) in enumerate(settings.items()):
        left = _LEFT_IN + place * (_WIDTH_IN + _GAP_IN)
        axes = add_panel(figure, left, _BOTTOM_IN, _WIDTH_IN, _HEIGHT_IN)
        axes.set_axis_on()
        style_axes(axes)
        for name, values in images.items():
            axes.stairs(shares(values, edges), edges, color=COLOURS[name], lw=1.2, label=name)
        _finish(axes, setting, first=place == 0)
    return to_png(figure)


def shares(values: Images, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Percentage of ``values`` in each bin; what lies beyond the last edge counts in the last."""
    inside = np.clip(values.ravel(), edges[0], edges[-1])
    return 100 * np.histogram(inside, edges)[0] / max(inside.size, 1)


def _finish(axes: Any, setting: str, *, first: bool) -> None:
    axes.set_xlim(0, HIGHEST)
    axes.set_ylim(0, HIGHEST_PERCENT)
    axes.set_xticks([0, 0.5, 1])
    axes.set_title(setting, size=TITLE_PT, color=INK)
    axes.set_xlabel("intensity", size=LABEL_PT, color=MUTED)
    if first:
        axes.set_ylabel("% of the head's pixels", size=LABEL_PT, color=MUTED)
        axes.legend(frameon=False, fontsize=SMALL_PT, labelcolor=MUTED, handlelength=1.2)
    else:
        axes.set_yticklabels([])
