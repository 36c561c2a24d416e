"""The page of a restored scan: views, uncertainty, difference, activity, warnings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mfdiff_core.evaluation.scan_figures import Column, orthogonal_figure, overlay_figure
from mfdiff_platform.page import facts, figure, heading, warnings, write_page

if TYPE_CHECKING:
    from mfdiff_platform.restoration import RestoredScan


def write_scan_page(
    path: Path,
    title: str,
    model: str,
    scan: RestoredScan,
    unit: str = "",
    suv_factor: float | None = None,
) -> None:
    """Write the page of one scan.

    Args:
        path: the page.
        title: names the scan by pseudonym or participant label, or not at all.
        model: name of the model.
        scan: what was restored.
        unit: of the PET, where it is known.
        suv_factor: SUV per unit of the PET, where it is known.
    """
    sections = [
        warnings([*scan.warnings, *scan.notes]),
        heading("Views"),
        figure(_views(scan, unit), _caption(scan)),
        heading("Figures"),
        facts(_rows(scan, unit, suv_factor)),
        heading("MR on PET"),
        figure(_overlay(scan), "T1 with two level lines of the smoothed LPET. Right is right."),
    ]
    write_page(path, title, f"Model {model}", sections)


def _views(scan: RestoredScan, unit: str) -> bytes:
    result, lpet = scan.result, scan.lpet
    columns = [
        Column("LPET", lpet, "pet", unit),
        Column("T1", result.mr, "mr"),
        Column("restored", result.pet, "pet", unit),
    ]
    if result.spread.data.any():
        columns.append(Column("SD of samples", result.spread, "spread", unit))
    difference = lpet.with_data(result.pet.data - lpet.data)
    columns.append(Column("restored − LPET", difference, "difference", unit))
    return orthogonal_figure(columns, lpet)


def _caption(scan: RestoredScan) -> str:
    text = "Through the middle of the head; LPET and restored share one scale. Right is right."
    if scan.result.spread.data.any():
        text += " The spread of samples shows where the model is undecided, not all of its error."
    return text


def _rows(scan: RestoredScan, unit: str, suv_factor: float | None) -> dict[str, str]:
    before, after = scan.lpet.data, scan.result.pet.data
    sums = [float(image.sum(dtype=np.float64)) for image in (before, after)]
    rows = {
        "sum of activity, LPET": f"{sums[0]:.5g}",
        "sum of activity, restored": f"{sums[1]:.5g} ({100 * (scan.activity_ratio - 1):+.2f} %)",
        "maximum, LPET and restored": f"{before.max():.5g} and {after.max():.5g} {unit}",
        "slices restored": f"{scan.result.restored_slices}",
    }
    if suv_factor is not None:
        tops = (suv_factor * before.max(), suv_factor * after.max())
        rows["highest SUV, LPET and restored"] = f"{tops[0]:.2f} and {tops[1]:.2f} g/mL"
    if scan.motion is None:
        return rows | {"registration": "none, as asked"}
    moved = f"MR moved by {scan.motion.moved_mm:.1f} mm on average; mutual information "
    figures = f"{scan.motion.information_before:.3f} before, {scan.motion.information:.3f} after"
    return rows | {"registration": moved + figures}


def _overlay(scan: RestoredScan) -> bytes:
    if scan.motion is None:
        return overlay_figure(scan.lpet, {"T1": scan.mr})
    after = scan.mr.moved(scan.motion.matrix)
    return overlay_figure(scan.lpet, {"by affines": scan.mr, "registered": after})
