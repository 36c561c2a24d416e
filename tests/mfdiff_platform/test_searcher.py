"""The searcher alone: a synthetic objective, trials one at a time, a ledger as its only memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mfdiff_core.config import from_dict, to_dict
from mfdiff_platform.known import Known, rate_ladder
from mfdiff_platform.ledger import Ledger
from mfdiff_platform.searcher import RecipeSearcher, remembered
from mfdiff_platform.study import Study, StudyRequest, claim_study, recorded
from mfdiff_platform.suggestion import FINAL, Observation, Suggestion

SPACE = """
parameters:
  strategy: {choices: [two_stage, internal]}
  iterations: {value: 90}
  lr: {low: 1e-5, high: 1e-2, log: true}
  schedule: {choices: [constant, cosine, linear]}
  freeze: {choices: [none, encoders, fusion], when: {strategy: two_stage}}
"""
TRIALS = 15
Ending = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path, request())


def request(**changes: Any) -> StudyRequest:
    fixed = {"data": "", "data_fingerprint": "", "phantom": "", "pretrained": ""}
    values = {"name": "s", "domain": "toy", "pretrained_sha256": "", "setting": "", "space": SPACE}
    return StudyRequest(**{**fixed, **values, **changes})


def open_searcher(study: Study, trials: int = TRIALS) -> RecipeSearcher:
    return RecipeSearcher(
        study.request.search_space(),
        pending=study.pending(),
        history=study.history(),
        numbers=study.unasked(trials),
        seed=study.request.seed,
        sampler=study.request.sampler,
        objectives=study.objectives,
    )


def outcome(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a trial does, from its config alone: some finish, some are stopped, some fail."""
    if config["number"] % 7 == 5:
        return "failed", {}
    if config["number"] % 4 == 3:
        return stopped(config)
    return "finished", {"psnr": psnr_of(config["recipe"]), "iterations": 90, FINAL: True}


def stopped(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A trial that the scheduler ends at one of three rungs."""
    rung = 10 + 10 * (config["number"] % 3)
    return "pruned", {"psnr": psnr_of(config["recipe"]) - 1, "iterations": rung}


def psnr_of(recipe: Mapping[str, Any]) -> float:
    return 30 - 1e3 * abs(float(recipe["lr"]) - 1e-3) + len(recipe.get("freeze", "")) / 10


def step(
    searcher: RecipeSearcher, ledger: Ledger, *, killed: bool = False, ends: Ending = outcome
) -> Any:
    """One trial, recorded as a study's driver does; ``killed`` ends the session within it."""
    config = searcher.suggest("id")
    if not isinstance(config, dict):
        return config
    if config["number"] not in {record.number for record in ledger}:
        ledger.add(recorded(config), config["number"])
    if not killed:
        state, result = ends(config)
        searcher.on_trial_complete("id", result or None, error=state == "failed")
        metrics = {"psnr": result["psnr"]} if result else {}
        iterations = result.get("iterations", 0)
        ledger.update(config["number"], state=state, metrics=metrics, iterations=iterations)
    return config


def run_to_end(study: Study, trials: int = TRIALS) -> None:
    searcher = open_searcher(study, trials)
    while step(searcher, study.ledger) != Searcher.FINISHED:
        pass


def recipes(study: Study) -> list[dict[str, Any]]:
    return [record.config["recipe"] for record in study.ledger]


def test_references_come_first_then_points_of_the_space(study: Study) -> None:
    searcher = open_searcher(study)
    configs = [step(searcher, study.ledger) for _ in range(5)]
    assert [config["reference"] for config in configs] == [*study.request.references(), "", ""]
    assert [config["number"] for config in configs] == [0, 1, 2, 3, 4]


def test_search_ends_with_the_number_asked_for(study: Study) -> None:
    run_to_end(study)
    assert [record.number for record in study.ledger] == list(range(TRIALS))
    assert {record.state for record in study.ledger} == {"finished", "pruned", "failed"}


def test_searcher_draws_near_what_was_good(study: Study) -> None:
    run_to_end(study, 53)
    off = [abs(math.log10(recipe["lr"] / 1e-3)) for recipe in recipes(study)[3:]]
    assert sum(off[-15:]) < 0.6 * sum(off[:15])


@pytest.mark.parametrize("killed_in", [4, 12, 13])
def test_killed_and_resumed_study_tries_what_an_uninterrupted_one_does(
    tmp_path: Path, killed_in: int
) -> None:
    whole, broken = Study(tmp_path / "whole", request()), Study(tmp_path / "broken", request())
    run_to_end(whole)
    searcher = open_searcher(broken)
    for number in range(killed_in + 1):
        step(searcher, broken.ledger, killed=number == killed_in)
    run_to_end(broken)
    assert recipes(broken) == recipes(whole)


@pytest.mark.parametrize("killed_in", [1, 3, 4, 6, 13])
def test_killed_study_that_was_given_points_goes_on_as_an_uninterrupted_one_does(
    tmp_path: Path, killed_in: int
) -> None:
    """References and given points are told in one order, wherever a session begins."""
    space = request().search_space()
    points = rate_ladder(space, space.references()["two-stage (paper)"], TRIALS)
    given = Known(points=tuple(points))
    assert len(given.points) == 3
    studies = [claim_study(tmp_path / name, request(), given) for name in ("whole", "broken")]
    run_to_end(studies[0], 24)
    searcher = open_searcher(studies[1], 24)
    for number in range(killed_in + 1):
        step(searcher, studies[1].ledger, killed=number == killed_in)
    run_to_end(studies[1], 24)
    assert recipes(studies[1]) == recipes(studies[0])


def test_study_resumed_after_every_trial_tries_the_same_too(tmp_path: Path) -> None:
    whole, broken = Study(tmp_path / "whole", request()), Study(tmp_path / "broken", request())
    run_to_end(whole)
    for _ in range(TRIALS):
        step(open_searcher(broken), broken.ledger)
    assert recipes(broken) == recipes(whole)


def test_resumed_search_ranks_stopped_trials_as_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, broken = Study(tmp_path / "whole", request()), Study(tmp_path / "broken", request())
    searcher = open_searcher(whole)
    for _ in range(TRIALS):
        step(searcher, whole.ledger, ends=stopped)
        step(open_searcher(broken), broken.ledger, ends=stopped)
    assert {record.state for record in whole.ledger} == {"pruned"}
    assert recipes(broken) == recipes(whole)


def test_grown_study_continues_as_if_it_had_been_that_long(tmp_path: Path) -> None:
    long, grown = Study(tmp_path / "long", request()), Study(tmp_path / "grown", request())
    run_to_end(long)
    run_to_end(grown, 9)
    run_to_end(grown, TRIALS)
    assert recipes(grown) == recipes(long)


def test_another_process_suggests_the_same(study: Study) -> None:
    run_to_end(study, 13)
    ours = open_searcher(study, 14).suggest("id")
    program = (
        "import json, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from tests.mfdiff_platform.test_searcher import Study, open_searcher, request\n"
        "study = Study(Path(sys.argv[1]), request())\n"
        "print(json.dumps(open_searcher(study, 14).suggest('id')))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(study.folder), str(root)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == ours


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_seed_decides_what_is_tried(tmp_path: Path, sampler: str) -> None:
    seeds = {"a": 0, "b": 0, "c": 1}
    studies = {
        name: Study(tmp_path / name, request(seed=seed, sampler=sampler))
        for name, seed in seeds.items()
    }
    for study in studies.values():
        run_to_end(study, 6)
    assert recipes(studies["a"]) == recipes(studies["b"])
    assert recipes(studies["a"])[3:] != recipes(studies["c"])[3:]


def test_no_two_points_of_a_study_are_alike(study: Study) -> None:
    run_to_end(study)
    assert len({record.key for record in study.ledger}) == TRIALS


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ({"psnr": 25.0, "iterations": 90, FINAL: True}, TrialState.COMPLETE),
        ({"psnr": 25.0, "iterations": 30}, TrialState.COMPLETE),  # by what it had reached
        (None, TrialState.FAIL),
        ({"iterations": 30}, TrialState.FAIL),
        ({"psnr": float("nan"), "iterations": 90, FINAL: True}, TrialState.FAIL),
    ],
)
def test_optuna_learns_how_a_trial_ended(
    study: Study, ending: dict[str, Any] | None, state: TrialState
) -> None:
    searcher = open_searcher(study)
    for trial_id in ("a", "b", "c", "point"):
        searcher.suggest(trial_id)
    searcher.on_trial_complete("point", ending)
    *_, told = searcher._study.trials
    assert told.state == state
    assert told.values == ([25.0] if state == TrialState.COMPLETE else None)


def test_poor_trial_that_ran_to_its_end_is_no_better_than_a_good_one_that_was_stopped(
    study: Study,
) -> None:
    searcher = open_searcher(study)
    for trial_id in ("a", "b", "c", "whole", "stopped"):
        searcher.suggest(trial_id)
    searcher.on_trial_complete("whole", {"psnr": 24.0, "iterations": 90, FINAL: True})
    searcher.on_trial_complete("stopped", {"psnr": 28.0, "iterations": 5})
    assert searcher._study.best_trial.value == 28.0


def test_stopped_trial_is_told_by_the_best_it_had_reached(study: Study) -> None:
    """Now, and to a searcher that knows it from the ledger."""
    searcher = open_searcher(study)
    for trial_id in ("a", "b", "c"):
        searcher.suggest(trial_id)
    config = searcher.suggest("jittery")
    assert isinstance(config, dict)
    for iterations, psnr in ((5, 27.0), (10, 26.0)):
        searcher.on_trial_result("jittery", {"psnr": psnr, "iterations": iterations})
    last = {"psnr": 26.0, "iterations": 10}
    searcher.on_trial_complete("jittery", last)
    assert searcher._study.trials[-1].values == [27.0]
    study.ledger.add(recorded(config), 3)
    curve = ((5, 27.0), (10, 26.0))
    study.ledger.update(3, state="pruned", metrics=last, iterations=10, curve=curve)
    (observation,) = study.history()
    assert observation.value == 27.0


@pytest.mark.parametrize("value", [None, float("nan")])
def test_search_point_without_a_figure_is_remembered_as_failed(value: float | None) -> None:
    point = Suggestion(
        3, {"lr": 1e-3}, "", {"lr": distribution_to_json(FloatDistribution(1e-4, 1e-2))}
    )
    known = remembered(Observation(point, "pruned", value, 5), 1)
    assert known is not None
    assert known.state == TrialState.FAIL


def test_references_that_are_points_of_the_space_are_told_to_optuna(study: Study) -> None:
    searcher = open_searcher(study)
    for number, trial_id in enumerate(study.request.references()):
        config = searcher.suggest(trial_id)
        assert isinstance(config, dict)
        ending = {"psnr": 50.0 + number, "iterations": 90, FINAL: True}
        searcher.on_trial_complete(trial_id, ending)
        study.ledger.add(recorded(config), number)
        study.ledger.update(number, state="finished", metrics=ending, iterations=90)
    told = [(trial.params["strategy"], trial.values) for trial in searcher._study.trials]
    assert told == [("two_stage", [51.0]), ("internal", [52.0])]  # external trains nothing
    again = [(t.params["strategy"], t.values) for t in open_searcher(study)._study.trials]
    assert again == told


def test_reference_that_the_space_lacks_is_told_as_the_nearest_point(tmp_path: Path) -> None:
    """The paper's rate of 1e-4 and its memory of 0.9999 lie outside."""
    space = """
parameters:
  strategy: {choices: [two_stage, internal]}
  iterations: {value: 90}
  lr: {low: 1e-3, high: 1e-2, log: true}
  ema: {choices: [0.9, 0.99]}
"""
    searcher = open_searcher(Study(tmp_path, request(space=space)))
    for trial_id in study_references(searcher):
        searcher.on_trial_complete(trial_id, {"psnr": 30.0, "iterations": 90, FINAL: True})
    told = [trial.params for trial in searcher._study.trials]
    assert told == [
        {"strategy": strategy, "lr": 1e-3, "ema": 0.99} for strategy in ("two_stage", "internal")
    ]


def study_references(searcher: RecipeSearcher) -> list[str]:
    """Asks for the three references."""
    ids = ["external", "two-stage", "internal"]
    assert all(isinstance(searcher.suggest(trial_id), dict) for trial_id in ids)
    return ids


def test_trial_cut_short_is_asked_again_before_anything_new(study: Study) -> None:
    searcher = open_searcher(study)
    for number in range(6):
        cut = step(searcher, study.ledger, killed=number == 5)
    assert open_searcher(study).suggest("id") == cut


def test_trial_that_never_started_is_asked_for_again(study: Study) -> None:
    searcher = open_searcher(study)
    for _ in range(3):
        step(searcher, study.ledger)
    lost, kept = searcher.suggest("lost"), searcher.suggest("kept")
    assert isinstance(lost, dict)
    assert isinstance(kept, dict)
    study.ledger.add(recorded(kept), kept["number"])
    resumed = open_searcher(study)
    again = [resumed.suggest("x"), resumed.suggest("y")]
    assert again == [kept, lost]


def test_failed_observation_needs_no_value(study: Study) -> None:
    searcher = open_searcher(study)
    for _ in range(3):
        step(searcher, study.ledger)
    step(searcher, study.ledger, killed=True)
    study.ledger.update(3, state="failed")
    assert open_searcher(study)._study.trials[-1].state == TrialState.FAIL


def test_request_survives_the_disk(tmp_path: Path) -> None:
    written = json.loads(json.dumps(to_dict(request(seed=3))))
    assert from_dict(StudyRequest, written) == request(seed=3)


def test_grid_takes_every_strategy_and_freeze_plan_in_turn(tmp_path: Path) -> None:
    study = Study(tmp_path, request(sampler="grid"))
    run_to_end(study, 3 + 8)
    points = recipes(study)[3:]
    pairs = [(point["strategy"], point.get("freeze")) for point in points]
    wanted = {("two_stage", f) for f in ("none", "encoders", "fusion")} | {("internal", None)}
    assert set(pairs[:4]) == set(pairs[4:]) == wanted
    assert len({point["lr"] for point in points}) == 8


def test_no_new_trial_is_suggested_once_too_many_have_failed(study: Study) -> None:
    searcher = RecipeSearcher(
        study.request.search_space(),
        pending=study.pending(),
        history=(),
        numbers=study.unasked(TRIALS),
        seed=0,
        sampler="tpe",
        objectives=study.objectives,
        failures_left=2,
    )
    for trial_id in ("a", "b"):
        assert isinstance(searcher.suggest(trial_id), dict)
        searcher.on_trial_complete(trial_id, error=True)
    assert searcher.suggest("c") == Searcher.FINISHED


def test_several_objectives_are_searched_and_resumed_alike(tmp_path: Path) -> None:
    both = request(metrics=("psnr", "bias"))
    whole, broken = Study(tmp_path / "whole", both), Study(tmp_path / "broken", both)

    def run(study: Study, searcher: RecipeSearcher) -> None:
        config = searcher.suggest("id")
        assert isinstance(config, dict)
        metrics = {"psnr": psnr_of(config["recipe"]), "bias": float(config["recipe"].get("lr", 0))}
        searcher.on_trial_complete("id", metrics | {"iterations": 90, FINAL: True})
        study.ledger.add(recorded(config), config["number"])
        study.ledger.update(config["number"], state="finished", metrics=metrics, iterations=90)

    searcher = open_searcher(whole)
    for _ in range(TRIALS):
        run(whole, searcher)
        run(broken, open_searcher(broken))
    assert recipes(broken) == recipes(whole)
    assert searcher._study.directions[1].name == "MINIMIZE"
