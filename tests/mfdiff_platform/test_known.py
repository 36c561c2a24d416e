"""Children of studies, warm starts: what may be taken over, and as what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from mfdiff_platform.known import best_points, nearest_point, point_of, rate_ladder
from mfdiff_platform.search_space import parse
from mfdiff_platform.searcher import RecipeSearcher
from mfdiff_platform.study import Study, StudyRequest, claim_study, load_study

SPACE = """
parameters:
  iterations: {value: 30}
  lr: {low: 1e-4, high: 1e-3, log: true}
  schedule: {choices: [constant, cosine]}
"""
WIDER = SPACE.replace("1e-3", "1e-2")


def request(**changes: Any) -> StudyRequest:
    fixed = {"data": "", "data_fingerprint": "", "phantom": "", "pretrained": "", "setting": ""}
    values = {"name": "s", "domain": "toy", "pretrained_sha256": "", "space": SPACE, **fixed}
    return StudyRequest(**{**values, **changes})


def run(study: Study, number: int, lr: float, psnr: float, state: str = "finished") -> None:
    recipe = {"iterations": 30, "lr": lr, "schedule": "cosine"}
    point = point_of(parse(SPACE), recipe)
    assert point is not None
    config = {"recipe": recipe, "reference": "", "distributions": point.distributions}
    study.ledger.add(config, number)
    iterations = 30 if state == "finished" else 10
    study.ledger.update(number, state=state, metrics={"psnr": psnr}, iterations=iterations)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Three points: the best, a stopped one, another."""
    study = claim_study(tmp_path / "w/studies/s", request())
    for number, (lr, psnr, state) in enumerate(
        [(2e-4, 30.0, "finished"), (3e-4, 20.0, "pruned"), (4e-4, 29.0, "finished")], start=3
    ):
        run(study, number, lr, psnr, state)
    return study


def test_changed_space_starts_a_child_that_knows_the_old_points(study: Study) -> None:
    child = claim_study(study.folder, request(space=WIDER))
    assert (child.request.name, child.request.parent) == ("s-2", "s")
    told = [(o.suggestion.number, o.outcome, o.value) for o in child.history()]
    assert told == [(-2, "pruned", 20.0), (-1, "finished", 29.0)]
    (best,) = child.known.points
    assert best.recipe["lr"] == 2e-4
    assert [s.number for s in child.first()] == [0, 1, 2, 3]
    assert load_study(study.folder).request == request()


def test_same_changed_space_resumes_the_child(study: Study) -> None:
    child = claim_study(study.folder, request(space=WIDER))
    assert claim_study(study.folder, request(space=WIDER)).folder == child.folder
    assert claim_study(study.folder, request()).folder == study.folder


def test_space_changed_again_starts_a_child_of_the_child(study: Study) -> None:
    claim_study(study.folder, request(space=WIDER))
    widest = claim_study(study.folder, request(space=SPACE.replace("1e-3", "1e-1")))
    assert (widest.request.name, widest.request.parent) == ("s-3", "s-2")
    # What the child itself took over is passed on; its own point was never tried.
    assert [o.value for o in widest.known.observations] == [20.0, 29.0]


def test_searcher_of_a_child_models_the_old_points(study: Study) -> None:
    child = claim_study(study.folder, request(space=WIDER))
    searcher = RecipeSearcher(
        child.request.search_space(),
        pending=child.pending(),
        history=child.history(),
        numbers=child.unasked(9),
        seed=0,
        sampler="tpe",
        objectives=child.objectives,
    )
    states = [trial.state for trial in searcher._study.trials]
    first = [TrialState.RUNNING] * 2  # the paper's recipe again, and the parent's best point
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, *first]


@pytest.mark.parametrize(
    ("space", "outcomes"),
    [
        (SPACE.replace("30", "60"), ["pruned", "pruned"]),  # what was whole is now half a trial
        (SPACE.replace("30", "20"), ["pruned"]),  # the stopped one reached 10, the others 30
        (SPACE.replace("1e-4", "3.5e-4"), []),  # only the best of what is left, tried again
        (SPACE.replace("constant, cosine", "constant, linear"), []),
    ],
)
def test_only_what_the_new_space_can_express_is_taken_over(
    study: Study, space: str, outcomes: list[str]
) -> None:
    child = claim_study(study.folder, request(space=space))
    assert [o.outcome for o in child.known.observations] == outcomes


def test_trial_that_failed_before_its_end_is_no_result_of_a_child(study: Study) -> None:
    run(study, 6, 5e-4, 31.0, "failed")
    child = claim_study(study.folder, request(space=WIDER))
    assert [o.outcome for o in child.known.observations] == ["pruned", "finished", "failed"]


def test_recipe_with_settings_that_the_space_lacks_is_no_point_of_it() -> None:
    space = parse(SPACE)
    inside = {"iterations": 500, "lr": 2e-4, "schedule": "constant"}
    point = point_of(space, inside)
    assert point is not None
    assert point.recipe["iterations"] == 30
    assert set(point.distributions or {}) == {"lr", "schedule"}
    assert point_of(space, {**inside, "l2sp": 0.1}) is None
    assert point_of(space, {**inside, "lr": 0.5}) is None
    assert point_of(space, {**inside, "strategy": "external", "iterations": 0}) is None


def test_nearest_point_has_the_closest_numbers_but_the_same_names() -> None:
    space = parse(SPACE)
    near = nearest_point(space, {"iterations": 500, "lr": 0.5, "l2sp": 0.1})
    assert near is not None
    assert near.recipe["lr"] == 1e-3
    assert near.recipe["iterations"] == 30
    assert "l2sp" not in near.recipe
    assert nearest_point(space, {"strategy": "external", "iterations": 0}) is None
    assert nearest_point(space, {"iterations": 500, "schedule": "linear"}) is None


def test_first_points_are_the_papers_recipe_at_the_rates_that_the_space_has() -> None:
    lr = {"low": 3e-5, "high": 2e-3, "log": True}
    lists = {"strategy": ["two_stage", "internal"], "ema": [0.8, 0.99], "augment": ["none", "flip"]}
    choices = {name: {"choices": values} for name, values in lists.items()}
    text = json.dumps({"parameters": {**choices, "iterations": {"value": 100}, "lr": lr}})
    space = parse(text)
    points = rate_ladder(space, space.references()["two-stage (paper)"], 9)
    assert [point.recipe["lr"] for point in points] == pytest.approx([1e-3, 3e-4])
    for point in points:
        fixed = {"strategy": "two_stage", "iterations": 100, "ema": 0.8, "augment": "none"}
        assert point.recipe == {**fixed, "lr": point.recipe["lr"]}


def test_rates_of_a_list_are_found_in_spite_of_rounding() -> None:
    """3 * 1e-4 is 0.00030000000000000003."""
    space = parse(
        "parameters: {iterations: {value: 100}, lr: {choices: [1.0e-4, 3.0e-4, 3.0e-3, 1.0e-2]}}"
    )
    points = rate_ladder(space, space.references()["two-stage (paper)"], 9)
    assert [point.recipe["lr"] for point in points] == [3e-3, 3e-4]


@pytest.mark.parametrize(("points", "given"), [(-1, 0), (2, 0), (3, 1), (8, 2), (9, 3), (47, 3)])
def test_a_third_of_the_search_points_at_most_is_given(points: int, given: int) -> None:
    space = parse("parameters: {iterations: {value: 100}, lr: {low: 1.0e-4, high: 1.0e-2}}")
    ladder = rate_ladder(space, space.references()["two-stage (paper)"], points)
    assert [point.recipe["lr"] for point in ladder] == pytest.approx([1e-3, 3e-3, 3e-4][:given])


@pytest.mark.parametrize(
    "lacking",
    [{"strategy": "internal"}, {"lr": 2e-4}, {"schedule": "linear"}, {"lr": 1e-4}],
)
def test_space_that_lacks_the_papers_recipe_has_no_such_points(lacking: dict[str, Any]) -> None:
    fixed = {name: {"value": value} for name, value in lacking.items()}
    lr = {"low": 1e-4, "high": 1e-2, "log": True}
    text = json.dumps({"parameters": {"iterations": {"value": 100}, "lr": lr, **fixed}})
    space = parse(text)
    assert rate_ladder(space, space.references()["two-stage (paper)"], 9) == []


def test_best_points_of_another_study_come_best_first(study: Study) -> None:
    found = best_points(study, parse(WIDER), 3)
    assert [point.recipe["lr"] for point in found] == [2e-4, 4e-4]
