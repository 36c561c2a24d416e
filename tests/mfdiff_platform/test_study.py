from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.errors import ConfigError, DataError
from mfdiff_platform.study import REQUEST, Study, StudyRequest, claim_study, load_study
from mfdiff_platform.suggestion import Suggestion

SPACE = """
parameters:
  iterations: {value: 30}
  lr: {low: 1e-4, high: 1e-3, log: true}
references:
  - {name: gentle, strategy: two_stage, lr: 2e-5}
"""
REFERENCES = ["external", "two-stage (paper)", "internal", "gentle"]
RECIPE = {"lr": 2e-4, "iterations": 30}
POINT = {"recipe": RECIPE, "reference": "", "distributions": {}}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return claim_study(tmp_path / "study", request())


def request(**changes: Any) -> StudyRequest:
    values = {
        "name": "leeds",
        "domain": "toy",
        "data": "/data/toy",
        "data_fingerprint": "f" * 64,
        "phantom": "",
        "pretrained": "/bundle",
        "pretrained_sha256": "0" * 64,
        "setting": "",
        "space": SPACE,
    }
    return StudyRequest(**{**values, **changes})


def run(study: Study, number: int, psnr: float | None, state: str, iterations: int = 30) -> None:
    """Record a trial: a reference by its number, else a search point."""
    names = list(study.request.references())
    known = {**POINT, "reference": names[number]} if number < len(names) else POINT
    study.ledger.add(known, number)
    metrics = {} if psnr is None else {"psnr": psnr}
    study.ledger.update(number, state=state, metrics=metrics, iterations=iterations)


def test_claimed_study_is_on_disk(study: Study) -> None:
    assert load_study(study.folder) == study
    assert claim_study(study.folder, request()) == study


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "another seed;"),
        ({"scheduler": "none", "sampler": "random"}, "another sampler, scheduler;"),
        ({"data_fingerprint": "e" * 64}, "another data_fingerprint;"),
    ],
)
def test_study_of_other_settings_is_refused_and_the_settings_named(
    study: Study, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as fault:
        claim_study(study.folder, request(**changes))
    assert "--name" in str(fault.value)
    assert load_study(study.folder).request == request()


def test_folder_without_a_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no study .no {REQUEST}"):
        load_study(tmp_path)


def test_new_study_begins_with_all_references_in_order(study: Study) -> None:
    assert [suggestion.reference for suggestion in study.pending()] == REFERENCES
    assert [suggestion.number for suggestion in study.pending()] == [0, 1, 2, 3]
    assert study.unasked(7) == [4, 5, 6]


def test_trial_cut_short_runs_again_before_those_that_had_not_begun(study: Study) -> None:
    """Otherwise other trials would be stopped than in an uninterrupted study."""
    run(study, 0, 25.0, "finished")
    run(study, 1, None, "running")
    assert [suggestion.number for suggestion in study.pending()] == [1, 2, 3]
    assert study.unasked(7) == [4, 5, 6]


def test_ended_trials_wait_no_more_whatever_their_end(study: Study) -> None:
    for number, state in enumerate(("finished", "failed", "pruned")):
        run(study, number, 20.0, state)
    assert [suggestion.reference for suggestion in study.pending()] == ["gentle"]


def test_trial_cut_short_waits_as_it_was_asked(study: Study) -> None:
    for number in range(4):
        run(study, number, 20.0, "finished")
    run(study, 4, None, "running", 0)
    assert study.pending() == [Suggestion(4, RECIPE, "", {})]
    assert study.unasked(6) == [5]


def test_number_that_was_never_recorded_is_asked_again(study: Study) -> None:
    for number in (0, 1, 2, 3, 5):
        run(study, number, 20.0, "finished")
    assert study.unasked(7) == [4, 6]


def test_history_tells_how_each_trial_ended_and_when(study: Study) -> None:
    run(study, 4, 22.0, "finished")
    run(study, 5, 21.0, "pruned", 10)
    run(study, 6, None, "failed", 0)
    run(study, 7, None, "running", 0)
    told = [(o.outcome, o.value, o.iterations) for o in study.history()]
    assert told == [("finished", 22.0, 30), ("pruned", 21.0, 10), ("failed", None, 0)]


def test_best_is_the_first_of_the_best_finished_trials(study: Study) -> None:
    for number, psnr in enumerate((20.0, 23.0, 21.0, 23.0)):
        run(study, number, psnr, "finished")
    run(study, 4, 99.0, "pruned")
    assert study.best().number == 1


def test_study_without_a_finished_trial_has_no_best(study: Study) -> None:
    run(study, 0, 20.0, "pruned")
    with pytest.raises(DataError, match="no trial has finished"):
        study.best()


def test_bundles_move_with_the_study(study: Study, tmp_path: Path) -> None:
    run(study, 0, 20.0, "finished")
    record = study.ledger.update(0, bundle="trials/0000/bundle")
    moved = load_study(study.folder.rename(tmp_path / "moved"))
    assert moved.bundle_of(record) == tmp_path / "moved/trials/0000/bundle"


def test_single_stage_joins_the_references_when_asked_for() -> None:
    assert "single-stage" not in request().references()
    assert "single-stage" in request(with_single_stage=True).references()
