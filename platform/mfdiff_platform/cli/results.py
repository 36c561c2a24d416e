"""A study's result as people and programs read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mfdiff_platform.cli.common import table

if TYPE_CHECKING:
    from mfdiff_platform.adapt import Adapted
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


def adapted_json(adapted: Adapted) -> dict[str, Any]:
    """A finished study for ``--json``."""
    study = adapted.study
    return {
        "study": study.request.name,
        "rows": rows_json(adapted.outcome),
        "model": adapted.model,
        "report": str(adapted.report),
        "failed": {str(record.number): record.reason for record in adapted.failed},
        "pareto": pareto_json(adapted),
    }


def pareto_json(adapted: Adapted) -> list[dict[str, Any]]:
    """Trials that no other beats in all objectives; empty where there is one objective."""
    study = adapted.study
    names = [aim.metric for aim in study.objectives]
    if len(names) == 1:
        return []
    return [
        {"trial": record.number} | {name: record.metrics[name] for name in names}
        for record in study.pareto()
    ]


def adapted_text(adapted: Adapted) -> str:
    """A finished study for people: tables, where things are, and what failed."""
    parts = [rows_text(adapted.outcome)]
    front = pareto_json(adapted)
    if front:
        head = tuple(front[0])
        rows = [(str(row["trial"]), *(f"{row[name]:.4g}" for name in head[1:])) for row in front]
        parts.append(f"{table(head, rows)}\nvalidation; no trial is better in all of these")
    parts.append(f"model   {adapted.model} (candidate)\nreport  {adapted.report}")
    failed = [f"trial {record.number} failed: {record.reason}" for record in adapted.failed]
    return "\n\n".join([*parts, *(["\n".join(failed)] if failed else [])])
