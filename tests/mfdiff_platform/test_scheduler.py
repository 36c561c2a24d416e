from __future__ import annotations

from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mfdiff_core.seeding import rng
from mfdiff_platform.scheduler import RecipeHalving, build_scheduler
from mfdiff_platform.suggestion import FINAL

ITERATIONS = 90


@pytest.fixture
def halving() -> RecipeHalving:
    scheduler = build_scheduler("asha", ITERATIONS)
    assert isinstance(scheduler, RecipeHalving)
    return scheduler


def trial(scheduler: RecipeHalving, reference: str = "", strategy: str = "two_stage") -> Trial:
    config = {"reference": reference, "recipe": {"strategy": strategy} if strategy else {}}
    made = Trial("recipe", config=config, stub=True)
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
    verdicts = [verdict(halving, trial(halving), psnr) for psnr in (30.0, 29.0, 31.0)]
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert verdicts == [go, stop, go]


def test_a_tie_is_not_behind(halving: RecipeHalving) -> None:
    verdicts = [verdict(halving, trial(halving), psnr) for psnr in (30.0, 29.94, 29.8, 29.92)]
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert verdicts == [go, go, stop, go]


def test_quarter_of_the_trials_goes_on(halving: RecipeHalving) -> None:
    for psnr in range(20, 28):
        verdict(halving, trial(halving), psnr)
    verdicts = [verdict(halving, trial(halving), psnr) for psnr in (25.5, 26.5)]
    assert verdicts == [TrialScheduler.STOP, TrialScheduler.CONTINUE]


def test_trial_that_has_passed_a_rung_is_not_judged_there_again(halving: RecipeHalving) -> None:
    made = trial(halving)
    assert verdict(halving, made, 25.0, 5) == TrialScheduler.CONTINUE
    verdict(halving, trial(halving), 30.0, 5)
    assert verdict(halving, made, 20.0, 10) == TrialScheduler.CONTINUE


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
    reference, point = trial(scheduler, "external"), trial(scheduler)
    scheduler.on_trial_complete(None, reference, {"psnr": 30.0, "iterations": iterations})
    for reached in range(1, iterations):
        assert verdict(scheduler, point, 20.0, reached) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_shortest_trials_have_a_scheduler_too(iterations: int) -> None:
    assert isinstance(build_scheduler("asha", iterations), RecipeHalving)


def test_reference_recipe_is_a_bar_for_the_first_point(halving: RecipeHalving) -> None:
    verdict(halving, trial(halving, "two-stage (paper)"), 30.0)
    assert verdict(halving, trial(halving), 29.0) == TrialScheduler.STOP


def test_reference_is_a_bar_where_the_space_names_no_strategy(halving: RecipeHalving) -> None:
    verdict(halving, trial(halving, "two-stage (paper)"), 31.0)
    assert verdict(halving, trial(halving, strategy=""), 25.0) == TrialScheduler.STOP


def test_short_recipe_that_ended_is_a_bar_but_teaches_no_gains(halving: RecipeHalving) -> None:
    """It gained 5 in no time, which says nothing about the rungs of a full trial."""
    short = trial(halving)
    for iterations, psnr in ((5, 23.0), (15, 24.0)):
        verdict(halving, short, psnr, iterations)
    verdict(halving, short, 29.0, 20, **{FINAL: True})
    flat = trial(halving)
    verdicts = [verdict(halving, flat, 28.5, iterations) for iterations in (5, 15)]
    assert verdicts == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_trial_that_stands_higher_gains_as_those_that_stood_there(halving: RecipeHalving) -> None:
    """The slow reference gained 6 from far below; the one that stood at 28 gained 1."""
    for name, scores, end in (
        ("paper", (22.0, 24.0, 27.0), 30.0),
        ("fast", (27.0, 28.0, 28.5), 29.0),
    ):
        made = trial(halving, name)
        for iterations, psnr in zip((5, 15, 45), scores, strict=True):
            verdict(halving, made, psnr, iterations)
        verdict(halving, made, end, ITERATIONS, **{FINAL: True})
    flat = trial(halving)
    verdicts = [verdict(halving, flat, 28.0, iterations) for iterations in (5, 15)]
    assert verdicts == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_bars_of_an_earlier_session_stand_again(halving: RecipeHalving) -> None:
    reports = {0: [(5, 20.0), (15, 25.0)], 1: [(5, 22.0), (15, 24.0)], 2: [(5, 18.0)]}
    again = build_scheduler("asha", ITERATIONS)
    assert isinstance(again, RecipeHalving)
    for number, curve in reports.items():
        made = trial(halving)
        for step, psnr in curve:
            verdict(halving, made, psnr, step)
        again.recall(number, "two_stage", curve)
    bars = [
        [
            sorted(score for peers in rung.values() for score in peers.values())
            for rung in s.rungs.values()
        ]
        for s in (halving, again)
    ]
    assert bars[0] == bars[1] == [[], [], [24.0, 25.0], [18.0, 20.0, 22.0]]


def test_trial_is_judged_by_its_best_validation_so_far(halving: RecipeHalving) -> None:
    verdict(halving, trial(halving), 29.0, 45)
    made = trial(halving)
    verdict(halving, made, 30.0, 40)
    assert verdict(halving, made, 28.0, 45) == TrialScheduler.CONTINUE


@pytest.mark.parametrize(
    ("second", "goes_on"), [(25.3, False), (25.39, False), (25.41, True), (27.0, True)]
)
def test_trial_goes_on_if_its_line_ends_above_the_best_that_finished(
    halving: RecipeHalving, second: float, goes_on: bool
) -> None:
    """From 25 at 5 of 90 iterations a line meets 28.32 in the end if it is at 25.39 at 15."""
    halving.note_finished("another", "two_stage", ITERATIONS, 28.32)
    made = trial(halving, strategy="internal")
    assert verdict(halving, made, 25.0, 5) == TrialScheduler.CONTINUE
    expected = TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
    assert verdict(halving, made, second, 15) == expected


@pytest.mark.parametrize(("second", "goes_on"), [(27.9, False), (28.1, True)])
def test_trial_goes_on_if_one_of_its_strategy_has_made_up_as_much(
    halving: RecipeHalving, second: float, goes_on: bool
) -> None:
    """The paper's recipe gained 4 from the second rung on: who stands at 28 may come to 32."""
    paper = trial(halving, "two-stage (paper)")
    for iterations, psnr in ((5, 23.0), (15, 24.0), (45, 27.0)):
        verdict(halving, paper, psnr, iterations)
    verdict(halving, paper, 28.0, ITERATIONS, **{FINAL: True})
    halving.note_finished("another", "internal", ITERATIONS, 32.0)
    flat = trial(halving)
    verdict(halving, flat, second, 5)
    expected = TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
    assert verdict(halving, flat, second, 15) == expected


def test_trial_that_has_finished_stops_those_that_cannot_reach_it(halving: RecipeHalving) -> None:
    verdict(halving, trial(halving), 30.0, ITERATIONS, **{FINAL: True})
    flat = trial(halving, strategy="single_stage")
    verdicts = [verdict(halving, flat, 29.0, iterations) for iterations in (5, 15)]
    assert verdicts == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_trial_that_diverged_at_its_end_stops_nobody(halving: RecipeHalving) -> None:
    verdict(halving, trial(halving), float("nan"), ITERATIONS, **{FINAL: True})
    flat = trial(halving)
    verdicts = [verdict(halving, flat, 29.0, iterations) for iterations in (5, 15)]
    assert verdicts == [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE]


def test_what_finished_in_an_earlier_session_stops_too(halving: RecipeHalving) -> None:
    halving.recall(0, "two_stage", [(5, 24.0), (15, 29.0)], final=(ITERATIONS, 30.0))
    flat = trial(halving, strategy="internal")
    verdicts = [verdict(halving, flat, 29.0, iterations) for iterations in (5, 15)]
    assert verdicts == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_strategies_are_compared_with_each_other_at_the_last_rung_alone(
    halving: RecipeHalving,
) -> None:
    for iterations in (5, 15, 45):
        verdict(halving, trial(halving, strategy="internal"), 30.0, iterations)
    tuned = trial(halving)
    verdicts = [verdict(halving, tuned, 25.0, iterations) for iterations in (5, 15, 45)]
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert verdicts == [go, go, stop]


def test_thirty_trials_take_a_quarter_of_thirty_full_ones() -> None:
    """Points of random quality that keep their order, after two references that run to the end."""
    shares = [_share_of_full(seed) for seed in range(30)]
    assert sum(shares) / len(shares) < 0.25


def _share_of_full(seed: int) -> float:
    halving = build_scheduler("asha", ITERATIONS)
    assert isinstance(halving, RecipeHalving)
    steps = range(5, ITERATIONS, 5)

    def spent(made: Trial, psnr: float) -> int:
        stops = (n for n in steps if verdict(halving, made, psnr, n) == TrialScheduler.STOP)
        return next(stops, ITERATIONS)

    references = sum(spent(trial(halving, name), 20.0) for name in ("paper", "internal"))
    points = sum(spent(trial(halving), q) for q in rng(seed, "quality").uniform(18, 22, 27))
    return (references + points) / (30 * ITERATIONS)
