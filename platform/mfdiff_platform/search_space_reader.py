"""Checks the content of a search space file and lists all its faults at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, get_type_hints

from mfdiff_core.config import from_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.training.strategies import Recipe, reference_recipes
from mfdiff_platform.names import check_name
from mfdiff_platform.search_parameter import Choices, Parameter, Range, Value, complete, draw

_TOP = ("description", "parameters", "references")
_FORMS = {"choices": ("choices",), "value": ("value",), "low": ("low", "high", "log", "step")}
_FORMS_TEXT = "{choices: [...]}, {value: x} or {low: x, high: y}"
_TYPES = get_type_hints(Recipe)
_COMPANIONS: dict[str, dict[str, Value]] = {
    "unfreeze_stepwise": {"freeze": "encoders", "unfreeze_at": 0.5}
}
"""Fields that are checked beside others, without which any value of theirs is a fault."""

Condition = tuple[str, tuple[Value, ...]]


class Content(NamedTuple):
    """What a space file says."""

    description: str
    parameters: tuple[Parameter, ...]
    references: tuple[tuple[str, dict[str, Value]], ...]


def read_content(content: Any, where: str) -> Content:
    """Check the parsed YAML of a space file named ``where``.

    Raises:
        ConfigError: all faults, one per line, each with its dotted path.
    """
    reader = _Reader()
    checked = reader.content(content)
    if not reader.faults:
        reader.conflicts(checked.parameters)
    if reader.faults:
        raise ConfigError("\n".join(f"{where}: {fault}" for fault in reader.faults))
    return checked


class _Reader:
    """Collects faults while it reads."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def content(self, content: Any) -> Content:
        if not isinstance(content, Mapping):
            self._fault("", f"expected a mapping with {', '.join(_TOP)}, got {_short(content)}")
            return Content("", (), ())
        self._unknown(content, _TOP, "")
        description = content.get("description") or ""
        if not isinstance(description, str):
            self._fault("description", f"expected text, got {_short(description)}")
        parameters = self._parameters(content.get("parameters"))
        return Content(str(description), parameters, self._references(content.get("references")))

    def _parameters(self, bodies: Any) -> tuple[Parameter, ...]:
        if not isinstance(bodies, Mapping) or not bodies:
            self._fault("parameters", "expected a mapping of names to values")
            return ()
        self._unknown(bodies, _TYPES, "parameters.")
        found: dict[str, Parameter | None] = {}
        for name, body in bodies.items():
            if name in _TYPES:
                found[name] = self._parameter(name, body, found)
        return tuple(parameter for parameter in found.values() if parameter)

    def _parameter(
        self, name: str, body: Any, earlier: Mapping[str, Parameter | None]
    ) -> Parameter | None:
        path = f"parameters.{name}"
        forms = [form for form in _FORMS if isinstance(body, Mapping) and form in body]
        if len(forms) != 1:
            self._fault(path, f"expected {_FORMS_TEXT}, got {_short(body)}")
            return None
        self._unknown(body, (*_FORMS[forms[0]], "when"), f"{path}.")
        values = self._range(name, body) if forms[0] == "low" else self._choices(name, body)
        when = self._when(body.get("when", {}), f"{path}.when", earlier)
        return Parameter(name=name, values=values, when=when) if values else None

    def _choices(self, name: str, body: Mapping[str, Any]) -> Choices | None:
        path = f"parameters.{name}"
        if "value" in body:
            return Choices(values=(self._value(name, body["value"], f"{path}.value"),))
        given = body["choices"]
        if not isinstance(given, list) or not given:
            self._fault(f"{path}.choices", f"expected a list of values, got {_short(given)}")
            return None
        values = [self._value(name, v, f"{path}.choices[{i}]") for i, v in enumerate(given)]
        if len(set(values)) < len(values):
            self._fault(f"{path}.choices", "a value stands twice")
        return Choices(values=tuple(values))

    def _range(self, name: str, body: Mapping[str, Any]) -> Range | None:
        path, kind, before = f"parameters.{name}", _TYPES[name], len(self.faults)
        if kind not in (int, float):
            self._fault(path, "is not a number; use choices or value")
            return None
        if "high" not in body:
            self._fault(f"{path}.high", "missing")
            return None
        log, step = body.get("log", False), body.get("step")
        if not isinstance(log, bool):
            self._fault(f"{path}.log", f"expected true or false, got {_short(log)}")
        if step is not None and (isinstance(step, bool) or not isinstance(step, int | kind)):
            self._fault(f"{path}.step", f"expected {kind.__name__}, got {_short(step)}")
        low, high = (self._value(name, body[end], f"{path}.{end}") for end in ("low", "high"))
        if len(self.faults) > before:
            return None
        try:
            return Range(low=low, high=high, step=step, log=log)  # type: ignore[arg-type]
        except ValueError as fault:
            self._fault(path, str(fault))
            return None

    def _value(self, name: str, value: Any, path: str) -> Value:
        """``value`` as the recipe holds it, or a fault."""
        context = {"iterations": 0 if value == "external" else 1, **_COMPANIONS.get(name, {})}
        try:
            recipe = from_dict(Recipe, {**context, name: value})
        except ConfigError as fault:
            self._fault(path, str(fault).split(": ", 1)[1])
            return str(value)
        checked: Value = getattr(recipe, name)
        return checked

    def _when(
        self, body: Any, path: str, earlier: Mapping[str, Parameter | None]
    ) -> tuple[Condition, ...]:
        if not isinstance(body, Mapping):
            self._fault(path, f"expected {{parameter: value or [values]}}, got {_short(body)}")
            return ()
        conditions: list[Condition] = []
        for name, given in body.items():
            allowed = tuple(given) if isinstance(given, list) else (given,)
            if name not in earlier:
                names = ", ".join(earlier) or "none"
                self._fault(f"{path}.{name}", f"not an earlier parameter; earlier are {names}")
                continue
            parameter = earlier[name]
            if parameter is None:  # its own fault is reported already
                continue
            if isinstance(parameter.values, Range):
                self._fault(f"{path}.{name}", "a condition needs a parameter with choices")
                continue
            for value in allowed:
                if value not in parameter.values.values:
                    self._fault(
                        f"{path}.{name}", f"{value!r} never occurs; values are {parameter.values}"
                    )
            conditions.append((name, allowed))
        return tuple(conditions)

    def _references(self, bodies: Any) -> tuple[tuple[str, dict[str, Value]], ...]:
        if bodies is None:
            return ()
        if not isinstance(bodies, list):
            self._fault("references", f"expected a list of recipes, got {_short(bodies)}")
            return ()
        taken = set(reference_recipes(1, 1, single_stage=True))
        found: list[tuple[str, dict[str, Value]]] = []
        for index, body in enumerate(bodies):
            path = f"references[{index}]"
            if not isinstance(body, Mapping) or not isinstance(body.get("name"), str):
                self._fault(path, "expected {name: a name, and fields of a recipe}")
                continue
            name, recipe = body["name"], {k: v for k, v in body.items() if k != "name"}
            if name in taken:
                self._fault(f"{path}.name", f"{name!r} is taken")
            taken.add(name)
            self._reference(name, recipe, path)
            found.append((name, recipe))
        return tuple(found)

    def _reference(self, name: str, recipe: Mapping[str, Any], path: str) -> None:
        try:
            check_name("reference", name)
            from_dict(Recipe, complete({"iterations": 1, **recipe}), path)
        except ConfigError as fault:
            self.faults += str(fault).splitlines()

    def conflicts(self, parameters: Sequence[Parameter]) -> None:
        """Find values that are fine alone but not together, such as freezing from scratch."""
        deciding = {name for parameter in parameters for name, _ in parameter.when} | {"strategy"}
        axes = [[(p.name, v) for v in p.values.examples] for p in parameters if p.name in deciding]
        faults = {
            _fault_of(draw(parameters, _picker({varied.name: value, **dict(case)})))
            for case in product(*axes)
            for varied in parameters
            for value in varied.values.examples
        }
        for fault in sorted(fault for fault in faults if fault):
            self._fault("parameters", f"{fault}; add a `when`")

    def _unknown(self, body: Mapping[str, Any], valid: Iterable[str], prefix: str) -> None:
        for key in body:
            if key not in valid:
                self._fault(f"{prefix}{key}", f"unknown key; valid keys are {', '.join(valid)}")

    def _fault(self, path: str, problem: str) -> None:
        self.faults.append(f"{path}: {problem}" if path else problem)


def _picker(picks: Mapping[str, Value]) -> Callable[[Parameter], Value]:
    """Picks a parameter's value from ``picks``, else its first one."""
    return lambda parameter: picks.get(parameter.name, parameter.values.examples[0])


def _fault_of(chosen: Mapping[str, Any]) -> str | None:
    try:
        from_dict(Recipe, chosen)
    except ConfigError as fault:
        return str(fault).removeprefix("Recipe: ")
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
