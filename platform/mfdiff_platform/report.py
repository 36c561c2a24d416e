"""A study as a page: self-contained HTML, and its table as Markdown and as rows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.evaluation.charts import best_so_far_chart, methods_chart
from mfdiff_core.evaluation.statistics import Estimate
from mfdiff_core.files import write_bytes
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.outcome import Outcome, Row, gain_over_paper
from mfdiff_platform.study import REPORT, TRIALS, Study
from mfdiff_platform.trial import PICTURE

NOTICE = "Research use only; not a medical device."
STAND_INS = ("ood1", "ood2", "ood3")
STAND_IN_NOTICE = (
    "ood1, ood2 and ood3 made by `simulate` are stand-ins: simulated, not measured on a scanner."
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #66707f; --rule: #d8dde5;
  --page: #fff; --accent: #1f5a96; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebf0; --quiet: #9aa4b2; --rule: #3a4250; --page: #14181f; --accent: #7db4ea; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.quiet, figcaption { color: var(--quiet); font-size: .88rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; }
tr.best td { font-weight: 650; color: var(--accent); }
img { max-width: 100%; background: #fff; border-radius: 4px; }
figure { margin: 1rem 0; } pre { overflow-x: auto; padding: .8rem 1rem;
  border: 1px solid var(--rule); border-radius: 4px; font-size: .86rem; }
"""


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
    """What a registered version says of itself."""
    request = study.request
    parts = [
        f"**Restores low-dose PET of domain `{request.domain}`.** {NOTICE}",
        f"Best of study `{request.name}`, trial {outcome.best}, by validation PSNR.",
        markdown_table(outcome),
        f"Recipe:\n```yaml\n{recipe_yaml(study.ledger[outcome.best])}```",
        f"Data fingerprint `{request.data_fingerprint[:16]}`; "
        f"pretrained weights `{request.pretrained_sha256[:16]}`.",
    ]
    if request.domain in STAND_INS:
        parts.append(STAND_IN_NOTICE)
    return "\n\n".join(parts)


def recipe_yaml(record: TrialRecord) -> str:
    """A trial's recipe in full, defaults included, in the order that `Recipe` explains them."""
    recipe = from_dict(Recipe, record.config["recipe"])
    return yaml.safe_dump(to_dict(recipe), sort_keys=False)


def write_report(study: Study, outcome: Outcome) -> Path:
    """Write ``study.html`` into the study's folder; one file, no links to others."""
    request = study.request
    gain = gain_over_paper(outcome)
    headline = f"{gain:+.2f} dB against the paper's recipe" if gain is not None else ""
    best = study.ledger[outcome.best]
    sections = [
        f"<h1>Study {escape(request.name)}</h1>",
        f"<p class=quiet>Domain {escape(request.domain)} · best: trial {outcome.best}"
        f"{' (' + escape(best.config['reference']) + ')' if best.config['reference'] else ''}"
        f" · {escape(headline)} · {NOTICE}</p>",
        "<h2>Held-out test subjects</h2>",
        _table(outcome),
        figure(_methods_png(outcome), "Mean and 95 % interval; small dots are subjects."),
        f"<p class=quiet>{escape(outcome.definition)} The test subjects have been looked at "
        f"{outcome.test_evaluations} time(s).</p>",
        "<h2>Search</h2>",
        figure(_search_png(study), "Validation PSNR of each finished trial, and the best so far."),
        _trials(study),
        "<h2>Winning recipe</h2>",
        f"<pre>{escape(recipe_yaml(best))}</pre>",
        _pictures(study, outcome),
    ]
    if request.domain in STAND_INS:
        sections.append(f"<p class=quiet>{escape(STAND_IN_NOTICE)}</p>")
    path = study.folder / REPORT
    write_bytes(path, page(f"Study {request.name}", sections).encode())
    return path


def page(title: str, sections: Sequence[str]) -> str:
    """A self-contained HTML page; ``sections`` are HTML already, ``title`` is not."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(sections)}</body></html>"
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
    rows = []
    for record in study.ledger:
        recipe = record.config["recipe"]
        name = record.config["reference"] or "search"
        psnr = record.metrics.get("psnr")
        rows.append(
            f"<tr><td>{record.number} · {escape(name)}<td>{escape(recipe['strategy'])}"
            f"<td>{escape(str(recipe.get('freeze', 'none')))}<td>{recipe.get('lr', Recipe.lr):.1e}"
            f"<td>{record.iterations}<td>{'' if psnr is None else f'{psnr:.2f}'}"
            f"<td>{escape(record.state)}{': ' + escape(record.reason) if record.reason else ''}"
            f"<td>{record.seconds:.0f}</tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _pictures(study: Study, outcome: Outcome) -> str:
    path = study.folder / TRIALS / f"{outcome.best:04d}" / PICTURE
    if not path.is_file():
        return ""
    caption = "A validation slice restored by the best trial; errors share one colour scale."
    return "<h2>Picture</h2>" + figure(path.read_bytes(), caption)


def figure(png: bytes, caption: str) -> str:
    """A picture inside the page, with its caption."""
    data = base64.b64encode(png).decode()
    return (
        f"<figure><img alt='{escape(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


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
