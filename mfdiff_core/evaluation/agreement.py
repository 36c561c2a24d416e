"""Bland-Altman figure: agreement of restored regions with the SPET's, subject by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mfdiff_core.evaluation.canvas import INK, LABEL_PT, MUTED, TITLE_PT, new_figure, to_png
from mfdiff_core.evaluation.regions import RegionBias

_SIZE_IN, _COLOURS = (4.2, 3.0), ("#1b6ca8", "#d1495b", "#2e933c", "#7b5ea7", "#e08e2b")
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
    axes = figure.add_axes((0.16, 0.16, 0.8, 0.72))
    for index, region in enumerate(regions):
        chosen = [bias.region == region for bias in found]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(means[chosen], differences[chosen], "o", ms=3.5, color=colour, label=region)
    centre, spread = float(differences.mean()), float(differences.std())
    for height, style in ((centre, "-"), (centre - _LIMITS * spread, "--")):
        axes.axhline(height, ls=style, lw=0.8, color=INK)
    axes.axhline(centre + _LIMITS * spread, ls="--", lw=0.8, color=INK)
    axes.axhline(0, lw=0.5, color=MUTED)
    axes.set_xlabel(f"mean of restored and SPET ({unit})", size=LABEL_PT)
    axes.set_ylabel(f"restored − SPET ({unit})", size=LABEL_PT)
    axes.tick_params(labelsize=LABEL_PT)
    axes.legend(fontsize=LABEL_PT, frameon=False)
    axes.set_title(title, size=TITLE_PT, color=INK, loc="left")
    return to_png(figure)
