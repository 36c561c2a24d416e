"""The shipped search spaces on models that lack what some freeze plans freeze."""

from __future__ import annotations

import copy

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_core.model import build_model, preset
from mfdiff_core.training.freezing import apply_plan
from mfdiff_platform.narrow_space import narrowed
from mfdiff_platform.search_parameter import Choices
from mfdiff_platform.search_space import SearchSpace, load, parse, resolve

DOMAINS = ["ood1", "ood2", "ood3", "leeds"]
SYSTEMS = ["csrd", "cncl", "unet", "m-unet", "ea-gan", "hi-net", "gmunet"]


def plans(space: SearchSpace) -> list[str]:
    (choices,) = [p.values for p in space.parameters if p.name == "freeze"]
    assert isinstance(choices, Choices)
    return [str(plan) for plan in choices.values]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_plan_left_can_be_carried_out(system: str) -> None:
    config = preset("tiny", system)
    left = {plan for domain in DOMAINS for plan in plans(narrowed(load(resolve(domain)), config))}
    assert "none" in left
    fresh = build_model(config, 0).network
    for plan in left:
        network = copy.deepcopy(fresh)
        apply_plan(network, plan, network.parameter_groups(), network.norm_parameters())


@pytest.mark.parametrize("domain", DOMAINS)
def test_mfdiff_keeps_the_space_as_it_is(domain: str) -> None:
    space = load(resolve(domain))
    assert narrowed(space, preset("tiny")) is space


def test_lost_plans_are_told_and_go_from_conditions_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    space = narrowed(load(resolve("ood2")), preset("tiny", "csrd"))
    assert plans(space) == ["none", "fusion+down", "norm-only", "lora-8"]
    conditions = {p.name: dict(p.when) for p in space.parameters}
    assert conditions["unfreeze_at"] == {"freeze": ("fusion+down",)}
    told = " ".join(capsys.readouterr().err.split())
    assert "A csrd model has no use for the freeze plans encoders, fusion:" in told


def test_what_hung_on_a_lost_plan_goes_with_it() -> None:
    text = """
parameters:
  freeze: {choices: [none, encoders]}
  unfreeze_at: {choices: [1.0, 0.5], when: {freeze: encoders}}
  unfreeze_stepwise: {choices: [false, true], when: {unfreeze_at: 0.5}}
"""
    space = narrowed(parse(text), preset("tiny", "csrd"))
    assert [parameter.name for parameter in space.parameters] == ["freeze"]


@pytest.mark.parametrize(
    "text",
    [
        "parameters: {freeze: {value: encoders}}",
        "parameters: {lr: {value: 1e-3}}\nreferences: [{name: mine, freeze: encoders}]",
    ],
)
def test_space_that_needs_such_a_plan_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="csrd model has no use for the freeze plans encoders"):
        narrowed(parse(text), preset("tiny", "csrd"))
