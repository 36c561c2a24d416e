"""A study's result as people and programs read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mfdiff_platform.cli.common import table

if TYPE_CHECKING:
    from mfdiff_platform.outcome import Outcome


def rows_json(outcome: Outcome) -> list[dict[str, Any]]:
    """Rows for ``--json``."""
    names = ("name", "psnr", "ssim", "nmse", "subjects")
    return [{name: getattr(row, name) for name in names} for row in outcome.rows]


def rows_text(outcome: Outcome) -> str:
    """The table on held-out test subjects, with what it measures."""
    head = ("held-out test subjects", "PSNR dB", "SSIM", "NMSE")
    rows = [
        (row.name, f"{row.psnr:.2f}", f"{row.ssim:.4f}", f"{row.nmse:.4f}") for row in outcome.rows
    ]
    best = outcome.rows[-1]
    scope = f"{best.slices} slices of {best.subjects} subjects; quantitative convention."
    return f"{table(head, rows)}\n{scope}"
