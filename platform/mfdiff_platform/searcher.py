"""Optuna behind Ray Tune, with the ledger as its memory.

Each suggestion comes from a sampler seeded by (study seed, trial number), so it depends on the
trials told so far and on nothing else: a study that was killed and resumed suggests what an
uninterrupted one does, and no sampler state has to survive. A trial that the scheduler stops is
told by the best it had reached, which its end would not have been below; one that fails as failed.
Told as pruned, trials would be ranked by how far they were let go, below every one that ran to its
end: a strategy judged among its own kind, or a poor reference, would draw the search to itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mfdiff_core.seeding import derive_seed
from mfdiff_platform.known import nearest_point
from mfdiff_platform.objective import Objective
from mfdiff_platform.search_parameter import Choices, Value
from mfdiff_platform.search_space import SearchSpace
from mfdiff_platform.suggestion import FINAL, Observation, Suggestion

STARTUP_TRIALS = 8
"""Random suggestions before TPE has enough to model; the usual 10 would waste a short study."""
GRID = ("strategy", "freeze")
"""Parameters whose combinations the grid sampler takes in turn; the others are drawn at random."""


class RecipeSearcher(Searcher):
    """Suggests the pending references first, then points of the space.

    Args:
        space: the conditional search space.
        pending: suggestions to run before any search: references, and trials that a killed
            session had begun.
        history: what earlier sessions found.
        numbers: of the new suggestions to make.
        seed: seed of the study.
        sampler: ``tpe``, ``random`` or ``grid``.
        objectives: what is optimised; a trial without a finite first one counts as failed.
        failures_left: how many more trials may fail before no new one is suggested.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        pending: Sequence[Suggestion],
        history: Sequence[Observation],
        numbers: Sequence[int],
        seed: int,
        sampler: str,
        objectives: Sequence[Objective],
        failures_left: int | None = None,
    ) -> None:
        super().__init__(metric=objectives[0].metric, mode=objectives[0].mode)
        self._objectives, self._failures_left = tuple(objectives), failures_left
        self._space, self._seed, self._sampler = space, seed, sampler
        self._pending, self._numbers = list(pending), list(numbers)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        ways = {"max": "maximize", "min": "minimize"}
        self._study = optuna.create_study(directions=[ways[aim.mode] for aim in objectives])
        self._grid = grid_of(space)
        self._begun: dict[int, optuna.Trial] = {}
        self._asked: dict[str, optuna.Trial] = {}
        self._best: dict[str, float] = {}
        self._recall(history)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next suggestion as a Tune config."""
        if self._failures_left == 0:
            return str(Searcher.FINISHED)
        if self._pending:
            suggestion = self._pending.pop(0)
            if suggestion.number in self._begun:
                self._asked[trial_id] = self._begun[suggestion.number]
            return _config(suggestion)
        if not self._numbers:
            return str(Searcher.FINISHED)
        number = self._numbers.pop(0)
        self._study.sampler = self._new_sampler(number)
        trial = self._study.ask()
        recipe = self._space(trial)
        self._asked[trial_id] = trial
        distributions = {n: distribution_to_json(d) for n, d in trial.distributions.items()}
        return _config(Suggestion(number, recipe, "", distributions))

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note a validation."""
        aim = self._objectives[0]
        value = result.get(aim.metric, math.nan)
        if math.isfinite(value):
            self._best[trial_id] = aim.best((value, self._best.get(trial_id, value)))

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended; references as the nearest points of the space."""
        if error and self._failures_left is not None:
            self._failures_left = max(0, self._failures_left - 1)
        trial, best = self._asked.pop(trial_id, None), self._best.pop(trial_id, None)
        if trial is None:
            return
        values = [(result or {}).get(aim.metric, math.nan) for aim in self._objectives]
        if error or not result or not all(map(math.isfinite, values)):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        if best is not None and len(values) == 1 and not result.get(FINAL):
            values = [self._objectives[0].best((best, *values))]
        self._study.tell(trial, values)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is the searcher's memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the ledger is the searcher's memory."""

    def _new_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._seed, "suggestion", number) % 2**32
        if self._sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if self._sampler == "grid":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.PartialFixedSampler(
                    self._grid[number % len(self._grid)], optuna.samplers.RandomSampler(seed=seed)
                )
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True
        )

    def _recall(self, history: Sequence[Observation]) -> None:
        """Tell Optuna of what is known and what is to come first, in the order of their numbers.

        TPE weighs points by their order, so it must not depend on where a session began.
        """
        ended = {observation.suggestion.number: observation for observation in history}
        begun = {suggestion.number: self._as_point(suggestion) for suggestion in self._pending}
        for number in sorted(ended.keys() | begun.keys()):
            if number in ended:
                self._remember(ended[number])
            elif point := begun[number]:
                self._begun[number] = self._ask_again(point)

    def _as_point(self, suggestion: Suggestion) -> Suggestion | None:
        """A reference recipe as the point of the space that comes closest to it."""
        if suggestion.distributions is not None:
            return suggestion
        point = nearest_point(self._space, suggestion.recipe)
        return point and replace(point, number=suggestion.number)

    def _remember(self, observation: Observation) -> None:
        if point := self._as_point(observation.suggestion):
            observation = replace(observation, suggestion=point)
        trial = remembered(observation, len(self._objectives))
        if trial is not None:
            self._study.add_trial(trial)

    def _ask_again(self, suggestion: Suggestion) -> optuna.Trial:
        """A running Optuna trial with the point that was suggested in an earlier session."""
        params, distributions = _drawn(suggestion)
        self._study.sampler = optuna.samplers.RandomSampler(seed=0)  # has nothing left to draw
        self._study.enqueue_trial(params)
        return self._study.ask(distributions)


def remembered(observation: Observation, objectives: int) -> optuna.trial.FrozenTrial | None:
    """A search point of the past as Optuna keeps it.

    Args:
        observation: what was found.
        objectives: how many metrics are optimised now.

    Returns:
        None for what is no search point, or was not measured in all of the metrics.
    """
    if observation.suggestion.distributions is None:
        return None
    params, distributions = _drawn(observation.suggestion)
    values = [observation.value, *observation.others][:objectives]
    has_ended = observation.outcome != "failed"
    if has_ended and len(values) < objectives:
        return None
    finite = [value for value in values if value is not None and math.isfinite(value)]
    told = has_ended and len(finite) == objectives
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if told else TrialState.FAIL,
        params=params,
        distributions=distributions,
        values=finite if told else None,
    )


def grid_of(space: SearchSpace) -> list[dict[str, Value]]:
    """Every combination of the grid's parameters that the space allows, in the file's order."""
    combinations: list[dict[str, Value]] = [{}]
    for parameter in space.parameters:
        if parameter.name not in GRID or not isinstance(parameter.values, Choices):
            continue
        grown: list[dict[str, Value]] = []
        for chosen in combinations:
            there = parameter.applies(chosen)
            grown += [chosen | {parameter.name: v} for v in parameter.values.values if there]
            grown += [] if there else [chosen]
        combinations = grown
    return combinations


def _drawn(suggestion: Suggestion) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """What Optuna drew for a suggestion, and where from."""
    found = (suggestion.distributions or {}).items()
    distributions = {name: json_to_distribution(text) for name, text in found}
    return {name: suggestion.recipe[name] for name in distributions}, distributions


def _config(suggestion: Suggestion) -> dict[str, Any]:
    return {
        "number": suggestion.number,
        "reference": suggestion.reference,
        "recipe": suggestion.recipe,
        "distributions": suggestion.distributions,
    }
