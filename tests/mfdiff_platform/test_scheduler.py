from __future__ import annotations

from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mfdiff_platform.scheduler import RecipeHalving, build_scheduler
from mfdiff_platform.suggestion import FINAL

ITERATIONS = 90


@pytest.fixture
def halving() -> RecipeHalving:
    scheduler = build_scheduler("asha", ITERATIONS)
    assert isinstance(scheduler, RecipeHalving)
    scheduler.set_search_properties("psnr", "max")
    return scheduler


def trial(scheduler: RecipeHalving, reference: str = "") -> Trial:
    made = Trial("recipe", config={"reference": reference}, stub=True)
    scheduler.on_trial_add(None, made)
    return made


def verdict(
    scheduler: RecipeHalving, made: Trial, psnr: float, iterations: int = 10, **more: Any
) -> str:
    result = {"psnr": psnr, "iterations": iterations, **more}
    return scheduler.on_trial_result(None, made, result)


def test_none_runs_every_trial_to_its_end() -> None:
    assert isinstance(build_scheduler("none", ITERATIONS), FIFOScheduler)


def test_worst_of_three_is_stopped_at_the_first_rung(halving: RecipeHalving) -> None:
    verdicts = [verdict(halving, trial(halving), psnr) for psnr in (30.0, 29.0, 20.0)]
    assert verdicts[0] == TrialScheduler.CONTINUE
    assert verdicts[-1] == TrialScheduler.STOP


def test_trials_are_compared_at_the_same_number_of_iterations(halving: RecipeHalving) -> None:
    for psnr in (30.0, 29.0, 28.0):
        verdict(halving, trial(halving), psnr, iterations=30)
    assert verdict(halving, trial(halving), 20.0, iterations=9) == TrialScheduler.CONTINUE


def test_reference_recipe_is_never_stopped(halving: RecipeHalving) -> None:
    for psnr in (30.0, 29.0, 28.0):
        verdict(halving, trial(halving), psnr)
    assert verdict(halving, trial(halving, "external"), 1.0) == TrialScheduler.CONTINUE


def test_trial_at_its_end_is_not_stopped(halving: RecipeHalving) -> None:
    for psnr in (30.0, 29.0, 28.0):
        verdict(halving, trial(halving), psnr, ITERATIONS)
    last = trial(halving)
    assert verdict(halving, last, 1.0, ITERATIONS, **{FINAL: True}) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("iterations", [6, 17, ITERATIONS])
def test_end_of_one_trial_is_no_bar_for_the_middle_of_another(iterations: int) -> None:
    scheduler = build_scheduler("asha", iterations)
    assert isinstance(scheduler, RecipeHalving)
    scheduler.set_search_properties("psnr", "max")
    reference, point = trial(scheduler, "external"), trial(scheduler)
    scheduler.on_trial_complete(None, reference, {"psnr": 30.0, "iterations": iterations})
    for reached in range(1, iterations):
        assert verdict(scheduler, point, 20.0, reached) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_shortest_trials_have_a_scheduler_too(iterations: int) -> None:
    assert isinstance(build_scheduler("asha", iterations), RecipeHalving)
