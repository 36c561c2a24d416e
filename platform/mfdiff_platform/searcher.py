"""Optuna behind Ray Tune, with the ledger as its memory.

Each suggestion comes from a sampler seeded by (study seed, trial number), so it depends on the
trials told so far and on nothing else: a study that was killed and resumed suggests what an
uninterrupted one does, and no sampler state has to survive. A trial that the scheduler stops is
told to Optuna as pruned, one that fails as failed; only full trials count as complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mfdiff_core.seeding import derive_seed
from mfdiff_platform.search_space import SearchSpace
from mfdiff_platform.suggestion import FINAL, Observation, Suggestion

STARTUP_TRIALS = 8
"""Random suggestions before TPE has enough to model; the usual 10 would waste a short study."""


class RecipeSearcher(Searcher):
    """Suggests the pending references first, then points of the space.

    Args:
        space: the conditional search space.
        pending: suggestions to run before any search: references, and trials that a killed
            session had begun.
        history: what earlier sessions found.
        first: number of the first new suggestion.
        last: number after the last one.
        seed: seed of the study.
        sampler: ``tpe`` or ``random``.
        metric, mode: what Tune optimises.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        pending: Sequence[Suggestion],
        history: Sequence[Observation],
        first: int,
        last: int,
        seed: int,
        sampler: str,
        metric: str,
        mode: str,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._space, self._seed, self._sampler = space, seed, sampler
        self._pending = list(pending)
        self._next, self._last = first, last
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction = "maximize" if mode == "max" else "minimize"
        self._study = optuna.create_study(direction=direction)
        for observation in history:
            self._remember(observation)
        self._asked: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next suggestion as a Tune config."""
        if self._pending:
            return _config(self._pending.pop(0))
        if self._next >= self._last:
            return Searcher.FINISHED
        number, self._next = self._next, self._next + 1
        self._study.sampler = self._new_sampler(number)
        trial = self._study.ask()
        recipe = self._space(trial)
        self._asked[trial_id] = trial
        distributions = {n: distribution_to_json(d) for n, d in trial.distributions.items()}
        return _config(Suggestion(number, recipe, "", distributions))

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a search point ended; references are not its business."""
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        if error or not result or self.metric not in result:
            self._study.tell(trial, state=TrialState.FAIL)
        elif result.get(FINAL):
            self._study.tell(trial, result[self.metric])
        else:
            trial.report(result[self.metric], int(result["iterations"]))
            self._study.tell(trial, state=TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is the searcher's memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the ledger is the searcher's memory."""

    def _new_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._seed, "suggestion", number) % 2**32
        if self._sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True
        )

    def _remember(self, observation: Observation) -> None:
        suggestion = observation.suggestion
        if suggestion.distributions is None:
            return
        states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        state = states.get(observation.outcome, TrialState.FAIL)
        distributions = {n: json_to_distribution(d) for n, d in suggestion.distributions.items()}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params={name: suggestion.recipe[name] for name in distributions},
                distributions=distributions,
                value=observation.value if state == TrialState.COMPLETE else None,
            )
        )


def _config(suggestion: Suggestion) -> dict[str, Any]:
    return {
        "number": suggestion.number,
        "reference": suggestion.reference,
        "recipe": suggestion.recipe,
        "distributions": suggestion.distributions,
    }
