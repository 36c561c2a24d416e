"""A study as a page: self-contained HTML, and its table as Markdown and as rows."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import yaml

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.evaluation.charts import best_so_far_chart, methods_chart
from mfdiff_core.evaluation.statistics import Estimate
from mfdiff_core.files import write_bytes
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.data_facts import data_facts
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.outcome import Outcome, Row, gain_over_paper, headline
from mfdiff_platform.page import NOTICE, figure, page
from mfdiff_platform.recipe_file import RECIPE, recipe_text
from mfdiff_platform.report_sections import (
    pareto_table,
    per_setting,
    per_subject,
    pictures,
    repeats_table,
    what_mattered,
    what_was_saved,
)
from mfdiff_platform.study import REPORT, Study

STAND_INS = ("ood1", "ood2", "ood3")
STAND_IN_NOTICE = (
    "ood1, ood2 and ood3 made by `simulate` are stand-ins: simulated, not measured on a scanner."
)


def table_row(row: Row) -> dict[str, Any]:
    """A row as columns for MLflow's table view."""
    return {
        "name": row.name,
        "psnr": round(row.psnr, 3),
        "ssim": round(row.ssim, 4),
        "nmse": round(row.nmse, 5),
        "psnr 95 %": f"{row.intervals['psnr'][0]:.2f} to {row.intervals['psnr'][1]:.2f}",
        "subjects": row.subjects,
        "slices": row.slices,
    }


def markdown_table(outcome: Outcome) -> str:
    """The table, its definition and its limits, for MLflow's notes and model cards."""
    lines = ["| method | PSNR (dB) | SSIM | NMSE |", "|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.psnr:.2f} | {row.ssim:.4f} | {row.nmse:.4f} |" for row in outcome.rows
    ]
    best = outcome.rows[-1]
    scope = f"{best.slices} slices of {best.subjects} held-out test subjects."
    return "\n".join([*lines, "", scope, "", outcome.definition])


def model_card(study: Study, outcome: Outcome) -> str:
    """What a registered version says of itself: data, figures with intervals, limits, failures."""
    request, best = study.request, outcome.rows[-1]
    parts = [
        # MLflow's table shows the beginning, as plain text.
        f"{headline(outcome)}. Restores low-dose PET of domain `{request.domain}`. {NOTICE}",
        f"Best of study `{request.name}`, trial {outcome.best}, by validation PSNR.",
        markdown_table(outcome),
        f"95 % intervals of the best trial over {best.subjects} subject(s): " + _intervals(best),
        f"**Data.** {data_facts(Path(request.data), request.setting)}",
        f"**Limits.** Measured on {best.subjects} test subject(s) of this dataset only, looked at "
        f"{outcome.test_evaluations} time(s); another scanner, tracer, dose or protocol needs "
        "a study of its own. Slices are restored one by one.",
        f"**Failures.** {_failures(study, best)}",
        f"Recipe:\n```yaml\n{recipe_yaml(study.ledger[outcome.best])}```",
        f"Data fingerprint `{request.data_fingerprint[:16]}`; "
        f"pretrained weights `{request.pretrained_sha256[:16]}`.",
    ]
    if request.domain in STAND_INS:
        parts.append(STAND_IN_NOTICE)
    return "\n\n".join(parts)


def _intervals(row: Row) -> str:
    names = {"psnr": "PSNR {:.2f} to {:.2f} dB", "ssim": "SSIM {:.4f} to {:.4f}"}
    names["nmse"] = "NMSE {:.4f} to {:.4f}"
    return "; ".join(text.format(*row.intervals[name]) for name, text in names.items()) + "."


def _failures(study: Study, best: Row) -> str:
    """Where the model is worst, and what went wrong in the search."""
    settings = {k: v for k, v in best.per_setting.items() if k.endswith("/psnr")}
    worst_person, metrics = min(best.per_subject.items(), key=lambda item: item[1]["psnr"])
    told = [f"Worst subject {worst_person}: {metrics['psnr']:.2f} dB."]
    if settings:
        worst = min(settings, key=lambda name: settings[name])
        told.append(f"Worst setting {worst.removesuffix('/psnr')}: {settings[worst]:.2f} dB.")
    failed = study.ledger.in_state("failed")
    if failed:
        told.append(f"{len(failed)} trial(s) of the search failed.")
    return " ".join(told)


def recipe_yaml(record: TrialRecord) -> str:
    """A trial's recipe in full, defaults included, in the order that `Recipe` explains them."""
    recipe = from_dict(Recipe, record.config["recipe"])
    return yaml.safe_dump(to_dict(recipe), sort_keys=False)


def write_report(study: Study, outcome: Outcome) -> Path:
    """Write ``study.html``, one file without links to others, and the winning recipe beside it."""
    request = study.request
    gain = gain_over_paper(outcome)
    over = f"{gain:+.2f} dB against the paper's recipe" if gain is not None else ""
    best, winner = study.ledger[outcome.best], recipe_text(study, outcome.best)
    write_bytes(study.folder / RECIPE, winner.encode())
    sections = [
        f"<h1>Study {escape(request.name)}</h1>",
        f"<p class=quiet>Domain {escape(request.domain)} · best: trial {outcome.best}"
        f"{' (' + escape(best.config['reference']) + ')' if best.config['reference'] else ''}"
        f" · {escape(over)} · {NOTICE}</p>",
        "<h2>Held-out test subjects</h2>",
        _table(outcome),
        figure(_methods_png(outcome), "Mean and 95 % interval; small dots are subjects."),
        f"<p class=quiet>{escape(outcome.definition)} {_looks(outcome)}</p>",
        "<h2>Search</h2>",
        figure(_search_png(study), "Validation PSNR of each finished trial, and the best so far."),
        what_was_saved(study),
        _trials(study),
        what_mattered(study),
        pareto_table(study),
        per_setting(outcome),
        per_subject(outcome),
        repeats_table(outcome),
        "<h2>Winning recipe</h2>",
        f"<pre>{escape(winner)}</pre>",
        pictures(study),
    ]
    if request.domain in STAND_INS:
        sections.append(f"<p class=quiet>{escape(STAND_IN_NOTICE)}</p>")
    path = study.folder / REPORT
    write_bytes(path, page(f"Study {request.name}", sections).encode())
    return path


def _looks(outcome: Outcome) -> str:
    """How often the test subjects were looked at, and who was not chosen there."""
    return (
        f"The test subjects have been looked at {outcome.test_evaluations} time(s). The best trial"
        " was chosen on validation subjects; further trials are those that came next there, and"
        " one that is better here is no better choice."
    )


def _table(outcome: Outcome) -> str:
    head = "<tr><th>Method<th>PSNR (dB)<th>95 % interval<th>SSIM<th>NMSE<th>subjects</tr>"
    rows = []
    for row in outcome.rows:
        low, high = row.intervals["psnr"]
        mark = " class=best" if row is outcome.rows[-1] else ""
        rows.append(
            f"<tr{mark}><td>{escape(row.name)}<td>{row.psnr:.2f}<td>{low:.2f} to {high:.2f}"
            f"<td>{row.ssim:.4f}<td>{row.nmse:.4f}<td>{row.subjects}</tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _trials(study: Study) -> str:
    head = "<tr><th>Trial<th>strategy<th>freeze<th>lr<th>iterations<th>PSNR<th>state<th>s</tr>"
    rows, first = [], {suggestion.number for suggestion in study.first()}
    for record in study.ledger:
        recipe = from_dict(Recipe, record.config["recipe"])
        searched = "tried first" if record.number in first else "search"
        name = record.config["reference"] or searched
        psnr = record.metrics.get("psnr")
        rows.append(
            f"<tr><td>{record.number} · {escape(name)}<td>{escape(recipe.strategy)}"
            f"<td>{escape(recipe.freeze)}<td>{recipe.lr:.1e}"
            f"<td>{record.iterations}<td>{'' if psnr is None else f'{psnr:.2f}'}"
            f"<td>{escape(record.state)}{': ' + escape(record.reason) if record.reason else ''}"
            f"<td>{record.seconds:.0f}</tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _methods_png(outcome: Outcome) -> bytes:
    estimates = {
        row.name: Estimate(
            mean=row.psnr,
            low=row.intervals["psnr"][0],
            high=row.intervals["psnr"][1],
            level=0.95,
            per_subject={name: values["psnr"] for name, values in row.per_subject.items()},
            num_slices=row.slices,
            slice_mean=row.psnr,
            slice_std=0.0,
        )
        for row in outcome.rows
    }
    return methods_chart(estimates, "psnr")


def _search_png(study: Study) -> bytes:
    records = [r for r in study.ledger.ended() if r.state != "pruned"]
    values = [record.metrics.get("psnr") for record in records]
    references = {
        record.config["reference"]: record.metrics["psnr"]
        for record in study.ledger.finished()
        if record.config["reference"]
    }
    return best_so_far_chart(values, references, "psnr")
