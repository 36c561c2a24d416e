"""Which trials of a study are stopped early."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.forecast import Forecast
from mfdiff_platform.objective import PSNR, Objective
from mfdiff_platform.study import SchedulerName
from mfdiff_platform.suggestion import FINAL

REDUCTION = 4
"""One trial in as many goes on from a rung to the next."""
RUNGS = (1 / 18, 1 / 9, 2 / 9, 4 / 9)
"""Shares of a full trial at which it is decided; at the first validation after each.

Each is twice the one before: a trial that is stopped cost at most twice what the decision before
took.
"""

TIES = {"psnr": 0.1}
"""Differences of a metric that say nothing early on: whoever is so close is not behind."""


class _Passed(NamedTuple):
    """Where a trial stood when it came to a rung."""

    mark: int
    iterations: int
    score: float


class RecipeHalving(FIFOScheduler):
    """ASHA on the deciding metric at matched iterations (arXiv 1810.05934).

    A trial goes on while it is among the best quarter of those that came as far, so one that comes
    among the first has to be the best. Ray's own ASHA interpolates a quantile instead, which in
    30 trials lets twice as many through. Reference recipes are never stopped but are a bar for
    others, so that the first points of a search have one.

    Until the last rung a trial is compared with those of its strategy alone: early on, where a
    recipe starts from says more about its figures than how good it will be. A model from scratch
    begins as the LPET, a fine-tuned one as what the phantoms taught. What counts is the best so
    far, as a trial keeps its best weights.

    Near the top early figures differ by less than they will change yet, so until the last rung a
    trial is beaten only by those ahead by more than a tie; without ties a quarter of the replayed
    searches of `benchmarks.search` stopped every recipe worth finding.

    Nor does a trial go on past its second rung if it cannot come first: neither does the line
    through its last two rungs end above the best that a trial has finished with, nor would it come
    there by what finished trials of its strategy gained from that rung on (`Forecast`). This is
    what stops strategies that stand still before they meet the others at the last rung. The line
    alone would stop the best recipes of fast learning, whose figures jitter early on and rise late.
    It is straight over the iterations at the second rung and over their logarithm from the third
    on, as learning slows down.
    """

    def __init__(self, iterations: int, objective: Objective) -> None:
        super().__init__()
        self._objective, self._tie = objective, TIES.get(objective.metric, 0.0)
        marks = sorted({max(1, int(share * iterations)) for share in RUNGS}, reverse=True)
        self._iterations, self._last = iterations, marks[0]
        self._best, self._passed = dict[str, float](), dict[str, list[_Passed]]()
        self._forecast = Forecast()
        self.rungs: dict[int, dict[str, dict[str, float]]] = {mark: {} for mark in marks}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or continue a trial that has reported."""
        score = self._objective.score(result)
        strategy = strategy_of(trial.config["recipe"])
        if result.get(FINAL):
            self.note_finished(trial.trial_id, strategy, int(result["iterations"]), score)
            return str(TrialScheduler.CONTINUE)
        goes_on = self.judge(trial.trial_id, strategy, int(result["iterations"]), score)
        if goes_on or trial.config["reference"]:
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)

    def judge(self, trial: str, strategy: str, iterations: int, score: float) -> bool:
        """Whether a trial deserves to go on after ``iterations``; higher scores are better."""
        if not math.isfinite(score):
            return True  # training itself ends what diverges, and says so
        score = self._best[trial] = max(score, self._best.get(trial, score))
        mark = next((mark for mark in self.rungs if iterations >= mark), None)
        if mark is None:
            return True
        peers = "" if mark == self._last else strategy
        scores = self.rungs[mark].setdefault(peers, {})
        if trial in scores:
            return True
        scores[trial] = score
        tie = 0.0 if mark == self._last else self._tie
        ahead = sum(other > score + tie for other in scores.values())
        reach = self._reach(trial, strategy, _Passed(mark, iterations, score))
        return ahead < max(1, len(scores) // REDUCTION) and reach > self._forecast.best

    def note_finished(self, trial: str, strategy: str, iterations: int, score: float) -> None:
        """A trial ran to its end: a bar for all others and, at full length, what they may gain."""
        stood = {passed.mark: passed.score for passed in self._passed.get(trial, ())}
        self._forecast.learn(strategy, stood if iterations >= self._iterations else {}, score)

    def _reach(self, trial: str, strategy: str, here: _Passed) -> float:
        """What a trial may end with at best, as far as a rung can tell; infinite at its first."""
        path = self._passed.setdefault(trial, [])
        path.append(here)
        if len(path) == 1:
            return math.inf
        before = path[-2]
        gained = here.score - before.score
        if len(path) == 2:
            left = (self._iterations - here.iterations) / (here.iterations - before.iterations)
        else:
            left = math.log(self._iterations / here.iterations)
            left /= math.log(here.iterations / before.iterations)
        line = here.score + gained * left
        return max(line, here.score + self._forecast.gain(strategy, here.mark, here.score))

    def recall(
        self,
        number: int,
        strategy: str,
        scores: Iterable[tuple[int, float]],
        final: tuple[int, float] | None = None,
    ) -> None:
        """Set the bars as trial ``number`` of an earlier session did.

        Args:
            number: of the trial.
            strategy: of its recipe.
            scores: iterations and score of each validation on the way.
            final: those of its end, if it came there.
        """
        trial = f"earlier-{number}"
        for iterations, score in scores:
            self.judge(trial, strategy, iterations, score)
        if final is not None:
            self.note_finished(trial, strategy, *final)


def strategy_of(recipe: Mapping[str, Any]) -> str:
    """Strategy of a recipe, the default one where its space does not name it."""
    return str(recipe.get("strategy", Recipe.strategy))


def build_scheduler(
    name: SchedulerName, iterations: int, objective: Objective = PSNR
) -> TrialScheduler:
    """The scheduler of a study.

    Args:
        name: ``asha``, or ``none`` to run every trial to its end.
        iterations: of a full trial.
        objective: what trials are judged by.
    """
    return RecipeHalving(iterations, objective) if name == "asha" else FIFOScheduler()
