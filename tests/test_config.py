from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from mfdiff_core.config import flatten, from_dict, one_of, override, to_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.model import MODELS, PRESETS, AnyModelConfig, ModelConfig, preset
from mfdiff_core.training.loop import TrainConfig
from mfdiff_core.training.strategies import Recipe


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 1
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width=}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    title: str
    inner: Inner = field(default_factory=Inner)
    bounds: tuple[float, float] | None = (0.0, 1.0)
    flag: bool = False
    inners: tuple[Inner, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Nested like the platform's pretraining request."""

    name: str
    model: ModelConfig = field(default_factory=lambda: preset("base"))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(validate_every=1000))


def faults(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, values)
    return str(caught.value)


# --- reading -------------------------------------------------------------------------------


def test_missing_keys_keep_their_defaults() -> None:
    assert from_dict(Outer, {"title": "t"}) == Outer(title="t")


def test_unknown_key_names_its_dotted_path_and_the_valid_keys() -> None:
    message = faults({"title": "t", "inner": {"widht": 3}})
    assert message == "inner.widht: unknown key 'widht'; valid keys are kind, names, rate, width"


def test_all_faults_are_reported_at_once() -> None:
    message = faults({"x": 1, "inner": {"width": "w", "rate": True}, "bounds": [1], "flag": 0})
    paths = [line.split(":")[0] for line in message.splitlines()]
    assert sorted(paths) == ["bounds", "flag", "inner.rate", "inner.width", "title", "x"]


def test_source_is_named_before_the_path() -> None:
    with pytest.raises(ConfigError, match=r"^site\.yaml\.inner\.rate: expected float, got 'x'"):
        from_dict(Outer, {"title": "t", "inner": {"rate": "x"}}, "site.yaml")


def test_refused_range_is_reported_with_its_path() -> None:
    message = faults({"title": "t", "inner": {"width": 0}})
    assert message == "inner: width must be at least 1, got self.width=0"


def test_whole_number_is_taken_for_a_float() -> None:
    rate = from_dict(Inner, {"rate": 2}).rate
    assert isinstance(rate, float)
    assert rate == 2.0


@pytest.mark.parametrize(
    ("key", "value"), [("width", True), ("width", 1.0), ("rate", True), ("names", "abc")]
)
def test_value_of_another_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: expected \w+, got {value!r}$"):
        from_dict(Inner, {key: value})


def test_number_is_not_taken_for_a_flag() -> None:
    assert faults({"title": "t", "flag": 1}) == "flag: expected bool, got 1"


def test_none_is_taken_only_where_it_is_allowed() -> None:
    assert from_dict(Outer, {"title": "t", "bounds": None}).bounds is None
    assert faults({"title": None}) == "title: expected str, got None"


@pytest.mark.parametrize("bounds", [[], [1.0], [1.0, 2.0, 3.0]])
def test_tuple_of_another_length_is_refused(bounds: list[float]) -> None:
    message = faults({"title": "t", "bounds": bounds})
    assert message == f"bounds: expected 2 values, got {len(bounds)}"


def test_fault_inside_a_tuple_names_its_place() -> None:
    assert faults({"title": "t", "bounds": [0, "b"]}) == "bounds[1]: expected float, got 'b'"


def test_word_that_is_no_choice_is_refused_with_the_choices() -> None:
    message = faults({"title": "t", "inner": {"kind": "c"}})
    assert message == "inner.kind: 'c' is not one of 'a', 'b'"


def test_scalar_in_place_of_a_group_is_refused() -> None:
    assert faults({"title": "t", "inner": 3}) == "inner: expected a mapping, got 3"


# --- overriding ----------------------------------------------------------------------------


def test_override_changes_only_what_it_names() -> None:
    changed = override(Outer(title="t"), {"inner.width": 7, "bounds": None})
    assert changed == Outer(title="t", inner=Inner(width=7), bounds=None)


def test_override_leaves_the_original_alone() -> None:
    config = Outer(title="t", facts={"a": {"b": 1}})
    override(config, {"facts.a.b": 2})
    assert config.facts == {"a": {"b": 1}}


def test_override_reaches_an_item_of_a_sequence_by_its_place() -> None:
    config = Outer(title="t", inners=(Inner(), Inner(width=2)))
    changed = override(config, {"inners.1.rate": 0.25, "bounds.0": -1.0})
    assert changed.inners == (Inner(), Inner(width=2, rate=0.25))
    assert changed.bounds == (-1.0, 1.0)
    with pytest.raises(ConfigError, match=r"inners\.2: unknown key '2'; valid keys are 0, 1"):
        override(config, {"inners.2.rate": 0.25})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("inner.depth", "inner.depth: unknown key 'depth'; valid keys are kind, names, rate"),
        ("outer.width", "outer: unknown key 'outer'; valid keys are bounds, facts"),
        ("title.size", "title.size: title is a single value and has no keys"),
        ("", ": unknown key ''"),
    ],
)
def test_override_of_an_unknown_path_is_refused(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Outer(title="t"), {path: 1})
    assert str(caught.value).startswith(message)


def test_override_reports_all_unknown_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        override(Outer(title="t"), {"a": 1, "inner.b": 2})
    assert len(str(caught.value).splitlines()) == 2


def test_override_checks_types_and_ranges() -> None:
    with pytest.raises(ConfigError, match="inner: width must be at least 1"):
        override(Outer(title="t"), {"inner.width": -1})
    with pytest.raises(ConfigError, match="inner\\.width: expected int"):
        override(Outer(title="t"), {"inner.width": "3"})


# --- round trips ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(preset(name), id=name) for name in PRESETS),
        Recipe(freeze="lora-8", l2sp=1e-3),
        Recipe(strategy="external", iterations=0),
        Request(name="n", model=preset("tiny"), train=TrainConfig(unfreeze_after=3)),
        Outer(title="t", inners=(Inner(width=2), Inner()), facts={"a": [1, {"b": None}]}),
    ],
)
def test_config_survives_json(config: Any) -> None:
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(type(config), values) == config


def test_flat_keys_are_dotted_and_sequences_are_text() -> None:
    rows = flatten(Outer(title="t", inner=Inner(names=("x", "y"))))
    assert rows["inner.names"] == "['x', 'y']"
    assert rows["inner.width"] == 1
    assert rows["bounds"] == "[0.0, 1.0]"


def test_every_flat_key_of_a_preset_is_an_override_path() -> None:
    config = preset("tiny")
    scalars = {k: v for k, v in flatten(config).items() if not isinstance(v, str)}
    assert len(scalars) > 20
    assert override(config, scalars) == config


# --- one of several configs ----------------------------------------------------------------


@pytest.mark.parametrize("system", MODELS)
def test_config_of_every_model_comes_back_from_a_file(system: str) -> None:
    config = preset("tiny", system)
    assert config.system == system
    assert one_of(AnyModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_config_that_names_no_model_is_of_mfdiff() -> None:
    """Bundles of the first version have no such key."""
    old = to_dict(preset("tiny"))
    del old["system"]
    assert one_of(AnyModelConfig, old) == preset("tiny")


def test_config_of_an_unknown_model_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"x\.system: 'resnet' is not one of 'mfdiff', 'm-unet'"):
        one_of(AnyModelConfig, {"system": "resnet"}, "x")


def test_faults_of_a_named_config_are_its_own() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'network'; valid keys are .*widths"):
        one_of(AnyModelConfig, {"system": "m-unet", "network": {}})
