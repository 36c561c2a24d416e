"""What a search has taught: which parameters mattered, and what early stopping has saved."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.search_parameter import Value
from mfdiff_platform.study import Study

FEWEST_POINTS = 6
"""Fewer finished search points say nothing about importance."""


@dataclass(frozen=True)
class Saving:
    """Training iterations of a search.

    Attributes:
        stopped: trials that were stopped early.
        done: iterations of all trials that ran.
        full: iterations if each had run to its end.
    """

    stopped: int
    done: int
    full: int

    @property
    def share(self) -> float:
        """What was saved, as a share of ``full``."""
        return 1 - self.done / self.full if self.full else 0.0


def saving(study: Study) -> Saving:
    """What the scheduler saved."""
    ended = study.ledger.in_state("finished", "pruned")
    full = sum(int(record.config["recipe"].get("iterations", 0)) for record in ended)
    stopped = sum(record.state == "pruned" for record in ended)
    return Saving(stopped, sum(record.iterations for record in ended), full)


def points(records: Sequence[TrialRecord]) -> list[dict[str, Value]]:
    """What was drawn for each search point."""
    return [
        {name: record.config["recipe"][name] for name in record.config["distributions"] or {}}
        for record in records
    ]


def search_points(study: Study) -> list[TrialRecord]:
    """Trials that the search suggested and that ended with a result."""
    ended = study.ledger.in_state("finished", "pruned")
    return [record for record in ended if record.config["distributions"]]


def importance(study: Study) -> dict[str, float]:
    """Share of each parameter in the variation of results (PED-ANOVA); empty with few points.

    Only trials that ran to their end count: what a stopped one reached is no result of the same
    length.
    """
    import optuna

    from mfdiff_platform.searcher import remembered

    told = [o for o in study.history() if o.outcome == "finished" and o.suggestion.distributions]
    aim = study.objectives[0]
    if len({o.value for o in told}) < FEWEST_POINTS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        way = "maximize" if aim.mode == "max" else "minimize"
        model = optuna.create_study(direction=way)
        for observation in told:
            trial = remembered(observation, 1)
            if trial is not None:
                model.add_trial(trial)
        found = optuna.importance.get_param_importances(model)
    return {name: float(value) for name, value in found.items()}
