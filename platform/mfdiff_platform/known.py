"""What a study is given when it begins: points whose result is known, and points to try first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.errors import DataError
from mfdiff_core.files import read_json, write_json
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.search_parameter import Choices, Parameter, Range, Value, draw
from mfdiff_platform.search_space import SearchSpace
from mfdiff_platform.suggestion import Observation, Suggestion

if TYPE_CHECKING:
    from mfdiff_platform.study import Study

KNOWN = "known.json"
WARM_POINTS = 3
"""How many of another study's best points a warm start tries first."""
RATES = (10, 30, 3)
"""Multiples of a recipe's learning rate that are tried first, most promising first."""
AVERAGED_PARTS = 20
"""Their weights are averaged over one of so many parts of the training."""
GIVEN_PART = 3
"""At most one of so many search points is given, not searched."""


@dataclass(frozen=True)
class Known:
    """What was given.

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
    """What the study in ``folder`` was given.

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
        raise DataError(f"{path}: not what a study was given ({fault!r})") from None


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


def rate_ladder(space: SearchSpace, recipe: Recipe, points: int) -> list[Suggestion]:
    """``recipe`` at higher learning rates, as far as ``space`` has them.

    The rate decides more than all else, and a published one belongs to a training of its length:
    one that is hundreds of times shorter gets nowhere with it, nor with as long an average.

    Args:
        space: what is searched.
        recipe: of the paper.
        points: search points that the study has; a third of them at most is given.
    """
    ema = max(0.0, 1 - AVERAGED_PARTS / recipe.iterations)
    rates = next((p.values for p in space.parameters if p.name == "lr"), None)
    steps = [replace(recipe, lr=recipe.lr * multiple, ema=ema) for multiple in RATES]
    within = [to_dict(step) for step in steps if rates and _is_near(rates, step.lr)]
    ladder = [point for step in within if (point := nearest_point(space, step))]
    return ladder[: max(0, points // GIVEN_PART)]


def _is_near(rates: Choices | Range, rate: float) -> bool:
    """Whether ``rate`` is one of them, but for rounding: 3 times 1e-4 is not 3e-4."""
    nearest = rates.nearest(rate)
    return isinstance(nearest, float) and math.isclose(nearest, rate)


def point_of(space: SearchSpace, recipe: Mapping[str, Any]) -> Suggestion | None:
    """``recipe`` as a point drawn from ``space``, at the space's own length; None outside it."""
    wanted = from_dict(Recipe, recipe)

    def pick(parameter: Parameter, value: Value) -> Value | None:
        fixed = parameter.values.examples
        if parameter.name in ("iterations", "batch_size") and len(set(fixed)) == 1:
            return fixed[0]
        return value if parameter.values.holds(value) else None

    point = _drawn_like(space, wanted, pick)
    if point is None:
        return None
    drawn = from_dict(Recipe, point.recipe)
    as_long = replace(drawn, iterations=wanted.iterations, batch_size=wanted.batch_size)
    return point if as_long == wanted else None


def nearest_point(space: SearchSpace, recipe: Mapping[str, Any]) -> Suggestion | None:
    """The point of ``space`` that comes closest to ``recipe``.

    A number that a parameter cannot take becomes the closest that it can, and what the space does
    not search is ignored; None if the space lacks the strategy or another name.
    """
    return _drawn_like(space, from_dict(Recipe, recipe), lambda p, value: p.values.nearest(value))


def _drawn_like(
    space: SearchSpace, wanted: Recipe, pick: Callable[[Parameter, Value], Value | None]
) -> Suggestion | None:
    """A point whose parameters ``pick`` takes from those of ``wanted``; None if it cannot."""
    from optuna.distributions import distribution_to_json
    from optuna.trial import FixedTrial

    values = to_dict(wanted)

    def pick_or_give_up(parameter: Parameter) -> Value:
        value = pick(parameter, values[parameter.name])
        if value is None:
            raise LookupError(parameter.name)
        return value

    try:
        chosen = draw(space.parameters, pick_or_give_up)
    except LookupError:
        return None
    if from_dict(Recipe, chosen).strategy != wanted.strategy:
        return None
    trial = FixedTrial(chosen)
    fields = space(trial)
    distributions = {n: distribution_to_json(d) for n, d in trial.distributions.items()}
    return Suggestion(0, fields, "", distributions)
