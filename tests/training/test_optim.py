from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from mfdiff_core.training.optim import (
    FINAL_LR_SHARE,
    OptimConfig,
    WeightAverage,
    averaged_tensors,
    build_optimizer,
    lr_factor,
    lr_groups,
    set_lr,
)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Parameter(torch.ones(3))
        self.far = nn.Parameter(torch.ones(2))


def factors(iterations: int = 100, **fields: Any) -> list[float]:
    config = OptimConfig(**fields)
    return [lr_factor(config, step, iterations) for step in range(iterations)]


# --- learning rate -------------------------------------------------------------------------


def test_constant_schedule_stays_at_the_peak() -> None:
    assert set(factors(schedule="constant")) == {1.0}


def test_warm_up_rises_linearly_to_the_peak() -> None:
    assert factors(warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_schedule_falls_on_a_line_to_its_final_share() -> None:
    line = [1 - (1 - FINAL_LR_SHARE) * step / 100 for step in range(100)]
    assert factors(schedule="linear") == pytest.approx(line)


def test_cosine_schedule_is_half_a_cosine_from_peak_to_final_share() -> None:
    amplitude, middle = (1 - FINAL_LR_SHARE) / 2, (1 + FINAL_LR_SHARE) / 2
    curve = [middle + amplitude * math.cos(math.pi * step / 100) for step in range(100)]
    assert factors(schedule="cosine") == pytest.approx(curve)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_falling_schedule_starts_after_the_warm_up(schedule: str) -> None:
    values = factors(60, schedule=schedule, warmup=10)
    assert values[9] == values[10] == 1.0
    assert values[10:] == pytest.approx(factors(50, schedule=schedule))


def test_warm_up_longer_than_the_training_is_just_cut_off() -> None:
    assert factors(3, warmup=10, schedule="cosine") == pytest.approx([0.1, 0.2, 0.3])


# --- optimiser -----------------------------------------------------------------------------


def test_parameters_share_a_group_by_their_scale_the_highest_first() -> None:
    model = TwoLayers()
    named = list(model.named_parameters())
    groups = lr_groups(named, 0.1, {"near": 0.5})
    assert [group["lr_scale"] for group in groups] == [1.0, 0.5]
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(model.far)],
        [id(model.near)],
    ]


def test_learning_rate_of_each_group_is_scaled() -> None:
    optimizer = build_optimizer(TwoLayers(), OptimConfig(), {"far": 0.25})
    set_lr(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.025]


def test_scale_slows_a_parameter_in_proportion() -> None:
    model = TwoLayers()
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, weight_decay=0), {"far": 0.25})
    set_lr(optimizer, 0.01)
    model.near.grad, model.far.grad = torch.ones(3), torch.ones(2)
    optimizer.step()
    # The first step of Adam is the learning rate times the sign of the gradient.
    assert (1 - model.near).tolist() == pytest.approx([0.01] * 3, rel=1e-4)
    assert (1 - model.far).tolist() == pytest.approx([0.0025] * 2, rel=1e-4)


def test_frozen_parameters_are_unknown_to_the_optimiser() -> None:
    model = TwoLayers()
    model.far.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(), {})
    assert [p for group in optimizer.param_groups for p in group["params"]] == [model.near]


def test_weight_decay_alone_shrinks_weights_by_its_product_with_the_rate() -> None:
    model = TwoLayers()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5), {})
    model.near.grad = torch.zeros(3)
    optimizer.step()
    assert model.near.tolist() == pytest.approx([0.95] * 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0), ("lr", 1.0), ("lr", math.nan), ("warmup", -1), ("weight_decay", -0.1),
        ("l2sp", -1.0), ("max_grad_norm", 0.0), ("ema", 1.0), ("ema", -0.1),
        ("layer_decay", 0.0), ("layer_decay", 1.1),
    ],
)  # fmt: skip
def test_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"self\.{name}="):
        OptimConfig(**{name: value})  # type: ignore[arg-type]


# --- averaged weights ----------------------------------------------------------------------


def distance_left(decay: float, num_updates: int) -> float:
    """Distance of the average from 1, where the weights are, after starting at 0."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = WeightAverage({"w": weight}, decay)
    current = {"w": nn.Parameter(torch.ones(1, dtype=torch.float64))}
    for step in range(num_updates):
        average.update(current, step)
    return 1 - float(average.averages["w"])


@pytest.mark.parametrize("num_updates", [1, 2, 20])
def test_young_average_follows_the_warm_up_law(num_updates: int) -> None:
    # Product of (1 + n) / (10 + n) for n = 0 ... N - 1.
    product = math.factorial(num_updates) * math.factorial(9) / math.factorial(num_updates + 9)
    assert distance_left(0.9999, num_updates) == pytest.approx(product)


def test_old_average_forgets_at_its_decay() -> None:
    # (1 + n) / (10 + n) exceeds 1/2 from n = 9 on.
    assert distance_left(0.5, 20) / distance_left(0.5, 15) == pytest.approx(0.5**5)


def test_average_leaves_the_weights_alone_and_skips_frozen_ones() -> None:
    model = TwoLayers()
    model.far.requires_grad_(False)
    average = WeightAverage(averaged_tensors(model), 0.9)
    model.near.data.fill_(5.0)
    average.update(dict(model.named_parameters()), 0)
    assert model.near.tolist() == [5.0] * 3
    assert average.averages.keys() == {"near"}
