"""What goes when the disk is full, and what never does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.files import write_bytes, write_json
from mfdiff_core.model import build_model
from mfdiff_platform.cli import run
from mfdiff_platform.disk import clean_up, plan_clean_up
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.session import SESSION, SearchScale, Session
from mfdiff_platform.study import RESULTS, Study, StudyRequest, claim_study
from mfdiff_platform.study_record import EXPERIMENT
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import ENVIRONMENT, Workspace

ENDLESS = 10**12
REFERENCE, WORST, REGISTERED, MIDDLING, BEST = range(5)
PSNR = {REFERENCE: 10.0, WORST: 20.0, REGISTERED: 21.0, MIDDLING: 25.0, BEST: 30.0}


@pytest.fixture
def place(store: TrackingStore) -> Workspace:
    return Workspace(store.workspace)


@pytest.fixture
def study(place: Workspace, store: TrackingStore, pretrained: Bundle) -> Study:
    """Five finished trials with checkpoints in the study's folder and in MLflow."""
    names = ("data", "data_fingerprint", "phantom", "pretrained", "setting")
    fixed: dict[str, Any] = dict.fromkeys(names, "")
    request = StudyRequest(
        name="leeds", domain="toy", pretrained_sha256="", space="parameters: {}", **fixed
    )
    study = claim_study(place.study("leeds"), request)
    told = Provenance(domain="toy", strategy="x", iterations=1, seed=0, data="d", voxel_mm=2.0)
    for number, psnr in PSNR.items():
        reference = "external" if number == REFERENCE else ""
        config: dict[str, Any] = {"recipe": {}, "reference": reference, "distributions": None}
        folder = f"trials/{number:04d}/bundle"
        weights = build_model(pretrained.config, seed=number).state_dict()
        bundle = save_bundle(study.folder / folder, pretrained.config, weights, told)
        write_bytes(study.folder / f"trials/{number:04d}/validations/00000001.png", b"png")
        study.ledger.add(config, number)
        study.ledger.update(number, state="finished", metrics={"psnr": psnr}, bundle=folder)
        trial = store.find_or_create(EXPERIMENT, f"leeds/{number:04d}")
        trial.log_dir(bundle.folder, "checkpoints/best")
        if number == REGISTERED:
            models = SiteModels(store)
            models.register_candidate("toy", bundle.folder, trial.run_id, {}, "card")
            models.resolve("mfdiff-toy@candidate")
    write_json(study.folder / RESULTS, {})
    scale = SearchScale(trials=len(PSNR), finalists=1)
    write_json(study.folder / SESSION, asdict(Session(state="finished", scale=scale)))
    write_bytes(study.folder / "tune/tuner.pkl", b"ray" * 100)
    return study


def bundles(study: Study) -> set[int]:
    """Trials whose checkpoint is in the study's folder."""
    return {n for n in PSNR if (study.folder / f"trials/{n:04d}/bundle/config.json").is_file()}


def artifacts(store: TrackingStore) -> set[int]:
    """Trials whose checkpoint is in MLflow."""
    found = {n: store.find(EXPERIMENT, f"leeds/{n:04d}") for n in PSNR}
    client = store.client
    return {
        n for n, r in found.items() if r and client.list_artifacts(r.info.run_id, "checkpoints")
    }


def test_within_the_quota_only_copies_go(
    study: Study, place: Workspace, store: TrackingStore
) -> None:
    plan = plan_clean_up(place, store, ENDLESS)
    clean_up(store, plan)
    assert not (study.folder / "tune").exists()
    assert not list(place.root.glob("models/*/*"))
    assert not list(study.folder.rglob("validations"))
    assert bundles(study) == artifacts(store) == set(PSNR)
    SiteModels(store).resolve("mfdiff-toy@candidate")
    assert plan_clean_up(place, store, ENDLESS).used == pytest.approx(plan.left, rel=0.4)


def test_above_the_quota_the_worst_goes_first_and_only_as_much_as_needed(
    study: Study, place: Workspace, store: TrackingStore
) -> None:
    quota = plan_clean_up(place, store, ENDLESS).left - 1
    plan = plan_clean_up(place, store, quota)
    assert {item.run_key for item in plan.items} == {"", f"leeds/{WORST:04d}"}
    assert plan.left <= quota


def test_best_reference_and_registered_stay_whatever_the_quota(
    study: Study, place: Workspace, store: TrackingStore
) -> None:
    clean_up(store, plan_clean_up(place, store, 0))
    assert bundles(study) == artifacts(store) == {REFERENCE, REGISTERED, BEST}
    found = store.find(EXPERIMENT, f"leeds/{WORST:04d}")
    assert found is not None
    assert found.data.tags["checkpoint"] == "removed to keep the quota"
    SiteModels(store).resolve("mfdiff-toy@candidate")
    assert not [item for item in plan_clean_up(place, store, 0).items if item.run_key]


def test_all_that_test_subjects_were_opened_for_stay(
    study: Study, place: Workspace, store: TrackingStore
) -> None:
    (study.folder / SESSION).unlink()
    clean_up(store, plan_clean_up(place, store, 0))
    assert bundles(study) == {REFERENCE, REGISTERED, MIDDLING, BEST}


def test_trainings_with_other_seeds_stay_for_tested_trials_alone(
    study: Study, place: Workspace, store: TrackingStore
) -> None:
    trained = [study.folder / f"repeats/seed-1/trials/{n:04d}" for n in (BEST, MIDDLING)]
    for folder in trained:
        write_bytes(folder / "bundle/weights.safetensors", b"weights")
        write_bytes(folder / "validations/00000001.png", b"png")
    clean_up(store, plan_clean_up(place, store, ENDLESS))
    assert [path.name for path in trained[0].iterdir()] == ["bundle"]
    assert not trained[1].exists()


@pytest.mark.parametrize("state", ["running", "no results"])
def test_a_study_under_way_is_left_alone(
    study: Study, place: Workspace, store: TrackingStore, state: str
) -> None:
    if state == "running":
        study.ledger.update(WORST, state="running")
    else:
        (study.folder / RESULTS).unlink()
    assert {item.path.parent.parent.name for item in plan_clean_up(place, store, 0).items} == {
        "models"
    }


def test_a_dry_run_removes_nothing(
    study: Study,
    place: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(place.root))
    before = sorted(Path(place.root).rglob("*.safetensors"))
    assert run(["study", "gc", "--dry-run", "--quota-gb", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["freed"] > 0
    assert not told["removed"]
    assert sorted(Path(place.root).rglob("*.safetensors")) == before
    assert run(["study", "gc", "--quota-gb", "0", "--yes"]) == 0
    assert "above the quota" in capsys.readouterr().out
    assert len(list(Path(place.root).rglob("*.safetensors"))) < len(before)
