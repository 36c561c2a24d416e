from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mfdiff_core.errors import ConfigError
from mfdiff_core.model import MFdiffModel, ModelConfig, build_model
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.strategies import Recipe, reference_recipes, start

MakeModel = Callable[[], MFdiffModel]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scale_of(state: TrainState, name: str) -> float:
    """Learning-rate factor of the optimiser group that holds parameter ``name``."""
    wanted = dict(state.model.named_parameters())[name]
    for group in state.optimizer.param_groups:
        if any(parameter is wanted for parameter in group["params"]):
            return float(group["lr_scale"])
    raise AssertionError(f"{name} is not trained")


# --- recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": "head"}, "unknown freeze plan 'head'; valid plans are none, encoders"),
        ({"lr": 0.0}, "lr must lie between 0 and 1"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"strategy": "external"}, "external trains nothing: iterations must be 0"),
        ({"iterations": 0}, "iterations must be at least 1, got self.iterations=0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"replay": 1.5}, r"replay must lie in \[0, 1\]"),
        ({"unfreeze_at": 0.0}, r"unfreeze_at must lie in \(0, 1\]"),
        ({"strategy": "internal", "freeze": "fusion"}, "needs pretrained weights"),
        ({"strategy": "single_stage", "freeze": "lora-8"}, "needs pretrained weights"),
        ({"strategy": "internal", "l2sp": 0.1}, "pulls towards pretrained weights"),
        ({"strategy": "internal", "replay": 0.1}, "replay mixes phantom slices in"),
    ],
)
def test_recipe_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        ({"freeze": "fusion", "unfreeze_at": 0.25}, 250),
        ({"freeze": "fusion", "unfreeze_at": 1.0}, None),
        ({"freeze": "none", "unfreeze_at": 0.25}, None),
    ],
)
def test_share_of_the_iterations_becomes_the_step_of_unfreezing(
    fields: dict[str, Any], step: int | None
) -> None:
    assert Recipe(iterations=1000, **fields).unfreeze_after == step


def test_optimiser_gets_every_setting_of_the_recipe() -> None:
    fields = {
        "lr": 0.1, "warmup": 2, "schedule": "linear", "weight_decay": 0.3, "ema": 0.4,
        "layer_decay": 0.5, "l2sp": 0.6,
    }  # fmt: skip
    optim = Recipe(**fields).optim()  # type: ignore[arg-type]
    assert {name: getattr(optim, name) for name in fields} == fields


def test_reference_recipes_are_the_papers_arms() -> None:
    recipes = reference_recipes(500, 4, single_stage=True)
    strategies = ["external", "two_stage", "internal", "single_stage"]
    assert [recipe.strategy for recipe in recipes.values()] == strategies
    assert [recipe.iterations for recipe in recipes.values()] == [0, 500, 500, 500]
    assert {recipe.lr for recipe in recipes.values()} == {1e-4}
    assert {recipe.freeze for recipe in recipes.values()} == {"none"}


def test_single_stage_is_left_out_unless_asked_for() -> None:
    strategies = {recipe.strategy for recipe in reference_recipes(500, 4).values()}
    assert strategies == {"external", "two_stage", "internal"}


# --- starting ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", [Recipe(strategy="two_stage"), Recipe(strategy="external", iterations=0)]
)
def test_pretrained_strategies_start_from_the_pretrained_weights(
    tiny_config: ModelConfig, make_model: MakeModel, recipe: Recipe
) -> None:
    pretrained = make_model().state_dict()
    state = start(build_model(tiny_config, seed=9), recipe, pretrained)
    assert same(state.weights(), pretrained)


@pytest.mark.parametrize("strategy", ["internal", "single_stage"])
def test_other_strategies_start_from_scratch(
    tiny_config: ModelConfig, make_model: MakeModel, strategy: Any
) -> None:
    pretrained = make_model().state_dict()
    state = start(build_model(tiny_config, seed=9), Recipe(strategy=strategy), pretrained)
    assert same(state.weights(), build_model(tiny_config, seed=9).state_dict())


def test_training_does_not_reach_back_into_the_pretrained_weights(make_model: MakeModel) -> None:
    pretrained = make_model().state_dict()
    state = start(make_model(), Recipe(), pretrained)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.zero_()
    assert any(value.any() for value in pretrained.values())


def test_missing_pretrained_weights_are_an_error(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="'two_stage' needs a pretrained model"):
        start(make_model(), Recipe(), None)


@pytest.mark.parametrize("freeze", ["none", "lora-2"])
def test_layers_far_from_the_output_learn_more_slowly(make_model: MakeModel, freeze: str) -> None:
    recipe = Recipe(layer_decay=0.5, freeze=freeze)
    state = start(make_model(), recipe, make_model().state_dict())
    tail = "weight" if freeze == "none" else "parametrizations.weight.0.lora_a"
    names = ("unet.conv_out", "unet.middle.block_in.time", "unet.conv_in", "fusion.encoder_p.embed")
    scales = [scale_of(state, f"network.{name}.{tail}") for name in names]
    assert scales == [1.0, 0.5, 0.125, 0.5**7]


def test_without_layer_decay_all_learn_alike(make_model: MakeModel) -> None:
    state = start(make_model(), Recipe(), make_model().state_dict())
    assert [group["lr_scale"] for group in state.optimizer.param_groups] == [1.0]


def test_average_is_kept_only_where_asked_for(make_model: MakeModel) -> None:
    pretrained = make_model().state_dict()
    assert start(make_model(), Recipe(ema=0.0), pretrained).average is None
    assert start(make_model(), Recipe(ema=0.9), pretrained).average is not None
