"""One study on a real cluster, read from all sides; then run again, grown, interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.config import from_dict
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.errors import ConfigError
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.adapt import Adapted, adapt
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.search import trial_data
from mfdiff_platform.session import SearchScale
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.study import RESULTS, Study, StudyRequest
from mfdiff_platform.study_record import EXPERIMENT
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import TrialSetting, run_trial
from mfdiff_platform.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPACE = """
parameters:
  strategy: {value: two_stage}
  iterations: {value: 6}
  batch_size: {value: 2}
  lr: {low: 1e-4, high: 1e-3, log: true}
  freeze: {choices: [none, lora-2]}
  ema: {value: 0.0}
"""
# Raises in its worker: there are no phantoms to replay. A plan would refuse it.
BROKEN = """
references:
  - {name: broken, strategy: two_stage, replay: 0.5}
"""
TRIALS = SearchScale(trials=5, concurrent=2)
NAMES = ["external", "two-stage (paper)", "internal", "broken", ""]
FINISHED = [0, 1, 2, 4]


@pytest.fixture(scope="module")
def request_(
    tmp_path_factory: pytest.TempPathFactory, dataset_folder: Path, pretrained: Bundle
) -> StudyRequest:
    space = tmp_path_factory.mktemp("space") / "space.yaml"
    space.write_text(SPACE)
    plan = StudyPlan(
        domain="toy",
        name="leeds",
        data=dataset_folder,
        pretrained=pretrained.folder,
        space_file=space,
        validations=3,
    )
    return replace(plan_study(Workspace(space.parent), plan), space=SPACE + BROKEN)


@pytest.fixture(scope="module")
def store_(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[TrackingStore]:
    folder = tmp_path_factory.mktemp("study")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        yield TrackingStore(folder)


@pytest.fixture(scope="module")
def adapted(store_: TrackingStore, request_: StudyRequest, ray_cluster: Cluster) -> Adapted:
    return adapt(Workspace(store_.workspace), store_, request_, TRIALS)


@pytest.fixture
def copied(adapted: Adapted, store_: TrackingStore, tmp_path: Path) -> TrackingStore:
    """Study and store again, for tests that go on from there."""
    folder = tmp_path / "copy"
    shutil.copytree(store_.workspace, folder)
    return TrackingStore(folder)


def runs(store: TrackingStore) -> dict[str, Any]:
    """MLflow runs of the experiment by key."""
    experiment = store.get_or_create_experiment(EXPERIMENT)
    found = store.client.search_runs([experiment], max_results=100)
    assert len({run.data.tags["mfdiff.key"] for run in found}) == len(found)
    return {run.data.tags["mfdiff.key"]: run for run in found}


def artifacts(store: TrackingStore, run: Any, folder: str) -> set[str]:
    return {Path(f.path).name for f in store.client.list_artifacts(run.info.run_id, folder)}


def test_references_run_first_and_every_trial_has_its_end(adapted: Adapted) -> None:
    records = list(adapted.study.ledger)
    assert [record.config["reference"] for record in records] == NAMES
    assert [record.number for record in records if record.state == "finished"] == FINISHED
    assert all(record.iterations == 6 for record in records if record.number in (1, 2, 4))


def test_recipe_that_raises_is_recorded_and_the_search_goes_on(
    adapted: Adapted, store_: TrackingStore
) -> None:
    broken = adapted.study.ledger[3]
    assert broken.state == "failed"
    assert "needs the phantom slices" in broken.reason
    run = runs(store_)["leeds/0003"]
    assert run.info.status == "FAILED"
    assert "needs the phantom slices" in run.data.tags["state"]


def test_mlflow_has_one_parent_and_one_child_per_trial(
    adapted: Adapted, store_: TrackingStore
) -> None:
    found = runs(store_)
    parent = found.pop("leeds")
    assert sorted(found) == [f"leeds/{number:04d}" for number in range(5)]
    parents = {run.data.tags["mlflow.parentRunId"] for run in found.values()}
    assert parents == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.params["data_fingerprint"] == adapted.study.request.data_fingerprint


@pytest.mark.parametrize("number", FINISHED)
def test_finished_trial_s_run_holds_recipe_curves_bundle_and_picture(
    adapted: Adapted, store_: TrackingStore, number: int
) -> None:
    run, record = runs(store_)[f"leeds/{number:04d}"], adapted.study.ledger[number]
    assert run.info.status == "FINISHED"
    assert run.data.params["strategy"] == record.config["recipe"]["strategy"]
    curve = store_.client.get_metric_history(run.info.run_id, "validation/psnr")
    steps = [0] if number == 0 else [2, 4, 6]
    assert [point.step for point in curve] == steps
    assert run.data.metrics["best/psnr"] == max(point.value for point in curve)
    assert record.metrics["psnr"] == run.data.metrics["best/psnr"]
    bundle = {"config.json", "provenance.json", "weights.safetensors"}
    assert artifacts(store_, run, "checkpoints/best") == bundle
    assert "validation.png" in artifacts(store_, run, "images")


def test_runs_say_in_the_table_what_a_physicist_asks_first(
    adapted: Adapted, store_: TrackingStore
) -> None:
    found = runs(store_)
    paper = found["leeds/0001"].data.metrics["best/psnr"]
    for number in FINISHED:
        run = found[f"leeds/{number:04d}"]
        psnr = run.data.metrics["best/psnr"]
        assert run.data.tags["domain"] == "toy"
        assert {"strategy", "freeze", "state"} <= set(run.data.tags)
        assert run.data.tags["best_psnr"] == f"{psnr:.2f}"
        assert run.data.tags["gain_over_paper_db"] == f"{psnr - paper:+.2f}"
        assert f"{psnr:.2f} dB" in run.data.tags["mlflow.note.content"]
        assert run.info.status == "FINISHED"
    assert "failed" in found["leeds/0003"].data.tags["mlflow.note.content"]
    parent = found["leeds"].data.tags
    note = parent["mlflow.note.content"]
    assert note.startswith(
        f"{adapted.outcome.rows[-1].psnr:.2f} dB, {parent['gain_over_paper_db']}"
    )
    assert f": trial {adapted.outcome.best}, " in note
    assert "gain_over_paper_db" in parent


@pytest.mark.parametrize("number", FINISHED)
def test_trials_show_a_slice_at_every_validation_and_each_subject(
    adapted: Adapted, store_: TrackingStore, number: int
) -> None:
    run = runs(store_)[f"leeds/{number:04d}"]
    pictures = artifacts(store_, run, "images")
    steps = {name.split("+step+")[1].split("+")[0] for name in pictures if "+step+" in name}
    assert steps == ({"0"} if number == 0 else {"2", "4", "6"})
    assert artifacts(store_, run, "tables") == {"validation_subjects.json"}
    assert {used.dataset.name for used in run.inputs.dataset_inputs} == {
        "toy-train",
        "toy-validation",
    }


def test_ctrl_c_means_what_it_did_before_the_search(adapted: Adapted) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_parent_run_shows_table_and_report(adapted: Adapted, store_: TrackingStore) -> None:
    parent = runs(store_)["leeds"]
    assert artifacts(store_, parent, "tables") == {"test.json", "test_subjects.json"}
    assert artifacts(store_, parent, "report") == {adapted.report.name}
    assert "| best trial |" in parent.data.tags["mlflow.note.content"]
    assert parent.data.metrics["test/psnr"] == adapted.outcome.rows[-1].psnr


@pytest.mark.parametrize("number", [2, 4])
def test_trial_in_a_worker_computes_what_it_computes_here(
    adapted: Adapted, store_: TrackingStore, tmp_path: Path, number: int
) -> None:
    study = adapted.study
    request, record = study.request, study.ledger[number]
    setting = TrialSetting(
        study=request.name,
        domain=request.domain,
        folder=tmp_path,
        pretrained=Path(request.pretrained),
        data=request.data_fingerprint,
        seed=request.seed,
        validations=request.validations,
    )
    data = trial_data(study, open_dataset(Path(request.data)))
    recipe = from_dict(Recipe, record.config["recipe"])
    reports: list[dict[str, float]] = []
    here = run_trial(number, recipe, setting, data, reports.append)
    theirs = load_bundle(study.bundle_of(record))
    weights = theirs.weights()
    assert here.provenance.metrics == pytest.approx(theirs.provenance.metrics, rel=1e-4)
    run = runs(store_)[f"leeds/{number:04d}"].info.run_id
    curve = [point.value for point in store_.client.get_metric_history(run, "validation/psnr")]
    assert curve == pytest.approx([report["psnr"] for report in reports], rel=1e-4)
    assert all(torch.allclose(value, weights[n], atol=1e-5) for n, value in here.weights().items())


def test_best_trial_is_the_domain_s_candidate(adapted: Adapted, store_: TrackingStore) -> None:
    models = SiteModels(store_)
    model = models.show("mfdiff-toy@candidate")
    assert str(model.id) == adapted.model == "mfdiff-toy/1"
    assert model.tags["study"] == "leeds"
    assert model.tags["trial"] == str(adapted.study.best().number)
    best = load_bundle(adapted.study.bundle_of(adapted.study.best()))
    bundle = load_bundle(models.resolve("mfdiff-toy@candidate"))
    assert bundle.provenance == best.provenance
    bundle.model()


def test_results_are_of_test_subjects_looked_at_once(adapted: Adapted) -> None:
    values = json.loads((adapted.study.folder / RESULTS).read_text())
    assert values["test_evaluations"] == 1
    names = [row["name"] for row in values["rows"]]
    assert names[0] == "LPET"
    assert names[1].startswith("LPET, Gaussian ")
    recipes = [name for name in names[2:] if not name.startswith("trial ")]
    assert recipes == ["external only", "two-stage (paper)", "internal only", "best trial"]
    test = open_dataset(Path(adapted.study.request.data)).split.test
    assert all(set(row["per_subject"]) == set(test) for row in values["rows"])


def test_same_command_again_does_nothing_new(
    adapted: Adapted, copied: TrackingStore, request_: StudyRequest
) -> None:
    before, shards = runs(copied), _times(copied.workspace / "studies/leeds/trials")
    again = adapt(Workspace(copied.workspace), copied, request_, TRIALS)
    assert again.outcome == adapted.outcome
    assert again.model == adapted.model
    after = runs(copied)
    assert after.keys() == before.keys()
    children = [key for key in before if "/" in key]
    assert all(after[k].info.end_time == before[k].info.end_time for k in children)
    assert _times(copied.workspace / "studies/leeds/trials") == shards
    assert len(SiteModels(copied).list()) == 1


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_study_grown_and_interrupted_adds_each_trial_once(
    copied: TrackingStore, request_: StudyRequest
) -> None:
    workspace = Workspace(copied.workspace)
    study, more = Study(workspace.study("leeds"), request_), SearchScale(trials=7, concurrent=1)
    before = {record.number: record for record in study.ledger}
    _ctrl_c_when(study.ledger.folder / "0005.json")
    with pytest.raises(KeyboardInterrupt):
        adapt(workspace, copied, request_, more)
    assert len(study.ledger.ended()) < 7
    assert "running" not in {run.data.tags["state"] for run in runs(copied).values()}
    cut: TrialRecord = study.ledger[5]

    grown = adapt(workspace, copied, request_, more)
    assert [record.number for record in grown.study.ledger] == list(range(7))
    assert all(grown.study.ledger[number] == record for number, record in before.items())
    assert grown.study.ledger[5].config == cut.config
    assert len(runs(copied)) == 1 + 7
    points = [record.config["recipe"] for record in grown.study.ledger][4:]
    assert len({json.dumps(point, sort_keys=True) for point in points}) == 3


def _ctrl_c_when(path: Path) -> None:
    """Send this process SIGINT as soon as ``path`` is there."""

    def wait() -> None:
        while not path.is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=wait, daemon=True).start()


def test_too_few_trials_for_the_references_are_refused(
    store: TrackingStore, request_: StudyRequest
) -> None:
    workspace = Workspace(store.workspace)
    with pytest.raises(ConfigError, match=r"--trials 3 leaves no room for the 4 .*at least 4"):
        adapt(workspace, store, request_, SearchScale(trials=3))
    assert not workspace.study("leeds").exists()


def test_trial_that_does_not_fit_is_refused_before_it_waits_for_ever(
    store: TrackingStore, request_: StudyRequest, ray_cluster: Cluster
) -> None:
    scale = SearchScale(trials=5, gpus_per_trial=0.5)
    with pytest.raises(ResourceError, match=r"needs 1 CPU and 0.5 GPUs.*--gpus-per-trial 0"):
        adapt(Workspace(store.workspace), store, request_, scale)
    assert runs(store)["leeds"].info.status == "FAILED"
