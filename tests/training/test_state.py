from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mfdiff_core.config import override
from mfdiff_core.errors import DataError
from mfdiff_core.model import MFdiffModel, ModelConfig, build_model
from mfdiff_core.training.state import FACTS, TENSORS, TrainState
from mfdiff_core.training.strategies import Recipe, start

MakeModel = Callable[[], MFdiffModel]
MakeState = Callable[..., TrainState]


@pytest.fixture
def make_state(make_model: MakeModel) -> MakeState:
    """``make_state(freeze=..., ema=..., ...)``: a state at step 0 of a two-stage recipe."""

    def make(**fields: object) -> TrainState:
        model = make_model()
        return start(model, Recipe(**fields), model.state_dict())  # type: ignore[arg-type]

    return make


def advance(state: TrainState, steps: int = 2) -> TrainState:
    """Optimiser steps with made-up gradients."""
    for _ in range(steps):
        for number, group in enumerate(state.optimizer.param_groups):
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.1 + number + state.step)
        state.optimizer.step()
        if state.average is not None:
            state.average.update(dict(state.model.named_parameters()), state.step)
        state.step += 1
    return state


def saved_tensors(state: TrainState, folder: Path) -> dict[str, torch.Tensor]:
    state.save(folder)
    tensors: dict[str, torch.Tensor] = load_file(str(folder / TENSORS))
    return tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- saving and loading --------------------------------------------------------------------


def test_loaded_state_is_the_saved_one_bit_for_bit(make_state: MakeState, tmp_path: Path) -> None:
    state = advance(make_state())
    state.note_validation(31.5)
    advance(state)
    written = saved_tensors(state, tmp_path / "a")
    other = make_state()
    other.load(tmp_path / "a")
    assert same(written, saved_tensors(other, tmp_path / "b"))
    assert (other.step, other.best) == (4, 31.5)


def test_state_holds_weights_averages_and_moments(make_state: MakeState, tmp_path: Path) -> None:
    state = advance(make_state())
    count = len(list(state.model.parameters()))
    names = [name.split(".")[0] for name in saved_tensors(state, tmp_path / "a")]
    assert names.count("average") == count
    assert names.count("model") >= count
    assert names.count("optimizer") == 3 * count  # step, mean, mean square


def test_loaded_state_goes_on_as_the_saved_one(make_state: MakeState, tmp_path: Path) -> None:
    state = advance(make_state())
    state.save(tmp_path / "a")
    other = make_state()
    other.load(tmp_path / "a")
    later = [saved_tensors(advance(s), tmp_path / "b") for s in (state, other)]
    assert same(*later)


def test_fresh_state_has_no_best_value(make_state: MakeState, tmp_path: Path) -> None:
    make_state().save(tmp_path / "a")
    other = make_state()
    other.load(tmp_path / "a")
    assert other.best == float("-inf")
    assert other.note_validation(-100.0)


def test_moments_are_laid_out_like_their_parameters(make_state: MakeState, tmp_path: Path) -> None:
    """Fused kernels walk through memory, not through indices."""
    advance(make_state()).save(tmp_path / "a")
    other = make_state()
    other.model.set_layout("channels_last")
    other.load(tmp_path / "a")
    for parameter, values in other.optimizer.state.items():
        assert values["exp_avg"].stride() == parameter.stride()
    assert same(load_file(str(tmp_path / "a" / TENSORS)), saved_tensors(other, tmp_path / "b"))


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_incomplete_state_is_refused(make_state: MakeState, tmp_path: Path, name: str) -> None:
    state = make_state()
    state.save(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    with pytest.raises(DataError, match=str(tmp_path / "a")):
        state.load(tmp_path / "a")


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_damaged_state_is_refused(make_state: MakeState, tmp_path: Path, keep: float) -> None:
    state = make_state()
    state.save(tmp_path / "a")
    content = bytearray((tmp_path / "a" / TENSORS).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a" / TENSORS).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="hash does not match"):
        state.load(tmp_path / "a")


@pytest.mark.parametrize("key", ["step", "sha256", "frozen", "best"])
def test_state_with_incomplete_facts_is_refused(
    make_state: MakeState, tmp_path: Path, key: str
) -> None:
    state = make_state()
    state.save(tmp_path / "a")
    facts = json.loads((tmp_path / "a" / FACTS).read_text())
    del facts[key]
    (tmp_path / "a" / FACTS).write_text(json.dumps(facts))
    with pytest.raises(DataError, match=f"{key}: missing"):
        state.load(tmp_path / "a")


def test_state_of_another_model_is_refused(
    make_state: MakeState, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    make_state().save(tmp_path / "a")
    wider = build_model(override(tiny_config, {"network.fusion.channels": 16}), 0)
    with pytest.raises(DataError, match="the state is of another model"):
        start(wider, Recipe(strategy="internal"), None).load(tmp_path / "a")


@pytest.mark.parametrize("ema", [0.0, 0.99])
@pytest.mark.parametrize(
    ("saved", "own"), [("encoders", "fusion"), ("fusion", "encoders"), ("fusion", "none")]
)
def test_state_of_another_freeze_plan_is_refused(
    make_state: MakeState, tmp_path: Path, saved: str, own: str, ema: float
) -> None:
    advance(make_state(freeze=saved, ema=ema)).save(tmp_path / "a")
    with pytest.raises(DataError, match="another freeze plan"):
        make_state(freeze=own, ema=ema).load(tmp_path / "a")


def test_state_saved_after_unfreezing_is_loaded_by_its_own_plan(
    make_state: MakeState, tmp_path: Path
) -> None:
    state = advance(make_state(freeze="fusion", unfreeze_at=0.5))
    state.unfreeze()
    written = saved_tensors(advance(state), tmp_path / "a")
    other = make_state(freeze="fusion", unfreeze_at=0.5)
    other.load(tmp_path / "a")
    assert same(written, saved_tensors(other, tmp_path / "b"))
    assert same(*(saved_tensors(advance(s), tmp_path / "b") for s in (state, other)))


# --- the weights to restore with -----------------------------------------------------------


def test_weights_are_the_averaged_ones_where_trained(make_state: MakeState) -> None:
    state = advance(make_state(freeze="fusion"))
    assert state.average is not None
    weights, raw = state.weights(), dict(state.model.named_parameters())
    for name, parameter in raw.items():
        expected = state.average.averages[name] if parameter.requires_grad else parameter
        assert torch.equal(weights[name], expected)


def test_without_average_the_weights_are_the_trained_ones(make_state: MakeState) -> None:
    state = advance(make_state(ema=0.0))
    assert same(state.weights(), state.model.state_dict())


def test_model_holds_averaged_weights_only_while_it_is_judged(make_state: MakeState) -> None:
    state = advance(make_state())
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with state.averaged() as model:
        assert not model.training
        assert same(dict(model.state_dict()), state.weights())
        assert not same(dict(model.state_dict()), before)
    assert state.model.training
    assert same(dict(state.model.state_dict()), before)


def test_failed_validation_gives_the_trained_weights_back(make_state: MakeState) -> None:
    state = advance(make_state())
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with pytest.raises(RuntimeError), state.averaged():
        raise RuntimeError
    assert same(dict(state.model.state_dict()), before)


# --- the best so far -----------------------------------------------------------------------


def test_only_a_higher_value_is_the_best(make_state: MakeState) -> None:
    state = make_state()
    assert [state.note_validation(value) for value in (1.0, 1.0, 0.5, 2.0)] == [
        True, False, False, True,
    ]  # fmt: skip


def test_value_that_is_no_number_is_never_the_best(make_state: MakeState) -> None:
    state = make_state()
    assert not state.note_validation(float("nan"))
    assert state.note_validation(1.0)
    assert not state.note_validation(float("nan"))
    assert not state.note_validation(0.5)


def test_best_weights_do_not_move_on_with_the_training(make_state: MakeState) -> None:
    state = advance(make_state())
    state.note_validation(1.0)
    kept = state.weights()
    advance(state)
    assert same(state.best_weights, kept)


# --- unfreezing ----------------------------------------------------------------------------


def test_unfreezing_trains_and_averages_everything(make_state: MakeState) -> None:
    state = advance(make_state(freeze="all-but-up"))
    frozen = [n for n, p in state.model.named_parameters() if not p.requires_grad]
    before = state.weights()
    state.unfreeze()
    advance(state)
    assert frozen
    after = state.weights()
    assert not [name for name in frozen if torch.equal(before[name], after[name])]


def test_unfrozen_weights_are_averaged_from_then_on(make_state: MakeState) -> None:
    state = advance(make_state(freeze="fusion"))
    frozen = {n: p.clone() for n, p in state.model.named_parameters() if not p.requires_grad}
    state.unfreeze()
    advance(state, steps=1)
    weights, trained = state.weights(), dict(state.model.named_parameters())
    for name, before in frozen.items():
        # Step 2 keeps (1 + 2) / (10 + 2) of the average.
        expected = torch.lerp(trained[name].detach(), before, 0.25)
        torch.testing.assert_close(weights[name], expected)


def test_unfrozen_layers_keep_their_layer_wise_learning_rate(make_state: MakeState) -> None:
    state = make_state(freeze="fusion", layer_decay=0.5)
    state.unfreeze()
    scales = {
        id(parameter): group["lr_scale"]
        for group in state.optimizer.param_groups
        for parameter in group["params"]
    }
    own = {name: scales[id(p)] for name, p in state.model.named_parameters()}
    assert own == state.lr_scales


def test_unfreezing_twice_changes_nothing(make_state: MakeState) -> None:
    state = make_state(freeze="fusion")
    state.unfreeze()
    groups = len(state.optimizer.param_groups)
    state.unfreeze()
    assert len(state.optimizer.param_groups) == groups
