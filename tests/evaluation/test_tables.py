"""Scores and tables of a comparison: numbers in, the paper's kind of table out."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mfdiff_core.data.dataset import Dataset, SliceSet
from mfdiff_core.evaluation.agreement import agreement_figure
from mfdiff_core.evaluation.metrics import METRICS, evaluate_slices
from mfdiff_core.evaluation.regions import RegionBias
from mfdiff_core.evaluation.scores import Score, score_slices
from mfdiff_core.evaluation.statistics import estimate_metrics
from mfdiff_core.evaluation.table_files import to_csv, to_latex, to_values
from mfdiff_core.evaluation.tables import Cost, Table, TableRow, paired, ranks, to_markdown
from mfdiff_core.physics.phantom import Tissue

PNG = b"\x89PNG"
COST = Cost(
    parameters=1234, discriminator=56, iterations=10, training_s=2.0, slice_s=0.01, evaluations=3
)


@pytest.fixture(scope="session")
def slices(dataset: Dataset) -> SliceSet:
    """Training subjects, grey matter wherever there is a head."""
    part = dataset.part("train", "ld")
    return replace(part, tissue=torch.where(part.tissue > 0, Tissue.GREY, 0).to(torch.uint8))


def noisy(slices: SliceSet, level: float) -> Score:
    noise = torch.randn(slices.x_s.shape, generator=torch.Generator().manual_seed(0))
    return score_slices((slices.x_s + level * noise).clamp_min(0), slices, seed=0)


@pytest.fixture(scope="session")
def table(slices: SliceSet) -> Table:
    rows = [
        TableRow(method="A & B", setting="ld", score=noisy(slices, 0.2)),
        TableRow(method="good", setting="ld", score=noisy(slices, 0.02), cost=COST),
        TableRow(method="fair", setting="ld", score=noisy(slices, 0.1), cost=COST),
    ]
    facts, left_out = {"data": "toy"}, {"FB-SEM": "no sinograms"}
    return Table(name="t", title="Title", rows=rows, left_out=left_out, facts=facts)


def test_perfect_restoration_has_no_bias_and_no_error(slices: SliceSet) -> None:
    score = score_slices(slices.x_s * (1 + 1e-6), slices, seed=0)
    assert score.quantitative["nmse"].slice_mean < 1e-10
    assert score.activity == pytest.approx(1)
    assert score.regions["grey matter"].mean == pytest.approx(0, abs=1e-5)
    assert score.regions["grey matter"].num_subjects == len(score.quantitative["ssim"].per_subject)
    assert score.lesions is not None
    assert (score.lesions.mean_recovery, score.lesions.lost_share) == pytest.approx((1, 0))


def test_a_tenth_too_much_is_seen_by_the_quantitative_numbers_alone(slices: SliceSet) -> None:
    score = score_slices(1.1 * slices.x_s, slices, seed=0)
    assert score.activity == pytest.approx(1.1, rel=1e-5)
    assert score.regions["PET-only lesion"].maximum == pytest.approx(0.1, rel=1e-4)
    assert score.quantitative["nmse"].slice_mean == pytest.approx(0.01, rel=1e-4)
    assert score.paper["nmse"].slice_mean == pytest.approx(0, abs=1e-10)


def test_slices_without_tissue_have_no_regions(slices: SliceSet) -> None:
    bare = replace(slices, tissue=torch.zeros_like(slices.tissue))
    assert score_slices(slices.x_p, bare, seed=0).regions == {}


def test_scores_are_mean_and_deviation_over_slices(slices: SliceSet) -> None:
    expected = evaluate_slices(slices.x_p[:, 0], slices.x_s[:, 0]).psnr
    found = score_slices(slices.x_p, slices, seed=0).quantitative["psnr"]
    assert (found.slice_mean, found.slice_std) == pytest.approx((expected.mean(), expected.std()))


def test_best_is_bold_and_second_underlined_whichever_way_is_better(table: Table) -> None:
    for metric in METRICS:
        assert ranks(table.rows, metric) == {"good": 1, "fair": 2, "A & B": 3}
    lines = to_markdown(table).splitlines()
    good = next(line for line in lines if line.startswith("| good | **"))
    assert good.count("**") == 2 * len(METRICS)
    fair = next(line for line in lines if line.startswith("| fair | <u>"))
    assert fair.count("<u>") == len(METRICS)


def test_page_says_how_it_measured_and_what_it_leaves_out(table: Table) -> None:
    page = to_markdown(table)
    assert "This convention ranks" in page
    assert "never used to rank" in page
    assert "FB-SEM is left out: no sinograms" in page
    assert "below 6 an exact test cannot reach p = 0.05" in page
    assert "| good | 1,234 + 56 | 10 | 2 | 10.0 | 3 |" in page


@pytest.mark.parametrize("number", [1, 2, 7])
def test_page_promises_no_more_of_its_intervals_than_they_hold(table: Table, number: int) -> None:
    people = [f"s{place % number}" for place in range(len(table.rows[0].score.subjects))]

    def of(row: TableRow) -> TableRow:
        metrics = estimate_metrics(row.score.slices, people, seed=0)
        score = replace(row.score, quantitative=metrics, subjects=tuple(people))
        return replace(row, score=score)

    page = to_markdown(replace(table, rows=[of(row) for row in table.rows]))
    assert ("One subject, so no interval" in page) == (number == 1)
    assert ("of 2 subjects they cover 50 to 85 %" in page) == (number == 2)
    assert ("(nominally 95 %)" in page) == (number == 7)
    good = [line for line in page.splitlines() if line.startswith("| good | ")][1]
    assert good.count(" – ") == 3 * (number == 1)
    assert good.count(" to ") == 3 * (number != 1)


def test_last_row_is_tested_against_all_others_on_the_same_slices(table: Table) -> None:
    found = paired(table)
    assert found.keys() == {("ld", "A & B"), ("ld", "good")}
    last, first = (table.rows[i].score.quantitative["psnr"].mean for i in (-1, 0))
    assert found["ld", "A & B"].estimate.mean == pytest.approx(last - first)


def test_csv_has_a_line_per_method_with_full_precision(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["method"] for row in rows] == ["A & B", "good", "fair"]
    expected = table.rows[1].score.quantitative["ssim"].slice_mean
    assert float(rows[1]["quantitative_ssim_mean"]) == expected
    assert [row["parameters"] for row in rows] == ["", "1234", "1234"]


def test_latex_escapes_names_and_closes_what_it_opens(table: Table) -> None:
    text = to_latex(table)
    assert r"A \& B & " in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert text.count("{") == text.count("}")
    assert r"good & \textbf{" in text


def test_json_is_strict_and_holds_every_slice(table: Table) -> None:
    values = json.loads(json.dumps(to_values(table), allow_nan=False))
    row = values["rows"][1]
    assert len(row["slices"]) == len(row["subjects"]) == len(table.rows[1].score.subjects)
    assert values["paired"][0]["p_value"] is None


def test_agreement_draws_regions_and_refuses_none() -> None:
    bias = RegionBias(
        region="grey matter", num_voxels=9, mean=9e3, true_mean=1e4, maximum=2e4, true_maximum=2e4
    )
    white = replace(bias, region="white matter", mean=np.float64(3e3).item(), true_mean=3.1e3)
    assert agreement_figure({"s1": [bias, white], "s2": [bias]}).startswith(PNG)
    with pytest.raises(ValueError, match="at least one region"):
        agreement_figure({"s1": []})
