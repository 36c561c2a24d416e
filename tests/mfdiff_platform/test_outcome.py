"""The finalists of a study made by hand: two recipes, two sets of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.evaluation.baselines import best_gaussian
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.evaluation.validation import evaluate_model
from mfdiff_core.model import MFdiffModel
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.outcome import Outcome, Row, conclude, gain_over_paper
from mfdiff_platform.study import PAPER_RECIPE, RESULTS, Study, StudyRequest, claim_study

pytestmark = pytest.mark.ray


@pytest.fixture
def study(tmp_path: Path, dataset: Dataset, pretrained: Bundle) -> Study:
    """External only and the paper's recipe have ended with the same weights."""
    request = StudyRequest(
        name="hand-made",
        domain="toy",
        data=str(dataset.folder),
        data_fingerprint=dataset.manifest.fingerprint,
        phantom="",
        pretrained=str(pretrained.folder),
        pretrained_sha256=pretrained.provenance.sha256,
        setting="",
        space="parameters:\n  lr: {value: 1e-4}\n",
    )
    study = claim_study(tmp_path / "study", request)
    for number, name in enumerate(("external", PAPER_RECIPE)):
        finish(study, number, name, 20.0 + number, pretrained)
    return study


def finish(study: Study, number: int, name: str, psnr: float, bundle: Bundle) -> None:
    """Record a finished trial whose weights are those of ``bundle``."""
    config: dict[str, Any] = {"recipe": {}, "reference": name, "distributions": None}
    folder = f"trials/{number:04d}/bundle"
    save_bundle(study.folder / folder, bundle.config, bundle.weights(), bundle.provenance)
    study.ledger.add(config, number)
    study.ledger.update(number, state="finished", metrics={"psnr": psnr}, bundle=folder)


def rows_of(outcome: Outcome) -> dict[str, Row]:
    return {row.name: row for row in outcome.rows}


def test_table_shows_inputs_references_and_best_trial(study: Study, ray_cluster: Cluster) -> None:
    names = [row.name for row in conclude(study).rows]
    assert names[0] == "LPET"
    assert names[1].startswith("LPET, Gaussian")
    assert names[2:] == ["external only", PAPER_RECIPE, "best trial"]


def test_equal_weights_get_equal_rows_and_no_gain(study: Study, ray_cluster: Cluster) -> None:
    outcome = conclude(study)
    rows = rows_of(outcome)
    assert rows["external only"].psnr == rows["best trial"].psnr
    assert gain_over_paper(outcome) == 0


def test_row_is_the_mean_over_subjects_of_the_model_s_own_metrics(
    study: Study, ray_cluster: Cluster, dataset: Dataset, pretrained: Bundle
) -> None:
    row = rows_of(conclude(study))["best trial"]
    test = dataset.part("test")
    metrics = evaluate_model(pretrained.model(), test)
    people = {info.subject for info in test.infos}
    rows = list(zip(metrics.rows(), test.infos, strict=True))
    means = [np.mean([m.psnr for m, info in rows if info.subject == p]) for p in people]
    assert row.psnr == pytest.approx(np.mean(means), abs=1e-4)
    assert set(row.per_subject) == people == set(dataset.split.test)
    assert (row.subjects, row.slices) == (len(people), len(test))


def test_filter_is_chosen_on_validation_and_measured_on_test(
    study: Study, ray_cluster: Cluster, dataset: Dataset
) -> None:
    row = conclude(study).rows[1]
    held_out, test = dataset.part("validation"), dataset.part("test")
    chosen = best_gaussian(held_out.x_p[:, 0].numpy(), held_out.x_s[:, 0].numpy(), 2.0)
    assert row.name == f"LPET, Gaussian {chosen.fwhm_mm:g} mm"
    filtered = chosen.apply(test.x_p[:, 0].numpy(), 2.0)
    mean = evaluate_slices(filtered, test.x_s[:, 0].numpy()).mean()
    assert row.nmse == pytest.approx(mean.nmse, rel=1e-4)


def test_test_subjects_are_looked_at_again_only_for_another_finalist(
    study: Study, ray_cluster: Cluster, tiny_model: MFdiffModel, tmp_path: Path
) -> None:
    assert conclude(study).test_evaluations == 1
    written = (study.folder / RESULTS).read_text()
    assert conclude(study).test_evaluations == 1
    assert (study.folder / RESULTS).read_text() == written
    told = Provenance(domain="", strategy="", iterations=0, seed=0, data="", voxel_mm=2.0)
    other = save_bundle(tmp_path / "b", tiny_model.config, tiny_model.state_dict(), told)
    finish(study, 2, "", 30.0, other)
    outcome = conclude(study)
    assert (outcome.best, outcome.test_evaluations) == (2, 2)
    rows = rows_of(outcome)
    difference = rows["best trial"].psnr - rows[PAPER_RECIPE].psnr
    assert gain_over_paper(outcome) == pytest.approx(difference)
    assert difference != 0


def test_best_few_are_tested_and_validation_alone_chooses(
    study: Study, ray_cluster: Cluster, pretrained: Bundle
) -> None:
    for number, psnr in ((2, 21.0), (3, 30.0), (4, 25.0), (5, 28.0)):
        finish(study, number, "", psnr, pretrained)
    outcome = conclude(study)
    names = [row.name for row in outcome.rows]
    assert names[2:] == ["external only", PAPER_RECIPE, "trial 5", "trial 4", "best trial"]
    assert (outcome.best, outcome.test_evaluations) == (3, 1)
    assert [row.name for row in conclude(study, finalists=1).rows][4:] == ["best trial"]


def test_results_on_disk_are_the_outcome(study: Study, ray_cluster: Cluster) -> None:
    outcome = conclude(study)
    values = json.loads((study.folder / RESULTS).read_text())
    assert [row["psnr"] for row in values["rows"]] == [row.psnr for row in outcome.rows]
    assert values["definition"] == outcome.definition


def test_study_of_one_setting_is_tested_on_that_setting(
    study: Study, ray_cluster: Cluster, dataset: Dataset
) -> None:
    request = StudyRequest(**{**vars(study.request), "setting": "uld"})
    row = conclude(Study(study.folder, request)).rows[0]
    assert row.slices == len(dataset.part("test", "uld")) < len(dataset.part("test"))
