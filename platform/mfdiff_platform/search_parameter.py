"""One parameter of a search space: where its values come from and when it is there at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A few values; a single one is fixed and not searched."""

    values: tuple[Value, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """A value for ``trial``."""
        if len(self.values) == 1:
            return self.values[0]
        chosen: Value = trial.suggest_categorical(name, self.values)
        return chosen

    def holds(self, value: Value) -> bool:
        """Whether ``value`` is one of them."""
        return value in self.values

    def nearest(self, value: Value) -> Value | None:
        """``value`` if it is one of them, else the number that is closest; None for a name."""
        if value in self.values:
            return value
        numbers = [choice for choice in self.values if _is_number(choice)]
        if not (numbers and _is_number(value)):
            return None
        return min(numbers, key=lambda number: abs(float(number) - float(value)))

    @property
    def examples(self) -> tuple[Value, ...]:
        """Values that stand for all."""
        return self.values

    def __str__(self) -> str:
        return " | ".join(str(value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low, high: bounds; whole numbers if the parameter is one.
        step: distance of the values; None for all.
        log: whether orders of magnitude are searched evenly.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high: {self.low=} {self.high=}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0: {self.low=}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step must be positive and fit into the range: {self.step=}")

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int)

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """A value for ``trial``."""
        if self.is_whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return int(trial.suggest_int(name, low, high, step=step, log=self.log))
        return float(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))

    def holds(self, value: Value) -> bool:
        """Whether ``value`` is one of them."""
        if isinstance(value, str) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9

    def nearest(self, value: Value) -> Value | None:
        """The number of the range that is closest to ``value``; None for a name."""
        if not _is_number(value):
            return None
        clipped = min(max(float(value), self.low), self.high)
        if self.step is not None:
            most = math.floor((self.high - self.low) / self.step + 1e-9)
            clipped = self.low + min(round((clipped - self.low) / self.step), most) * self.step
        return round(clipped) if self.is_whole else clipped

    @property
    def examples(self) -> tuple[Value, ...]:
        """Values that stand for all."""
        return (self.low, self.high)

    def __str__(self) -> str:
        steps = "" if self.step is None else f", step {self.step:g}"
        return f"{self.low:g} .. {self.high:g}{', log' if self.log else ''}{steps}"


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A named field of the recipe with its values, there only ``when`` its conditions hold.

    Attributes:
        name: field of the recipe.
        values: where its values come from.
        when: earlier parameter to the values that it must have.
    """

    name: str
    values: Choices | Range
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the parameter is there, given the values chosen so far."""
        return all(name in chosen and chosen[name] in allowed for name, allowed in self.when)

    def row(self) -> tuple[str, str, str]:
        """Name, values and conditions as text."""
        conditions = [f"{name} is {' or '.join(map(str, allowed))}" for name, allowed in self.when]
        return self.name, str(self.values), " and ".join(conditions)


def draw(parameters: Iterable[Parameter], pick: Callable[[Parameter], Value]) -> dict[str, Value]:
    """Fields of a recipe: ``pick`` chooses for every parameter that applies, in order."""
    chosen: dict[str, Value] = {}
    for parameter in parameters:
        if parameter.applies(chosen):
            chosen[parameter.name] = pick(parameter)
    return complete(chosen)


def complete(chosen: Mapping[str, Value]) -> dict[str, Value]:
    """``chosen``, with what follows from it: ``external`` trains nothing."""
    trains_nothing = {"iterations": 0} if chosen.get("strategy") == "external" else {}
    return {**chosen, **trains_nothing}
