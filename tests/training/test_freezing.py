from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mfdiff_core.data.batches import BatchStream
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import ConfigError
from mfdiff_core.model import MFdiffModel
from mfdiff_core.training.freezing import (
    NORM_ONLY,
    PLANS,
    add_lora,
    apply_plan,
    check_plan,
    lora_rank,
    merged_weights,
)
from mfdiff_core.training.loop import TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.strategies import Recipe, start

MakeModel = Callable[[], MFdiffModel]

# What each plan freezes, by how the paper's parts are named in the network.
FROZEN_PREFIXES: dict[str, tuple[str, ...]] = {
    "none": (),
    "encoders": ("fusion.encoder_p.", "fusion.encoder_m."),
    "fusion": ("fusion.",),
    "fusion+down": ("fusion.", "unet.conv_in.", "unet.down."),
    "all-but-up": (
        "fusion.",
        "unet.conv_in.",
        "unet.down.",
        "unet.middle.",
        "unet.time.",
        "noise_level.",
    ),
}


def is_trained(plan: str, name: str) -> bool:
    if plan == NORM_ONLY:
        return "norm" in name
    if plan.startswith("lora"):
        return name.endswith((".lora_a", ".lora_b"))
    return not name.startswith(FROZEN_PREFIXES[plan])


@dataclass
class Trained:
    """A network after a few training steps under a plan, and its weights before."""

    plan: str
    state: TrainState
    before: dict[str, torch.Tensor]

    def parameters(self, *, trained: bool) -> dict[str, nn.Parameter]:
        named = self.state.model.network.named_parameters()
        return {name: p for name, p in named if is_trained(self.plan, name) == trained}


@pytest.fixture(scope="module", params=[*PLANS, NORM_ONLY, "lora-2"])
def run(request: pytest.FixtureRequest, make_model: MakeModel, dataset: Dataset) -> Trained:
    model = make_model()
    state = start(model, Recipe(freeze=request.param, lr=1e-3), make_model().state_dict())
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    batches = BatchStream(dataset.part("train"), batch_size=2, seed=0)
    for _ in train(state, batches, TrainConfig(iterations=2, optim=OptimConfig(lr=1e-3))):
        pass
    return Trained(request.param, state, before)


# --- every plan ----------------------------------------------------------------------------


def test_plan_table_is_complete() -> None:
    assert FROZEN_PREFIXES.keys() == PLANS.keys()


def test_plan_trains_some_parameters_and_freezes_others(run: Trained) -> None:
    assert run.parameters(trained=True)
    assert bool(run.parameters(trained=False)) == (run.plan != "none")


def test_frozen_parameters_get_no_gradient(run: Trained) -> None:
    frozen = run.parameters(trained=False).values()
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_frozen_parameters_have_no_optimiser_state(run: Trained) -> None:
    known = {id(p) for group in run.state.optimizer.param_groups for p in group["params"]}
    known |= {id(p) for p in run.state.optimizer.state}
    assert known == {id(p) for p in run.parameters(trained=True).values()}


def test_frozen_parameters_do_not_change_by_one_bit(run: Trained) -> None:
    for name, parameter in run.parameters(trained=False).items():
        assert torch.equal(parameter, run.before[name]), name


def test_frozen_parameters_are_restored_with_as_they_are(run: Trained) -> None:
    weights = run.state.weights()
    for name in run.parameters(trained=False):
        assert torch.equal(weights[f"network.{name}"], run.before[name]), name


def test_trained_parameters_change(run: Trained) -> None:
    for name, parameter in run.parameters(trained=True).items():
        assert not torch.equal(parameter, run.before[name]), name


def test_buffers_hold_no_statistics_that_could_drift(run: Trained) -> None:
    fresh = {name for name, _ in run.state.model.named_buffers()}
    assert not [name for name in fresh if "running" in name or "num_batches" in name]


# --- plan names ----------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["", "decoder", "lora", "lora-0", "lora--1", "lora-x", "NONE"])
def test_unknown_plan_lists_the_valid_ones(plan: str) -> None:
    with pytest.raises(ValueError, match=r"none, encoders, .*, norm-only, lora-<rank>"):
        check_plan(plan)


def test_rank_is_read_from_the_name() -> None:
    assert [lora_rank(plan) for plan in ("lora-8", "lora-16", "none")] == [8, 16, None]


@pytest.mark.parametrize("plan", ["encoders", "fusion+down", NORM_ONLY])
def test_plan_that_matches_nothing_is_an_error(plan: str) -> None:
    with pytest.raises(ConfigError, match=r"(matches no parameter|leaves nothing to train)"):
        apply_plan(nn.Linear(2, 2), plan, groups={}, norms=[])


def test_plan_that_leaves_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        apply_plan(nn.Linear(2, 2), "encoders", {"encoders": ["weight", "bias"]}, [])
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        apply_plan(nn.LayerNorm(2), "lora-4", {}, [])


# --- LoRA ----------------------------------------------------------------------------------


def outputs(model: MFdiffModel) -> torch.Tensor:
    """What the network answers to one made-up slice."""
    x_t, x_p, x_m = torch.randn(3, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        f = model.network.fuse(x_p, x_m)
        out: torch.Tensor = model.network(x_t, torch.tensor([7]), x_p, f)
    return out


def train_adapters(model: MFdiffModel) -> None:
    """Stand-in for training: every adapter gets an effect."""
    source = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(".lora_b"):
            nn.init.normal_(parameter, std=0.1, generator=source)


def test_adapters_start_without_effect(tiny_model: MFdiffModel) -> None:
    before = outputs(tiny_model)
    add_lora(tiny_model.network, 4)
    assert torch.equal(outputs(tiny_model), before)


def test_every_linear_and_convolution_weight_gets_an_adapter(tiny_model: MFdiffModel) -> None:
    layers = [m for m in tiny_model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    add_lora(tiny_model.network, 4)
    adapters = [n for n, _ in tiny_model.named_parameters() if n.endswith(".lora_a")]
    assert len(adapters) == len(layers) > 20


def test_adapter_is_of_the_rank_asked_where_the_layer_allows_it() -> None:
    network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(2, 16))
    add_lora(network, 4)
    shapes = [tuple(p.shape) for n, p in network.named_parameters() if "lora" in n]
    assert shapes == [(4, 72), (16, 4), (2, 2), (16, 2)]


def test_network_with_merged_weights_gives_the_same_outputs(
    tiny_model: MFdiffModel, make_model: MakeModel
) -> None:
    untrained = outputs(tiny_model)
    add_lora(tiny_model.network, 4)
    train_adapters(tiny_model)
    plain = make_model()
    plain.load_state_dict(merged_weights(tiny_model))
    adapted = outputs(tiny_model)
    torch.testing.assert_close(outputs(plain.eval()), adapted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapted, untrained, atol=1e-3)


def test_merging_where_nothing_was_adapted_changes_nothing(tiny_model: MFdiffModel) -> None:
    plain, merged = tiny_model.state_dict(), merged_weights(tiny_model)
    assert list(merged) == list(plain)
    assert all(torch.equal(value, plain[name]) for name, value in merged.items())


def test_adapters_start_alike_in_every_run_and_leave_the_global_stream_alone(
    make_model: MakeModel,
) -> None:
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, before = make_model(), torch.get_rng_state()
        add_lora(model.network, 4)
        assert torch.equal(torch.get_rng_state(), before)
        starts.append([p for n, p in model.named_parameters() if n.endswith(".lora_a")])
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))
