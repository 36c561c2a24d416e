"""Bland-Altman figure: agreement of restored regions with the SPET's, subject by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.evaluation.canvas import (
    INK,
    LABEL_PT,
    MUTED,
    SMALL_PT,
    TITLE_PT,
    add_panel,
    new_figure,
    style_axes,
    to_png,
)
from mfdiff_core.evaluation.regions import RegionBias

_SIZE_IN, _PANEL_IN = (4.8, 3.5), (3.2, 2.35)
_COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#7b5ea7", "#e08e2b")
_LIMITS = 1.96


def agreement_figure(
    subjects: Mapping[str, Sequence[RegionBias]],
    *,
    scale: float = 1e-3,
    unit: str = "kBq/mL",
    title: str = "",
) -> bytes:
    """Difference of restored and true region means over their average, one dot per subject.

    Args:
        subjects: regions by subject, in physical units.
        scale, unit: what the axes show of those units.
        title: line above.

    Returns:
        PNG with the mean difference and the limits of agreement (1.96 standard deviations).

    Raises:
        ValueError: there are no regions.
    """
    found = [bias for part in subjects.values() for bias in part]
    if not found:
        raise ValueError("agreement needs at least one region, got none")
    means = np.array([(bias.mean + bias.true_mean) / 2 for bias in found]) * scale
    differences = np.array([bias.mean - bias.true_mean for bias in found]) * scale
    regions = list(dict.fromkeys(bias.region for bias in found))
    figure = new_figure(*_SIZE_IN)
    axes = add_panel(figure, 0.65, 0.85, *_PANEL_IN)
    axes.set_axis_on()
    style_axes(axes)
    for index, region in enumerate(regions):
        chosen = [bias.region == region for bias in found]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(means[chosen], differences[chosen], "o", ms=3.5, color=colour, label=region)
    axes.axhline(0, lw=0.5, color=MUTED)
    _limits(axes, differences)
    axes.set_xlabel(f"mean of restored and SPET ({unit})", size=LABEL_PT, color=MUTED)
    axes.set_ylabel(f"restored − SPET ({unit})", size=LABEL_PT, color=MUTED)
    # Below the axes: within, it would lie on dots or lines.
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 3}
    axes.legend(fontsize=SMALL_PT, frameon=False, handletextpad=0.2, **below)
    axes.set_title(title, size=TITLE_PT, color=INK, loc="left")
    return to_png(figure)


def _limits(axes: Any, differences: npt.NDArray[np.float64]) -> None:
    """Mean difference and limits of agreement, each with its value at the right."""
    centre = float(differences.mean())
    spread = _LIMITS * float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    lines = {"mean": centre, "+1.96 SD": centre + spread, "−1.96 SD": centre - spread}
    for name, height in lines.items():
        axes.axhline(height, ls="-" if name == "mean" else "--", lw=0.8, color=INK)
        place = {"xycoords": axes.get_yaxis_transform(), "va": "center", "size": SMALL_PT}
        axes.annotate(f"{name}  {height:+.2g}", (1.02, height), color=MUTED, **place)
