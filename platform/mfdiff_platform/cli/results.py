"""A study's result as people and programs read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mfdiff_platform.cli.common import table

if TYPE_CHECKING:
    from mfdiff_platform.adapt import Adapted
    from mfdiff_platform.outcome import Outcome
    from mfdiff_platform.study import Study
    from mfdiff_platform.study_overview import StudyOverview


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


def overviews_text(found: Sequence[StudyOverview]) -> str:
    """One line per study."""
    head = ("study", "domain", "state", "trials", "failed", "best", "gain dB")
    rows = [
        (
            one.name,
            f"{one.domain}/{one.setting}" if one.setting else one.domain,
            one.state,
            f"{one.ended}/{one.asked}",
            str(one.trials.get("failed", 0)),
            "" if one.best is None else f"{one.best:.2f}",
            "" if one.gain_db is None else f"{one.gain_db:+.2f}",
        )
        for one in found
    ]
    if not rows:
        return "no studies; `mfdiff-platform adapt` begins one"
    meaning = "best: on validation subjects; gain: over the paper's recipe, on test subjects"
    return f"{table(head, rows, left=3)}\n{meaning}"


def study_json(study: Study) -> dict[str, Any]:
    """A study as it stands, for ``--json``."""
    from dataclasses import asdict

    from mfdiff_platform.study_overview import overview

    trials = [asdict(record) for record in study.ledger]
    return asdict(overview(study)) | {"folder": str(study.folder), "ledger": trials}


def study_text(study: Study) -> str:
    """A study as it stands: a line on all of it, its trials, its table."""
    from mfdiff_core.config import from_dict
    from mfdiff_core.training.strategies import Recipe
    from mfdiff_platform.outcome import load_outcome
    from mfdiff_platform.study import REPORT, RESULTS
    from mfdiff_platform.study_overview import overview

    aim = study.objectives[0].metric
    head = ("trial", "recipe", "state", "iterations", aim, "s")
    rows = []
    for record in study.ledger:
        recipe = from_dict(Recipe, record.config["recipe"])
        name = record.config["reference"] or f"{recipe.strategy}, freeze {recipe.freeze}"
        value = record.metrics.get(aim)
        told = f"{record.state}: {record.reason}" if record.state == "failed" else record.state
        figures = (str(record.iterations), "" if value is None else f"{value:.2f}")
        rows.append((str(record.number), name, told, *figures, f"{record.seconds:.0f}"))
    parts = [overviews_text([overview(study)]), *([table(head, rows, left=3)] if rows else [])]
    if (study.folder / RESULTS).is_file():
        parts += [rows_text(load_outcome(study)), f"report  {study.folder / REPORT}"]
    return "\n\n".join(parts)
