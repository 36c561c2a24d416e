"""A search space cut to what a model has: not every network has the parts that plans freeze."""

from __future__ import annotations

from typing import Any

import yaml

from mfdiff_core.errors import ConfigError
from mfdiff_core.model import AnyModelConfig, build_model
from mfdiff_core.training.freezing import plan_fits
from mfdiff_platform.progress import say
from mfdiff_platform.search_parameter import Choices
from mfdiff_platform.search_space import SearchSpace, parse

_FREEZE = "freeze"


def narrowed(space: SearchSpace, config: AnyModelConfig) -> SearchSpace:
    """``space`` without the freeze plans that freeze nothing, or everything, of this model.

    Raises:
        ConfigError: no plan is left, or a reference recipe of the file needs such a plan.
    """
    if config.system == "mfdiff":  # the plans are made for it
        return space
    network = build_model(config, 0).network
    groups, norms = network.parameter_groups(), network.norm_parameters()
    odd = [plan for plan in _plans(space) if not plan_fits(plan, groups, norms)]
    if not odd:
        return space
    told = f"a {config.system} model has no use for the freeze plans {', '.join(odd)}"
    references = [name for name, recipe in space.own_references if recipe.get(_FREEZE) in odd]
    content: dict[str, Any] = yaml.safe_load(space.text)
    parameters = content["parameters"]
    left = [plan for plan in parameters.get(_FREEZE, {}).get("choices", ()) if plan not in odd]
    if references or not left:
        where = f"reference {references[0]!r}" if references else "freeze"
        raise ConfigError(f"{told}; give a --space whose {where} has others")
    say(f"{told[0].upper()}{told[1:]}: the search leaves them out.")
    parameters[_FREEZE]["choices"] = left
    _drop_impossible(parameters)
    return parse(str(yaml.safe_dump(content, sort_keys=False)))


def _plans(space: SearchSpace) -> list[str]:
    """Every freeze plan that a recipe of the space may have."""
    named = [str(recipe[_FREEZE]) for _, recipe in space.own_references if _FREEZE in recipe]
    for parameter in space.parameters:
        if parameter.name == _FREEZE and isinstance(parameter.values, Choices):
            named += map(str, parameter.values.values)
    return list(dict.fromkeys(named))


def _drop_impossible(parameters: dict[str, Any]) -> None:
    """Take out conditions that can no longer hold, and parameters that hang on them."""
    for name, body in list(parameters.items()):
        for other, allowed in list(body.get("when", {}).items()):
            values = allowed if isinstance(allowed, list) else [allowed]
            there = parameters.get(other, {})
            possible = there.get("choices", [there.get("value")])
            kept = [value for value in values if value in possible]
            if not kept:
                del parameters[name]
                break
            body["when"][other] = kept
