"""Tables of a comparison for other programs: CSV, LaTeX, and plain values for JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mfdiff_core.evaluation.metrics import METRICS, definition
from mfdiff_core.evaluation.scores import Score
from mfdiff_core.evaluation.tables import Cost, Table, TableRow, paired, ranks, spread


def to_csv(table: Table) -> str:
    """One line per method and setting."""
    stream = io.StringIO()
    lines = [_flat(row) for row in table.rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _flat(row: TableRow) -> dict[str, Any]:
    values: dict[str, Any] = {"setting": row.setting, "method": row.method}
    for convention in ("quantitative", "paper"):
        for metric, e in getattr(row.score, convention).items():
            found = {"mean": e.slice_mean, "sd": e.slice_std, "low": e.low, "high": e.high}
            values |= {f"{convention}_{metric}_{name}": value for name, value in found.items()}
    e = row.score.quantitative["psnr"]
    cost = asdict(row.cost) if row.cost else dict.fromkeys(Cost.__dataclass_fields__, "")
    counts = {"subjects": e.num_subjects, "slices": e.num_slices}
    return values | counts | {"activity": row.score.activity} | _judged(row.score) | cost


def _judged(score: Score) -> dict[str, Any]:
    """Bias of regions and what became of lesions; the same columns in every row of a table."""
    biases = {
        f"bias_{region.replace(' ', '_')}_{name}": value
        for region, bias in score.regions.items()
        for name, value in (("mean", bias.mean), ("max", bias.maximum))
    }
    lesions = asdict(score.lesions) if score.lesions else {}
    return biases | {f"lesions_{name}": value for name, value in lesions.items()}


def to_latex(table: Table) -> str:
    """A `tabular` per setting with the quantitative metrics, the best bold, the second underlined.

    Needs no package; headings are comments.
    """
    lines: list[str] = [f"% {table.title}"]
    for setting, rows in table.settings().items():
        lines += [f"% {setting}", r"\begin{tabular}{lccc}", r"\hline"]
        lines += [
            r"Method & PSNR (dB) $\uparrow$ & SSIM $\uparrow$ & NMSE $\downarrow$ \\",
            r"\hline",
        ]
        for row in rows:
            cells = [_latex_cell(rows, row, metric) for metric in METRICS]
            lines.append(" & ".join([_escaped(row.method), *cells]) + r" \\")
        lines += [r"\hline", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_cell(rows: Sequence[TableRow], row: TableRow, metric: str) -> str:
    text = spread(row.score.quantitative[metric], metric).replace("±", r"$\pm$")
    place = ranks(rows, metric)[row.method]
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(place, text)


def _escaped(text: str) -> str:
    for sign in "&%#_":
        text = text.replace(sign, rf"\{sign}")
    return text


def to_values(table: Table) -> dict[str, Any]:
    """All numbers, ready for JSON; what is not a number is null."""
    tests = [
        {"setting": setting, "against": method, **asdict(result)}
        for (setting, method), result in paired(table).items()
    ]
    values = {
        "name": table.name,
        "title": table.title,
        "rows": [_row_values(row) for row in table.rows],
        "paired": tests,
        "left_out": dict(table.left_out),
        "facts": dict(table.facts),
        "definitions": {"quantitative": definition(), "paper": definition("paper")},
    }
    plain: dict[str, Any] = _without_nan(values)
    return plain


def _row_values(row: TableRow) -> dict[str, Any]:
    score = row.score
    return {
        "method": row.method,
        "setting": row.setting,
        "quantitative": {m: asdict(e) for m, e in score.quantitative.items()},
        "paper": {m: asdict(e) for m, e in score.paper.items()},
        "slices": [r._asdict() for r in score.slices.rows()],
        "subjects": list(score.subjects),
        "regions": {name: asdict(bias) for name, bias in score.regions.items()},
        "activity": score.activity,
        "lesions": asdict(score.lesions) if score.lesions else None,
        "cost": asdict(row.cost) if row.cost else None,
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
