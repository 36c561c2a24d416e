"""What a study takes over from another one: points whose result is known, and points to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.errors import DataError
from mfdiff_core.files import read_json, write_json
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.search_parameter import Parameter, Value, draw
from mfdiff_platform.search_space import SearchSpace
from mfdiff_platform.suggestion import Observation, Suggestion

if TYPE_CHECKING:
    from mfdiff_platform.study import Study

KNOWN = "known.json"
WARM_POINTS = 3
"""How many of another study's best points a warm start tries first."""


@dataclass(frozen=True)
class Known:
    """What was taken over.

    Attributes:
        observations: points whose result the search may use; numbered below 0.
        points: points that the study tries right after the references; their numbers follow.
    """

    observations: tuple[Observation, ...] = ()
    points: tuple[Suggestion, ...] = ()

    def save(self, folder: Path) -> None:
        """Write to a study's folder."""
        write_json(folder / KNOWN, asdict(self))


def load_known(folder: Path) -> Known:
    """What the study in ``folder`` has taken over.

    Raises:
        DataError: its file is damaged.
    """
    path = folder / KNOWN
    if not path.is_file():
        return Known()
    values = read_json(path)
    try:
        observations = tuple(_observation(**found) for found in values["observations"])
        return Known(observations, tuple(Suggestion(**point) for point in values["points"]))
    except (KeyError, TypeError) as fault:
        raise DataError(f"{path}: not what a study has taken over ({fault!r})") from None


def _observation(suggestion: Mapping[str, Any], others: list[float], **rest: Any) -> Observation:
    return Observation(suggestion=Suggestion(**suggestion), others=tuple(others), **rest)


def take_over(parent: Study, space: SearchSpace) -> Known:
    """All of ``parent`` that ``space`` can express; its best point is tried again.

    A result of fewer iterations than ``space`` asks for counts as that of a stopped trial; one of
    more says nothing about the search to come.
    """
    best = next(iter(best_points(parent, space, 1)), None)
    found: list[Observation] = []
    for old in parent.history():
        point = point_of(space, old.suggestion.recipe)
        if point is None or old.value is None or (best and point.recipe == best.recipe):
            continue
        full = int(from_dict(Recipe, point.recipe).iterations)
        if old.iterations > full:
            continue
        shorter = old.outcome == "finished" and old.iterations < full
        outcome = "pruned" if shorter else old.outcome
        found.append(replace(old, suggestion=point, outcome=outcome))
    first = -len(found)
    numbered = [
        replace(o, suggestion=replace(o.suggestion, number=first + place))
        for place, o in enumerate(found)
    ]
    return Known(tuple(numbered), (best,) if best else ())


def best_points(study: Study, space: SearchSpace, count: int) -> list[Suggestion]:
    """The best finished points of ``study`` that ``space`` can express, best first."""
    records = [r for r in study.ledger.finished() if r.config["reference"] != "external"]
    records.sort(key=lambda r: (-study.objectives[0].score(r.metrics), r.number))
    points = [point_of(space, record.config["recipe"]) for record in records]
    distinct: list[Suggestion] = []
    for point in points:
        if point and all(point.recipe != other.recipe for other in distinct):
            distinct.append(point)
    return distinct[:count]


def point_of(space: SearchSpace, recipe: Mapping[str, Any]) -> Suggestion | None:
    """``recipe`` as a point drawn from ``space``, at the space's own length; None outside it."""
    from optuna.distributions import distribution_to_json
    from optuna.trial import FixedTrial

    wanted = from_dict(Recipe, recipe)
    values = to_dict(wanted)

    def pick(parameter: Parameter) -> Value:
        fixed = parameter.values.examples
        if parameter.name in ("iterations", "batch_size") and len(set(fixed)) == 1:
            return fixed[0]
        if not parameter.values.holds(values[parameter.name]):
            raise LookupError(parameter.name)
        value: Value = values[parameter.name]
        return value

    try:
        chosen = draw(space.parameters, pick)
    except LookupError:
        return None
    drawn = from_dict(Recipe, chosen)
    if drawn.strategy != wanted.strategy:
        return None
    if replace(drawn, iterations=wanted.iterations, batch_size=wanted.batch_size) != wanted:
        return None
    trial = FixedTrial(chosen)
    fields = space(trial)
    distributions = {n: distribution_to_json(d) for n, d in trial.distributions.items()}
    return Suggestion(0, fields, "", distributions)
