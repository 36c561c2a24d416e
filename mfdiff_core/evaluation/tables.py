"""Tables of a comparison in the manner of the paper, and their page in Markdown.

Mean and standard deviation are over slices, as in Tables 1 to 7; intervals and tests are over
subjects. The quantitative convention ranks, the paper's stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mfdiff_core.evaluation.lesions import INVENTED_ABOVE, LOST_BELOW, NULL_SPREADS
from mfdiff_core.evaluation.metrics import HIGHER_IS_BETTER, METRICS, definition
from mfdiff_core.evaluation.scores import Score
from mfdiff_core.evaluation.statistics import (
    Estimate,
    PairedDifference,
    coverage,
    paired_difference,
)

DIGITS = {"psnr": 2, "ssim": 4, "nmse": 4}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method costs.

    Attributes:
        parameters: of the restorer.
        discriminator: parameters of what is needed in training alone.
        iterations: training steps in all stages.
        training_s: wall time of all stages.
        slice_s: wall time per restored slice.
        evaluations: of the network, per restored slice.
    """

    parameters: int
    discriminator: int = 0
    iterations: int
    training_s: float
    slice_s: float
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A method in one setting; filters cost nothing worth a column."""

    method: str
    setting: str
    score: Score
    cost: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A comparison.

    Attributes:
        name, title: of the table.
        rows: in the order shown; the last is the one that is tested against the others.
        left_out: reason by method.
        facts: what was done, by name: data, iterations, seed.
        seed: of the bootstraps.
    """

    name: str
    title: str
    rows: Sequence[TableRow]
    left_out: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def settings(self) -> dict[str, list[TableRow]]:
        """Rows by setting."""
        found: dict[str, list[TableRow]] = {}
        for row in self.rows:
            found.setdefault(row.setting, []).append(row)
        return found


def paired(table: Table) -> dict[tuple[str, str], PairedDifference]:
    """PSNR of the last row of each setting minus that of every other, by (setting, method)."""
    return {
        (setting, row.method): paired_difference(
            rows[-1].score.slices.psnr, row.score.slices.psnr, row.score.subjects, seed=table.seed
        )
        for setting, rows in table.settings().items()
        for row in rows[:-1]
    }


def ranks(rows: Sequence[TableRow], metric: str) -> dict[str, int]:
    """1 for the best method, 2 for the second, ... by the quantitative mean over slices."""
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    ordered = sorted(rows, key=lambda row: sign * row.score.quantitative[metric].slice_mean)
    return {row.method: place for place, row in enumerate(ordered, start=1)}


def to_markdown(table: Table) -> str:
    """The whole comparison as one page."""
    lines = [f"# {table.title}", ""]
    for setting, rows in table.settings().items():
        lines += [f"## {setting}", "", *_grid(_metric_cells(rows)), ""]
        lines += [_interval_head(rows[0]), ""]
        lines += [*_grid(_second_cells(rows)), ""]
        lines += ["Subject by subject, quantitative PSNR in dB:", ""]
        lines += [*_grid(_subject_cells(rows)), ""]
        lines += _region_lines(rows) + _lesion_lines(rows)
    lines += _test_lines(table) + _cost_lines(table)
    lines += [f"- {name} is left out: {why}" for name, why in table.left_out.items()]
    lines += [f"- {name}: {value}" for name, value in table.facts.items()]
    lines += [f"- {definition()}", f"- {definition('paper')}"]
    return "\n".join(lines) + "\n"


def _interval_head(row: TableRow) -> str:
    number = row.score.quantitative["psnr"].num_subjects
    if number == 1:
        return "One subject, so no interval over subjects; and the paper's convention:"
    covered = coverage(number)
    few = f"; of {number} subjects they cover {covered}" if covered else ""
    return f"Intervals over subjects (nominally 95 %{few}), and the paper's convention:"


def _grid(cells: Sequence[Sequence[str]]) -> list[str]:
    head, *body = cells
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *body)]


def _metric_cells(rows: Sequence[TableRow]) -> list[list[str]]:
    """Mean and deviation over slices; the best is bold, the second underlined."""
    places = {metric: ranks(rows, metric) for metric in METRICS}
    cells = [["Method", "PSNR (dB) ↑", "SSIM ↑", "NMSE ↓"]]
    for row in rows:
        marked = [
            _marked(spread(row.score.quantitative[metric], metric), places[metric][row.method])
            for metric in METRICS
        ]
        cells.append([row.method, *marked])
    return cells


def _marked(text: str, place: int) -> str:
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(place, text)


def spread(estimate: Estimate, metric: str) -> str:
    """Mean and standard deviation over slices, as the paper prints them."""
    digits = DIGITS[metric]
    return f"{estimate.slice_mean:.{digits}f} ± {estimate.slice_std:.{digits}f}"


def _second_cells(rows: Sequence[TableRow]) -> list[list[str]]:
    cells = [["Method", *(f"{m.upper()} interval" for m in METRICS)]]
    cells[0] += [f"{m.upper()} (paper)" for m in METRICS]
    for row in rows:
        intervals = [_interval(row.score.quantitative[m], DIGITS[m]) for m in METRICS]
        cells.append([row.method, *intervals, *(spread(row.score.paper[m], m) for m in METRICS)])
    return cells


def _interval(estimate: Estimate, digits: int) -> str:
    """Empty of numbers for one subject: the choice of its slices is no interval over subjects."""
    if estimate.num_subjects == 1:
        return "–"
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def _subject_cells(rows: Sequence[TableRow]) -> list[list[str]]:
    people = list(rows[0].score.quantitative["psnr"].per_subject)
    cells = [["Method", *people]]
    for row in rows:
        means = row.score.quantitative["psnr"].per_subject
        cells.append([row.method, *(f"{means[person]:.2f}" for person in people)])
    return cells


def _region_lines(rows: Sequence[TableRow]) -> list[str]:
    regions = list(rows[0].score.regions)
    cells = [["Method", *(f"{name}, mean / max" for name in regions), "total activity"]]
    for row in rows:
        found = [row.score.regions[name] for name in regions]
        biases = [f"{_percent(bias.mean)} / {_percent(bias.maximum)}" for bias in found]
        cells.append([row.method, *biases, _percent(row.score.activity - 1)])
    head = "Bias against the SPET: regions as the mean over subjects, total activity of all slices."
    return [head, "", *_grid(cells), ""]


def _lesion_lines(rows: Sequence[TableRow]) -> list[str]:
    """The test of Fig. 3: what is lost of the PET's lesions, what the MR's bring in."""
    judged = [(row.method, row.score.lesions) for row in rows if row.score.lesions is not None]
    if not judged:
        return []
    first = judged[0][1]  # lesions are those of the SPET, so every method has as many
    counts = (
        f"{first.num_lesions} in all, each counted in every slice that shows it:"
        f" {first.num_pet_only} lesions in PET only, {first.num_mr_only} in MR only,"
        f" {first.num_both} in both"
    )
    rule = (
        f"Lesions ({counts}): lost below {LOST_BELOW:g} of the SPET's contrast, invented beyond"
        f" {INVENTED_ABOVE:g} of contrast or {NULL_SPREADS:g} times what lesion-free tissue shows,"
        " by which noisy images are judged less strictly."
    )
    cells = [["Method", "contrast recovered", "PET-only lost", "MR-only invented", "beyond"]]
    for method, found in judged:
        shares = [_share(found.lost_share), _share(found.invented_share)]
        recovered, beyond = _plain(found.mean_recovery, 3), _plain(found.threshold, 2)
        cells.append([method, recovered, *shares, beyond])
    return [rule, "", *_grid(cells), ""]


def _plain(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:+.1f} %"


def _test_lines(table: Table) -> list[str]:
    cells = [["Setting", "Compared with", "difference of PSNR (dB)", "interval", "p"]]
    reasons: set[str] = set()
    for (setting, method), result in paired(table).items():
        p = "–" if result.p_value is None else f"{result.p_value:.3g}"
        reasons |= {result.no_test} - {""}
        e = result.estimate
        cells.append([setting, method, f"{e.mean:+.2f}", _interval(e, 2), p])
    if len(cells) == 1:
        return []
    head = f"## {table.rows[-1].method} minus each other method, subject by subject"
    covered = coverage(table.rows[-1].score.quantitative["psnr"].num_subjects)
    notes = [f"Intervals of so few subjects cover {covered}."] if covered else []
    notes += [f"No test: {reason}." for reason in sorted(reasons)]
    test = (
        "p is of the exact two-sided Wilcoxon signed-rank test over subjects, each by itself: not"
        " corrected for the number of methods."
    )
    return [head, "", *_grid(cells), "", test, *notes, ""]


def _cost_lines(table: Table) -> list[str]:
    costs = {row.method: row.cost for row in table.rows if row.cost is not None}
    head = ["Method", "parameters", "iterations", "training (s)", "slice (ms)", "evaluations"]
    cells = [
        [
            *(method, _size(cost), f"{cost.iterations}", f"{cost.training_s:.0f}"),
            *(f"{1000 * cost.slice_s:.1f}", f"{cost.evaluations}"),
        ]
        for method, cost in costs.items()
    ]
    note = "Times are wall clock as measured, other rows beside where several ran at a time."
    return ["## What each costs", "", *_grid([head, *cells]), "", note, ""] if cells else []


def _size(cost: Cost) -> str:
    beside = f" + {cost.discriminator:,}" if cost.discriminator else ""
    return f"{cost.parameters:,}{beside}"
