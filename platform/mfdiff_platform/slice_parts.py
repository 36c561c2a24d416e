"""Parts of a slice set: its settings, and a few slices that stand for all."""

from __future__ import annotations

import numpy as np

from mfdiff_core.data.dataset import SliceSet


def by_setting(slices: SliceSet) -> list[tuple[str, list[int], SliceSet]]:
    """Each setting with its rows and its slices."""
    found: dict[str, list[int]] = {}
    for row, info in enumerate(slices.infos):
        found.setdefault(info.setting, []).append(row)
    return [
        (name, rows, slices.select(lambda info, name=name: info.setting == name))  # type: ignore[misc]
        for name, rows in found.items()
    ]


def evenly(slices: SliceSet, count: int | None) -> SliceSet:
    """At most ``count`` slices of each setting, evenly spread; None keeps all."""
    if count is None:
        return slices
    chosen: set[int] = set()
    for _, rows, _ in by_setting(slices):
        places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        chosen |= {rows[place] for place in places}
    return slices.rows(sorted(chosen))
