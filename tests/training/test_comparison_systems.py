"""Every comparison system goes through the loop that trains MFdiff."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfdiff_core.bundle import Provenance, load_bundle, save_bundle
from mfdiff_core.config import one_of, to_dict
from mfdiff_core.data.batches import Batch, BatchStream
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import ConfigError
from mfdiff_core.evaluation.validation import restore_slices
from mfdiff_core.model import AnyModelConfig, ComparisonModel, RestorationModel, build_model
from mfdiff_core.training.loop import Progress, Snapshot, TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.state import FACTS, TENSORS, TrainState
from mfdiff_core.training.strategies import Recipe, start, start_training
from tests.comparison.toy_systems import ADVERSARIAL, NAMES, TOY, thin_config

MakeDataset = Callable[..., Path]
OPTIM = OptimConfig(lr=1e-3, ema=0.9)
DROPPING: dict[str, dict[str, Any]] = {"ea-gan": {"dropout": 0.2}}


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, make_dataset: MakeDataset) -> Dataset:
    """The dataset with sinograms."""
    return open_dataset(make_dataset(tmp_path_factory.mktemp("measured"), sinograms=TOY))


@pytest.fixture(scope="session")
def batches(measured: Dataset) -> BatchStream:
    return BatchStream(measured.part("train"), 2, seed=0, augment="flip")


def fresh(name: str) -> ComparisonModel:
    config = thin_config(name, **DROPPING.get(name, {}))
    model = build_model(one_of(AnyModelConfig, to_dict(config)), seed=0)
    assert isinstance(model, ComparisonModel)
    return model


def run(state: TrainState, batches: Any, **settings: Any) -> list[float]:
    config = TrainConfig(log_every=1, optim=OPTIM, **settings)
    return [e.loss for e in train(state, batches, config) if isinstance(e, Progress)]


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    after = model.state_dict()
    return {name for name, old in before.items() if not torch.equal(old, after[name])}


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_resuming_a_system_equals_not_stopping_bit_for_bit(
    name: str, batches: BatchStream, tmp_path: Path
) -> None:
    straight = start_training(fresh(name), OPTIM)
    config = TrainConfig(iterations=3, snapshot_every=2, optim=OPTIM)
    for event in train(straight, batches, config):
        if event == Snapshot(2):
            straight.save(tmp_path / "at-2")
    straight.save(tmp_path / "straight")
    torch.manual_seed(99)
    resumed = start_training(fresh(name), OPTIM)
    resumed.load(tmp_path / "at-2")
    list(train(resumed, batches, config))
    resumed.save(tmp_path / "resumed")
    for file in (TENSORS, FACTS):
        a, b = (tmp_path / folder / file for folder in ("straight", "resumed"))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_system_restores_from_its_bundle_as_before(
    name: str, batches: BatchStream, measured: Dataset, tmp_path: Path
) -> None:
    state = start_training(fresh(name), OPTIM)
    run(state, batches, iterations=1)
    provenance = Provenance(
        domain="toy", strategy="pretrain", iterations=1, seed=0, data="none", voxel_mm=2.0
    )
    bundle = save_bundle(tmp_path / "b", state.model.config, state.weights(), provenance)
    assert load_bundle(bundle.folder).config == state.model.config
    part = measured.part("test")
    with state.averaged() as model:
        expected = restore_slices(model, part).x_s
    torch.testing.assert_close(restore_slices(bundle.model(), part).x_s, expected)


@pytest.mark.parametrize("name", NAMES)
def test_norm_only_leaves_everything_else_of_a_system_alone(
    name: str, batches: BatchStream
) -> None:
    model = fresh(name)
    before = copied(model)
    state = start(model, Recipe(freeze="norm-only", lr=1e-3), before)
    run(state, batches, iterations=2)
    norms = {f"network.{n}" for n in model.network.norm_parameters()}
    moved = {n for n in changed(before, model) if n in dict(model.named_parameters())}
    assert moved
    assert moved <= norms


@pytest.mark.parametrize("name", ["munet", "hi-net", "ea-gan"])
def test_frozen_batch_norms_keep_their_statistics_until_they_are_released(
    name: str, batches: BatchStream
) -> None:
    model = fresh(name)
    before = copied(model)
    state = start(model, Recipe(freeze="lora-2", lr=1e-3), before)
    assert [m for m in model.modules() if isinstance(m, _BatchNorm)]
    run(state, batches, iterations=2)
    statistics = {n for n in before if "running" in n or "num_batches" in n}
    assert statistics
    assert not changed({n: before[n] for n in statistics}, model)
    state.unfreeze()
    run(state, batches, iterations=3)
    assert changed({n: before[n] for n in statistics}, model) == statistics


@pytest.mark.parametrize("name", ["m-unet", "munet", "ea-gan"])
def test_a_batch_that_is_not_finite_changes_nothing(name: str, batches: BatchStream) -> None:
    """Neither weights nor the running statistics, which one NaN would spoil for ever."""
    model = fresh(name)
    before = copied(model)

    def spoilt(step: int) -> Batch:
        batch = batches(step)
        return batch._replace(x_p=torch.full_like(batch.x_p, torch.nan))

    state = start_training(model, OPTIM)
    run(state, spoilt, iterations=1)
    assert not changed(before, model)


def test_adversary_is_clipped_apart_from_its_opponent(batches: BatchStream) -> None:
    """So that a steep discriminator does not shrink the generator's steps."""
    for name in ADVERSARIAL:
        model = fresh(name)
        judge = model.adversary
        assert judge == set(model.network.discriminator.parameters())  # type: ignore[union-attr]
        run(start_training(model, OPTIM), batches, iterations=1)
        norms = [
            torch.stack([p.grad.norm() for p in part if p.grad is not None]).norm()
            for part in (judge, set(model.parameters()) - judge)
        ]
        assert max(norms) <= 1 + 1e-5, name


def test_averaged_weights_come_with_averaged_statistics(batches: BatchStream) -> None:
    state = start_training(fresh("munet"), OPTIM)
    run(state, batches, iterations=3)
    now, averaged = state.model.state_dict(), state.weights()
    means = [n for n in now if n.endswith("running_mean")]
    assert means
    assert not any(torch.equal(now[n], averaged[n]) for n in means)


def test_published_momenta_reach_the_optimiser() -> None:
    assert start_training(fresh("hi-net"), OPTIM).optimizer.defaults["betas"] == (0.5, 0.999)
    assert start_training(fresh("unet"), OPTIM).optimizer.defaults["betas"] == (0.9, 0.999)


def test_layer_decay_knows_every_group_of_every_system() -> None:
    for name in NAMES:
        model: RestorationModel = fresh(name)
        scales = start_training(model, OptimConfig(layer_decay=0.5)).lr_scales
        assert scales.keys() == dict(model.named_parameters()).keys()


def test_a_system_refuses_a_sampler(dataset: Dataset) -> None:
    part = dataset.part("test")
    with pytest.raises(ConfigError, match="m-unet has no sampler"):
        fresh("m-unet").restore(part.x_p[:1], part.x_m[:1], ["a"], sampler=SamplerConfig())
