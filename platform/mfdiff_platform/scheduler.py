"""Which trials of a study are stopped early."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mfdiff_platform.objective import PSNR, Objective
from mfdiff_platform.pace import Pace
from mfdiff_platform.study import SchedulerName
from mfdiff_platform.suggestion import FINAL

RUNGS = (1 / 18, 1 / 9, 2 / 9, 4 / 9)
"""Shares of a full trial at which it is decided; at the first validation after each.

Each is twice the one before: a trial that is stopped has cost at most twice what it took to know.
"""
REDUCTION = 2
"""One trial in as many goes on from a rung to the next, as long as the search keeps its pace."""

TIES = {"psnr": 0.05}
"""Differences of a metric that say nothing early on: whoever is so close is not behind."""


class _Passed(NamedTuple):
    """Where a trial stood when it came to a rung."""

    mark: int
    iterations: int
    score: float


class RecipeHalving(FIFOScheduler):
    """ASHA on the deciding metric at matched iterations (arXiv 1810.05934), kept to a `Pace`.

    Whoever leads a rung goes on. The rest of the better half does too while the search is within
    its pace, so that what cheap trials leave over is spent on those that rise late, and studies
    cost about the same whatever they find. A fixed quarter cost a third of full trials where a
    search kept finding better ones; a fixed eighth let one fast learner of a high rate stop all
    that would have passed it. Reference recipes are never stopped but are a bar for others, so
    that the first points of a search have one.

    Until the last rung a trial is compared with those of its strategy alone: early on, where a
    recipe starts from says more about its figures than how good it will be. A model from scratch
    begins as the LPET, a fine-tuned one as what the phantoms taught. What counts is the best so
    far, as a trial keeps its best weights.

    Near the top early figures differ by less than they will change yet, so until the last rung a
    trial is beaten only by those ahead by more than a tie; without ties a quarter of the replayed
    searches of `benchmarks.search` stopped every recipe worth finding.

    Nor does a trial go on past its second rung if it cannot come first: neither does a straight
    line through its last two rungs end above the best that a trial has finished with, nor has a
    finished trial of its strategy made up as much from there. This is what stops strategies that
    stand still before they meet the others at the last rung. The line alone would stop the best
    recipes of fast learning, whose figures jitter early on and rise late.
    """

    def __init__(self, iterations: int, objective: Objective) -> None:
        super().__init__()
        self._objective, self._tie = objective, TIES.get(objective.metric, 0.0)
        marks = sorted({max(1, int(share * iterations)) for share in RUNGS}, reverse=True)
        self._iterations, self._last = iterations, marks[0]
        self._best, self._passed = dict[str, float](), dict[str, list[_Passed]]()
        self._finished, self._gains = -math.inf, dict[tuple[str, int], float]()
        self.rungs: dict[int, dict[str, dict[str, float]]] = {mark: {} for mark in marks}
        self._pace = Pace(iterations, marks[-1])
        self._lengths, self._reached = dict[str, int](), dict[str, int]()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins."""
        config = trial.config
        self.begin(trial.trial_id, config["recipe"], reference=bool(config["reference"]))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """What a failed trial leaves is free for others."""
        self._pace.end(trial.trial_id, self._reached.get(trial.trial_id, 0))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or continue a trial that has reported."""
        name, iterations = trial.trial_id, int(result["iterations"])
        self._reached[name] = iterations
        strategy, score = trial.config["recipe"].get("strategy", ""), self._objective.score(result)
        if result.get(FINAL):
            self._pace.end(name, iterations)
            self.note_finished(name, strategy, score)
            return str(TrialScheduler.CONTINUE)
        if self.judge(name, strategy, iterations, score) or trial.config["reference"]:
            return str(TrialScheduler.CONTINUE)
        self._pace.end(name, iterations)
        return str(TrialScheduler.STOP)

    def begin(self, trial: str, recipe: Mapping[str, Any], *, reference: bool = False) -> None:
        """Count a trial in."""
        self._lengths[trial] = int(recipe.get("iterations", self._iterations))
        if not reference:
            self._pace.begin(trial)

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
        if reach <= self._finished:
            return False
        further, leads = self._next(trial, mark), score >= max(scores.values())
        among = ahead < max(1, len(scores) / REDUCTION) and self._pace.allows(trial, further)
        if leads or among:
            self._pace.promise(trial, further)
        return leads or among

    def _next(self, trial: str, mark: int) -> int:
        """Iterations up to a trial's next rung, or to its end."""
        later = [other for other in self.rungs if other > mark]
        return min([self._lengths.get(trial, self._iterations), *later])

    def note_finished(self, trial: str, strategy: str, score: float) -> None:
        """A trial ran to its end: the bar for all others, and what its strategy can gain."""
        if not math.isfinite(score):
            return
        self._finished = max(score, self._finished)
        for passed in self._passed.get(trial, ()):
            kind = strategy, passed.mark
            self._gains[kind] = max(score - passed.score, self._gains.get(kind, 0.0))

    def _reach(self, trial: str, strategy: str, here: _Passed) -> float:
        """What a trial may end with at best, as far as a rung can tell; infinite at its first."""
        path = self._passed.setdefault(trial, [])
        path.append(here)
        if len(path) == 1:
            return math.inf
        before = path[-2]
        slope = (here.score - before.score) / (here.iterations - before.iterations)
        line = here.score + slope * (self._iterations - here.iterations)
        return max(line, here.score + self._gains.get((strategy, here.mark), 0.0))

    def recall(
        self,
        number: int,
        recipe: Mapping[str, Any],
        scores: Iterable[tuple[int, float]],
        *,
        iterations: int = 0,
        final: float | None = None,
        reference: bool = False,
    ) -> None:
        """Set bars and pace as trial ``number`` of an earlier session did.

        Args:
            number: of the trial.
            recipe: it tried.
            scores: iterations and score of each validation before its last.
            iterations: it took.
            final: its score if it finished.
            reference: whether it was one.
        """
        trial, strategy = f"earlier-{number}", recipe.get("strategy", "")
        self.begin(trial, recipe, reference=reference)
        for reached, score in scores:
            self.judge(trial, strategy, reached, score)
        self._pace.end(trial, iterations)
        if final is not None:
            self.note_finished(trial, strategy, final)


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
