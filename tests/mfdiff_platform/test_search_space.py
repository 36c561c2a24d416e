from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from mfdiff_core.config import from_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.search_parameter import Choices, Range, Value
from mfdiff_platform.search_space import SearchSpace, load, parse, resolve, spaces_folder
from mfdiff_platform.yaml_file import parse_yaml

SHIPPED = sorted(spaces_folder().glob("*.yaml"))

GOOD = """
description: For tests
parameters:
  strategy: {choices: [two_stage, internal, external]}
  lr: {low: 1e-5, high: 1e-3, log: true, when: {strategy: [two_stage, internal]}}
  freeze: {choices: [none, fusion], when: {strategy: two_stage}}
  unfreeze_at: {low: 0.2, high: 1, step: 0.4, when: {freeze: fusion}}
  warmup: {low: 0, high: 100, step: 50}
  iterations: {value: 500}
  ema: {choices: [0.9, 0.99]}
references:
  - {name: gentle, strategy: two_stage, lr: 2e-5, freeze: fusion}
"""


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def draws(space: SearchSpace, count: int) -> Iterator[tuple[optuna.Trial, dict[str, Any]]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        trial = study.ask()
        yield trial, space(trial)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "my.yaml")
    return str(caught.value).splitlines()


# Shipped files


def test_the_shipped_spaces_are_complete() -> None:
    assert {path.stem for path in SHIPPED} == {
        "default",
        "ood1",
        "ood2",
        "ood3",
        "quickstart",
        "smoke",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_point_of_a_shipped_space_is_a_valid_recipe(path: Path) -> None:
    space = load(path)
    for _, recipe in draws(space, 100):
        from_dict(Recipe, recipe)


FULL = [path for path in SHIPPED if path.stem != "quickstart"]  # too short for low rates


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_a_shipped_space_holds_the_papers_fine_tuning(path: Path) -> None:
    space = load(path)
    paper = space.references()["two-stage (paper)"]
    by_name = {parameter.name: parameter.values for parameter in space.parameters}
    assert "two_stage" in by_name["strategy"].examples
    assert "none" in by_name["freeze"].examples
    low, high = by_name["lr"].examples
    assert float(low) <= paper.lr <= float(high)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_space_says_how_to_use_it(path: Path) -> None:
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(re.search(r"mfdiff-platform adapt --domain \S+", line) for line in comment)


def test_a_domain_without_a_file_gets_the_default(tmp_path: Path) -> None:
    assert resolve("ood3").name == "ood3.yaml"
    assert resolve("my-site").name == "default.yaml"
    own = tmp_path / "own.yaml"
    own.write_text(GOOD)
    assert resolve("ood3", own) == own
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        resolve("ood3", tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="domain name"):
        resolve("../default")


# Drawing


def test_a_parameter_is_there_only_when_its_condition_holds() -> None:
    seen = set()
    for _, recipe in draws(parse(GOOD), 200):
        seen.add((recipe["strategy"], recipe.get("freeze")))
        assert ("lr" in recipe) == (recipe["strategy"] != "external")
        assert ("freeze" in recipe) == (recipe["strategy"] == "two_stage")
        assert ("unfreeze_at" in recipe) == (recipe.get("freeze") == "fusion")
    assert seen == {
        ("two_stage", "none"),
        ("two_stage", "fusion"),
        ("internal", None),
        ("external", None),
    }


def test_values_lie_in_their_ranges_and_on_their_steps() -> None:
    for _, recipe in draws(parse(GOOD), 200):
        assert recipe["warmup"] in (0, 50, 100)
        assert isinstance(recipe["warmup"], int)
        assert recipe["ema"] in (0.9, 0.99)
        if "lr" in recipe:
            assert 1e-5 <= recipe["lr"] <= 1e-3
        if "unfreeze_at" in recipe:
            assert round(recipe["unfreeze_at"], 9) in (0.2, 0.6, 1.0)


@pytest.mark.parametrize(
    ("values", "value", "nearest"),
    [
        (Choices(values=(0.9, 0.99)), 0.9, 0.9),
        (Choices(values=(0.9, 0.99)), 0.9999, 0.99),
        (Choices(values=("none", "flip")), "flip", "flip"),
        (Choices(values=("none", "flip")), "affine", None),
        (Choices(values=(False, True)), 3.0, None),
        (Choices(values=(1, 2)), "1", None),
        (Range(low=1e-3, high=1e-2, log=True), 1e-4, 1e-3),
        (Range(low=1e-3, high=1e-2, log=True), 5e-3, 5e-3),
        (Range(low=0.0, high=1.0, step=0.3), 0.5, 0.6),
        (Range(low=0.0, high=1.0, step=0.3), 2.0, 0.9),
        (Range(low=2, high=8), 3.6, 4),
        (Range(low=2, high=8), "many", None),
    ],
)
def test_the_nearest_value_is_one_of_the_space(
    values: Choices | Range, value: Value, nearest: Value | None
) -> None:
    found = values.nearest(value)
    assert found == (pytest.approx(nearest) if isinstance(nearest, float) else nearest)
    assert found is None or values.holds(found)


def test_a_logarithmic_range_is_searched_evenly_by_order_of_magnitude() -> None:
    rates = [recipe["lr"] for _, recipe in draws(parse(GOOD), 400) if "lr" in recipe]
    share = sum(rate < 1e-4 for rate in rates) / len(rates)
    assert 0.4 < share < 0.6


def test_fixed_values_are_in_the_recipe_but_not_searched() -> None:
    for trial, recipe in draws(parse(GOOD), 20):
        assert "iterations" not in trial.params
        trains = recipe["strategy"] != "external"
        assert recipe["iterations"] == (500 if trains else 0)
        assert {name: recipe[name] for name in trial.params} == trial.params


def test_a_space_survives_the_pickle_of_the_standard_library() -> None:
    space = parse(GOOD)
    copy = pickle.loads(pickle.dumps(space))
    assert copy == space == parse(space.text)
    first = [recipe for _, recipe in draws(space, 20)]
    assert first == [recipe for _, recipe in draws(copy, 20)]


def test_tpe_searches_the_space() -> None:
    space = parse(GOOD)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
    )
    study.optimize(lambda trial: space(trial).get("lr", 0.0), n_trials=40)
    assert study.best_value > 5e-4


# References


def test_references_are_the_papers_arms_then_the_files_own() -> None:
    space = parse(GOOD)
    recipes = space.references()
    assert list(recipes) == ["external", "two-stage (paper)", "internal", "gentle"]
    assert recipes["gentle"].freeze == "fusion"
    assert recipes["gentle"].lr == 2e-5
    assert list(space.references(single_stage=True))[3] == "single-stage"


def test_references_train_as_long_as_a_full_trial() -> None:
    text = "parameters: {iterations: {low: 10, high: 300}, batch_size: {choices: [8, 2]}}"
    for name, recipe in parse(text).references().items():
        assert recipe.iterations == (0 if name == "external" else 300)
        assert recipe.batch_size == 2


def test_what_a_space_leaves_out_is_the_recipes_default() -> None:
    space = parse("parameters: {lr: {low: 1e-5, high: 1e-3}}")
    assert space.iterations == Recipe().iterations
    assert space.batch_size == Recipe().batch_size


def test_show_tells_values_conditions_and_references() -> None:
    text = parse(GOOD).show()
    assert re.search(
        r"^lr +1e-05 \.\. 0\.001, log +if strategy is two_stage or internal$", text, re.M
    )
    assert re.search(r"^iterations +500$", text, re.M)
    assert "references: external, two-stage (paper), internal, gentle" in text


# Faults


def test_every_fault_of_a_file_is_told_at_once_with_its_path() -> None:
    found = faults("""
parameters:
  strategy: {choices: [two_stage, best]}
  learning_rate: {value: 1}
  lr: {low: 1e-3, high: 1e-4, log: true}
  freeze: {choices: [none, all], when: {strategy: [single]}}
  warmup: {low: 0, high: 10.5}
  ema: {choices: [0.9, 2]}
  schedule: {low: 1, high: 2}
  batch_size: 4
  weight_decay: {choices: []}
  layer_decay: {low: 0.5}
  replay: {value: 0, wen: {strategy: two_stage}}
  l2sp: {value: 0, when: {augment: none}}
  augment: {choices: [none, none]}
extra: 1
references:
  - {name: a, lr: fast, batches: 1}
  - {name: internal}
  - {lr: 1e-4}
  - {name: b, strategy: internal, freeze: fusion}
""")
    paths = [line.removeprefix("my.yaml: ").split(": ")[0] for line in found]
    assert sorted(paths) == sorted(
        [
            "extra",
            "parameters.learning_rate",
            "parameters.strategy.choices[1]",
            "parameters.lr",
            "parameters.freeze.choices[1]",
            "parameters.freeze.when.strategy",
            "parameters.warmup.high",
            "parameters.ema.choices[1]",
            "parameters.schedule",
            "parameters.batch_size",
            "parameters.weight_decay.choices",
            "parameters.layer_decay.high",
            "parameters.replay.wen",
            "parameters.l2sp.when.augment",
            "parameters.augment.choices",
            "references[0].lr",
            "references[0].batches",
            "references[1].name",
            "references[2]",
            "references[3]",
        ]
    )
    assert all(line.startswith("my.yaml: ") for line in found)


def test_unknown_keys_list_the_valid_ones() -> None:
    (fault,) = faults("parameters: {learning_rate: {value: 1}}")
    assert "valid keys are strategy, freeze, unfreeze_at, lr" in fault


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("{low: 1e-5, high: 1e-3, log: true, step: 1e-5}", "exclude"),
        ("{low: 1e-5, high: 1e-3, log: 1}", "true or false"),
        ("{low: 1e-5, high: 1e-3, step: 1}", "fit into"),
        ("{choices: [1e-4], value: 1e-4}", "expected {choices"),
        ("{choices: [[1], {a: 1}]}", "expected float"),
        ("{value: true}", "expected float"),
        ("{value: null}", "expected float"),
        ("{low: -1, high: 0.1}", "between 0 and 1"),
        ("{choices: [1e-4], when: 3}", "parameter: value"),
    ],
)
def test_values_that_cannot_be_are_refused(body: str, problem: str) -> None:
    assert any(problem in fault for fault in faults(f"parameters: {{lr: {body}}}"))


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "parameters: 3", "parameters: {}", "references: []"]
)
def test_a_file_without_parameters_is_refused(text: str) -> None:
    assert faults(text)


def test_values_that_do_not_go_together_are_found_before_the_study() -> None:
    found = faults("""
parameters:
  strategy: {choices: [two_stage, internal]}
  freeze: {choices: [none, encoders]}
  l2sp: {choices: [0, 1e-3]}
""")
    assert len(found) == 2
    assert "freeze='encoders' needs pretrained weights" in found[0]
    assert all("add a `when`" in fault for fault in found)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (binary, tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError, match=path.name):
            load(path)


# YAML


def test_yaml_scalars_are_what_they_look_like() -> None:
    text = "{a: 1e-4, b: no, c: 1:30, d: 10, e: -0.5, f: true, g: none, h: ~, i: 2020-01-01}"
    assert parse_yaml(text, "x") == {
        "a": 1e-4,
        "b": "no",
        "c": "1:30",
        "d": 10,
        "e": -0.5,
        "f": True,
        "g": "none",
        "h": None,
        "i": "2020-01-01",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "my.yaml, line 3: key 'a' stands twice"),
        ("1: 2", "key 1 must be text"),
        ("a: [1, 2", "my.yaml, line"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: \x00", "my.yaml: "),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        parse_yaml(text, "my.yaml")
