"""Sections of a study's page beyond its main table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mfdiff_core.evaluation.search_charts import importance_chart, parallel_chart
from mfdiff_platform.outcome import Outcome, Row
from mfdiff_platform.page import figure
from mfdiff_platform.search_summary import (
    FEWEST_POINTS,
    importance,
    points,
    saving,
    search_points,
)
from mfdiff_platform.study import TRIALS, Study
from mfdiff_platform.trial import PICTURE

_LARGEST_TABLE = 40
"""Subjects shown one by one; more would bury the page."""


def what_mattered(study: Study) -> str:
    """Importance of the parameters, and the points themselves."""
    records = search_points(study)
    if not records or not any(points(records)):
        return ""
    found = importance(study)
    shares = (
        figure(importance_chart(found), "Importance of each parameter (PED-ANOVA, full trials).")
        if found
        else f"<p class=quiet>Importance needs {FEWEST_POINTS} different full trials.</p>"
    )
    aim = study.objectives[0]
    scores = [aim.score(r.metrics) if r.state == "finished" else None for r in records]
    chart = parallel_chart(points(records), scores, aim.metric.upper())
    caption = "Each line is a trial of the search; where it is broken, the parameter was absent."
    return f"<h2>What mattered</h2>{shares}{figure(chart, caption)}"


def what_was_saved(study: Study) -> str:
    """What early stopping has saved, in a sentence."""
    saved = saving(study)
    if not saved.stopped:
        return ""
    return (
        f"<p>Early stopping ended {saved.stopped} trials: {saved.done} training iterations instead"
        f" of {saved.full}, {saved.share:.0%} saved.</p>"
    )


def pareto_table(study: Study) -> str:
    """Trials that no other beats in every objective; nothing where there is only one."""
    aims = study.objectives
    if len(aims) == 1:
        return ""
    rows = [
        [_name(r.number, r.config["reference"]), *(f"{r.metrics[a.metric]:.4g}" for a in aims)]
        for r in sorted(study.pareto(), key=lambda r: -aims[0].score(r.metrics))
    ]
    names = [f"{aim.metric} ({aim.mode})" for aim in aims]
    note = "<p class=quiet>Validation subjects; no trial is better in one without losing another."
    return f"<h2>Best compromises</h2>{_table(['Trial', *names], rows)}{note}</p>"


def per_setting(outcome: Outcome) -> str:
    """Slice means of each method in each setting; nothing where there is only one."""
    keys = list(dict.fromkeys(key for row in outcome.rows for key in row.per_setting))
    settings = list(dict.fromkeys(key.split("/")[0] for key in keys))
    if len(settings) < 2:
        return ""
    rows = [
        [row.name, *(f"{row.per_setting[f'{s}/psnr']:.2f}" for s in settings)]
        for row in outcome.rows
    ]
    head = ["PSNR (dB), mean over slices", *settings]
    return f"<h2>Per setting</h2>{_table(head, rows)}"


def per_subject(outcome: Outcome) -> str:
    """PSNR of each method in each test subject."""
    subjects = list(dict.fromkeys(s for row in outcome.rows for s in row.per_subject))
    shown = subjects[:_LARGEST_TABLE]
    rows = [[s, *(_psnr(row, s) for row in outcome.rows)] for s in shown]
    head = ["PSNR (dB)", *(row.name for row in outcome.rows)]
    more = len(subjects) - len(shown)
    note = f"<p class=quiet>and {more} more subjects</p>" if more else ""
    return f"<h2>Per subject</h2>{_table(head, rows)}{note}"


def pictures(study: Study) -> str:
    """A validation slice restored by the best trial and the references, with error maps."""
    shown: list[str] = []
    seen: set[int] = set()
    for name, record in reversed(study.finalists().items()):
        path = study.folder / TRIALS / f"{record.number:04d}" / PICTURE
        if record.number in seen or not path.is_file():
            continue
        seen.add(record.number)
        shown.append(figure(path.read_bytes(), f"{name}, trial {record.number}"))
    note = "<p class=quiet>The same validation slice; within a picture errors share one scale.</p>"
    return f"<h2>Pictures</h2>{note}{''.join(shown)}" if shown else ""


def repeats_table(outcome: Outcome) -> str:
    """How much of each result depends on the seed; nothing where nothing was repeated."""
    repeated = [row for row in outcome.rows if len(row.seed_psnr) > 1]
    if not repeated:
        return ""
    rows = [
        [row.name, f"{row.psnr:.2f}", ", ".join(f"{psnr:.2f}" for psnr in row.seed_psnr)]
        for row in repeated
    ]
    return f"<h2>Other seeds</h2>{_table(['Method', 'mean PSNR (dB)', 'per seed'], rows)}"


def _psnr(row: Row, subject: str) -> str:
    return f"{row.per_subject[subject]['psnr']:.2f}" if subject in row.per_subject else ""


def _name(number: int, reference: str) -> str:
    return f"{number} · {reference or 'search'}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}</tr>" for row in rows]
    return f"<div class=wide><table>{''.join(lines)}</table></div>"
