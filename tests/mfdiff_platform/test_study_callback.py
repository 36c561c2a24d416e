"""What the driver writes down when Ray Tune tells it something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from mfdiff_core.files import write_bytes
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.progress import Task
from mfdiff_platform.study import Study, StudyRequest, claim_study
from mfdiff_platform.study_callback import StudyCallback, reason_of
from mfdiff_platform.study_record import complete_trial_runs
from mfdiff_platform.suggestion import FINAL, LAST
from mfdiff_platform.tracking import TrackingStore

EXPERIMENT = "studies"


@pytest.fixture
def study(store: TrackingStore) -> Study:
    fixed: dict[str, Any] = {
        "data": "",
        "data_fingerprint": "",
        "phantom": "",
        "pretrained": "",
        "setting": "",
    }
    request = StudyRequest(
        name="leeds",
        domain="toy",
        pretrained_sha256="",
        space="parameters: {iterations: {value: 6}}",
        **fixed,
    )
    return claim_study(store.workspace / "study", request)


@pytest.fixture
def callback(study: Study, store: TrackingStore) -> StudyCallback:
    parent = store.find_or_create(EXPERIMENT, "leeds")
    return StudyCallback(study, store, parent, Task("Adapting", 9, None))


@pytest.fixture
def trial(callback: StudyCallback) -> Trial:
    """Trial 4, begun."""
    recipe = {"strategy": "two_stage", "iterations": 6}
    config = {"number": 4, "recipe": recipe, "reference": "", "distributions": {}}
    made = Trial("recipe", config=config, stub=True)
    callback.on_trial_start(0, [made], made)
    return made


def report(callback: StudyCallback, trial: Trial, **result: Any) -> None:
    trial.run_metadata.last_result = result
    callback.on_trial_result(0, [trial], trial, result)


def run_of(store: TrackingStore) -> Any:
    found = store.find(EXPERIMENT, "leeds/0004")
    assert found is not None
    return found


def curve(store: TrackingStore, name: str) -> list[tuple[int, float]]:
    points = store.client.get_metric_history(run_of(store).info.run_id, name)
    return [(point.step, point.value) for point in points]


def ended(study: Study) -> TrialRecord:
    return study.ledger[4]


def test_trial_that_begins_is_recorded_with_its_recipe(
    trial: Trial, study: Study, store: TrackingStore
) -> None:
    assert ended(study).state == "running"
    assert ended(study).config["recipe"] == trial.config["recipe"]
    run = run_of(store)
    assert run.info.status == "RUNNING"
    assert run.data.params["iterations"] == "6"
    assert run.data.params["lr"] == "0.0001"


def test_curve_ends_with_the_last_validation_and_best_is_the_bundle_s(
    trial: Trial, callback: StudyCallback, study: Study, store: TrackingStore
) -> None:
    report(callback, trial, psnr=29.0, loss=0.5, iterations=2)
    report(callback, trial, psnr=30.0, loss=0.4, iterations=4)
    last = {f"{LAST}psnr": 28.0, f"{LAST}loss": 0.3}
    report(callback, trial, psnr=30.0, loss=0.3, iterations=6, **last, **{FINAL: True})
    assert curve(store, "validation/psnr") == [(2, 29.0), (4, 30.0), (6, 28.0)]
    assert curve(store, "validation/loss") == [(2, 0.5), (4, 0.4), (6, 0.3)]
    assert curve(store, "best/psnr") == [(6, 30.0)]
    assert curve(store, "best/loss") == []

    folder = study.folder / "trials/0004"
    write_bytes(folder / "bundle/weights.safetensors", b"weights")
    write_bytes(folder / "validation.png", _png())
    callback.on_trial_complete(0, [trial], trial)
    record = ended(study)
    assert (record.state, record.bundle, record.iterations) == ("finished", "trials/0004/bundle", 6)
    assert record.metrics == {"psnr": 30.0, "loss": 0.3}


def _png() -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def test_value_that_is_no_number_is_recorded_but_not_drawn(
    trial: Trial, callback: StudyCallback, study: Study, store: TrackingStore
) -> None:
    report(callback, trial, psnr=20.0, loss=float("nan"), iterations=2)
    assert curve(store, "validation/loss") == []
    callback.on_trial_complete(0, [trial], trial)
    assert str(ended(study).metrics["loss"]) == "nan"


def test_trial_that_the_scheduler_stops_is_pruned_where_it_was(
    trial: Trial, callback: StudyCallback, study: Study, store: TrackingStore
) -> None:
    report(callback, trial, psnr=20.0, iterations=2)
    callback.on_trial_complete(0, [trial], trial)
    record = ended(study)
    assert (record.state, record.iterations, record.bundle) == ("pruned", 2, "")
    assert record.reason == "stopped at 2 iterations"
    run = run_of(store)
    assert run.info.status == "KILLED"
    assert run.data.tags["state"] == "pruned: stopped at 2 iterations"
    assert run.data.tags["best_psnr"] == "20.00"
    assert "gain_over_paper_db" not in run.data.tags
    assert run.data.tags["mlflow.note.content"] == (
        "pruned: stopped at 2 iterations, 20.00 dB until then; two_stage, freeze none; "
        "validation subjects"
    )


def test_reason_of_a_failure_is_the_last_line_of_its_traceback(tmp_path: Path) -> None:
    for last, told in (
        ("mfdiff_core.errors.TrainingError: step 7: no finite loss", "step 7: no finite loss"),
        ("RuntimeError: no room left", "RuntimeError: no room left"),
    ):
        (tmp_path / "error.txt").write_text(f"Traceback (most recent call last):\n  ..\n{last}\n\n")
        assert reason_of(str(tmp_path / "error.txt")) == told
    assert "without a word" in reason_of(str(tmp_path / "nothing.txt"))


def test_trial_cut_short_stays_pending_and_its_run_does_not_run_on(
    trial: Trial, callback: StudyCallback, study: Study, store: TrackingStore
) -> None:
    callback.on_experiment_end([trial])
    assert ended(study).state == "running"
    assert run_of(store).data.tags["state"] == "interrupted"


def test_run_whose_trial_ended_behind_its_back_is_told(
    trial: Trial, callback: StudyCallback, study: Study, store: TrackingStore
) -> None:
    """The driver was killed after it wrote to the ledger, or before it wrote to MLflow at all."""
    blame = "was running in 3 sessions that crashed"
    study.ledger.add(ended(study).config, 5)
    for number in (4, 5):
        study.ledger.update(number, state="failed", reason=blame)
    parent = store.find_or_create(EXPERIMENT, "leeds")
    complete_trial_runs(study, store, parent)
    ends = []
    for number in (4, 5):
        found = store.find(EXPERIMENT, f"leeds/000{number}")
        assert found is not None
        assert (found.info.status, found.data.tags["state"]) == ("FAILED", f"failed: {blame}")
        assert found.data.tags["kind"] == "trial"
        assert found.data.tags["mlflow.parentRunId"] == parent.run_id
        assert found.info.run_name == f"00{number} two_stage, freeze none"
        ends.append(found.info.end_time)
    complete_trial_runs(study, store, parent)
    assert run_of(store).info.end_time == ends[0]


def test_resumed_trial_goes_on_in_its_run(
    trial: Trial, callback: StudyCallback, study: Study, store: TrackingStore
) -> None:
    first = run_of(store).info.run_id
    callback.on_experiment_end([trial])
    parent = store.find_or_create(EXPERIMENT, "leeds")
    later = StudyCallback(study, store, parent, Task("Adapting", 9, None))
    later.on_trial_start(0, [trial], trial)
    assert run_of(store).info.run_id == first
    assert run_of(store).info.status == "RUNNING"
    assert len(study.ledger) == 1
