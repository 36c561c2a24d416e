from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mfdiff_core.config import override
from mfdiff_core.data.batches import Batch, BatchStream
from mfdiff_core.data.dataset import Dataset, SliceSet
from mfdiff_core.errors import TrainingError
from mfdiff_core.evaluation.validation import evaluate_model
from mfdiff_core.model import MFdiffModel, ModelConfig, RestorationModel, build_model
from mfdiff_core.training.loop import Progress, Snapshot, TrainConfig, Validated, train
from mfdiff_core.training.optim import OptimConfig, lr_factor
from mfdiff_core.training.state import FACTS, TENSORS, TrainState
from mfdiff_core.training.step import WHOLE, Share
from mfdiff_core.training.strategies import Recipe, start, start_training, starting_weights

MakeModel = Callable[[], MFdiffModel]
Batches = Callable[[int], Batch]
UNCLIPPED = OptimConfig(lr=1e-3, max_grad_norm=1e9)


@pytest.fixture
def slices(dataset: Dataset) -> SliceSet:
    return dataset.part("train")


@pytest.fixture
def batches(slices: SliceSet) -> BatchStream:
    return BatchStream(slices, batch_size=2, seed=0, augment="flip")


@pytest.fixture
def state(make_model: MakeModel) -> TrainState:
    return start_training(make_model(), OptimConfig(ema=0.9))


def run(state: TrainState, batches: Batches, config: TrainConfig, **extra: Any) -> list[Any]:
    return list(train(state, batches, config, **extra))


def damaged(batches: Batches, *bad: int) -> Batches:
    """The same batches with a NaN pixel at steps ``bad``."""

    def drawn(step: int) -> Batch:
        x_p, x_m, x_s = (images.clone() for images in batches(step).images)
        batch = Batch(x_p, x_m, x_s)
        if step in bad:
            batch.x_s[0, 0, 5, 5] = math.nan
        return batch

    return drawn


def weights_of(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- resuming ------------------------------------------------------------------------------


def test_resuming_after_11_of_20_steps_equals_20_uninterrupted_steps_bit_for_bit(
    tiny_config: ModelConfig, batches: BatchStream, dataset: Dataset, tmp_path: Path
) -> None:
    """Weights, averages, moments and best weights; with dropout, and validation in between."""
    config = TrainConfig(iterations=20, validate_every=5, snapshot_every=11)
    optim = OptimConfig(lr=1e-3, warmup=3, schedule="cosine", ema=0.9)
    held_out = dataset.part("validation", "ld")

    def fresh() -> TrainState:
        dropping = override(tiny_config, {"network.unet.dropout": 0.2})
        return start_training(build_model(dropping, seed=0), optim)

    def validate(model: RestorationModel) -> dict[str, float]:
        torch.rand(7)  # whoever draws from the global stream must not disturb the training
        return {"psnr": evaluate_model(model, held_out).mean().psnr}

    straight = fresh()
    for event in train(straight, batches, config, validate=validate):
        if event == Snapshot(11):
            straight.save(tmp_path / "at-11")
    straight.save(tmp_path / "straight")
    torch.manual_seed(123)
    resumed = fresh()
    resumed.load(tmp_path / "at-11")
    run(resumed, batches, config, validate=validate)
    resumed.save(tmp_path / "resumed")
    for name in (TENSORS, FACTS):
        files = [tmp_path / run_name / name for run_name in ("straight", "resumed")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_around_the_unfreezing_equals_not_stopping(
    make_model: MakeModel, batches: BatchStream, tmp_path: Path, stop: int
) -> None:
    recipe = Recipe(freeze="fusion+down", unfreeze_at=0.5, iterations=4, layer_decay=0.8, lr=1e-3)
    config = TrainConfig(iterations=4, snapshot_every=1, unfreeze_after=recipe.unfreeze_after)

    def fresh() -> TrainState:
        return start(make_model(), recipe, make_model().state_dict())

    straight, resumed = fresh(), fresh()
    for event in train(straight, batches, config):
        if event == Snapshot(stop):
            straight.save(tmp_path)
    resumed.load(tmp_path)
    run(resumed, batches, config)
    assert same(weights_of(straight), weights_of(resumed))
    assert same(straight.weights(), resumed.weights())


def test_finished_training_does_nothing_when_run_again(
    state: TrainState, batches: BatchStream
) -> None:
    config = TrainConfig(iterations=1)
    run(state, batches, config)
    before = weights_of(state)
    assert run(state, batches, config) == []
    assert same(weights_of(state), before)


def test_training_is_a_function_of_its_seed(make_model: MakeModel, batches: BatchStream) -> None:
    states = [start_training(make_model(), OptimConfig(lr=1e-3)) for _ in range(3)]
    for state, seed in zip(states, (0, 0, 1), strict=True):
        torch.manual_seed(len(weights_of(state)))
        run(state, batches, TrainConfig(iterations=2, seed=seed))
    assert same(weights_of(states[0]), weights_of(states[1]))
    assert not same(weights_of(states[0]), weights_of(states[2]))


# --- sharing -------------------------------------------------------------------------------


class Lonely(Share):
    """A worker's share without the other workers: means stay local."""

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return values


def first_step(
    make_model: MakeModel, batches: Batches, share: Share
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of the first step, and its gradients by parameter name."""
    state = start_training(make_model(), UNCLIPPED)
    config = TrainConfig(iterations=1, optim=UNCLIPPED)
    (progress, _) = run(state, batches, config, share=share)
    gradients = {n: p.grad for n, p in state.model.named_parameters() if p.grad is not None}
    return progress.loss, gradients


@pytest.fixture
def four(slices: SliceSet) -> BatchStream:
    """Batches of four, flipped at random."""
    return BatchStream(slices, batch_size=4, seed=0, augment="flip")


@pytest.mark.parametrize("world_size", [2, 4])
def test_loss_of_a_step_does_not_depend_on_how_many_workers_share_it(
    make_model: MakeModel, four: BatchStream, world_size: int
) -> None:
    whole, _ = first_step(make_model, four, WHOLE)
    parts = [first_step(make_model, four, Lonely(r, world_size))[0] for r in range(world_size)]
    assert sum(parts) / world_size == pytest.approx(whole, rel=1e-5)
    assert len(set(parts)) == world_size


def test_mean_gradient_of_two_workers_is_that_of_one(
    make_model: MakeModel, four: BatchStream
) -> None:
    _, whole = first_step(make_model, four, WHOLE)
    (_, one), (_, two) = (first_step(make_model, four, Lonely(rank, 2)) for rank in (0, 1))
    assert len(whole) > 50
    for name, gradient in whole.items():
        torch.testing.assert_close((one[name] + two[name]) / 2, gradient, rtol=1e-3, atol=1e-5)


def test_shares_partition_a_batch() -> None:
    keys = tuple("abcdef")
    x_p, x_m, x_s = (torch.arange(6.0) + ten for ten in (0, 10, 20))
    parts = [Share(rank, 3).of(Batch(x_p, x_m, x_s, keys)) for rank in range(3)]
    for place, image in enumerate((x_p, x_m, x_s)):
        assert torch.equal(torch.cat([part.images[place] for part in parts]), image)
    assert sum((part.keys for part in parts), ()) == keys


def test_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(TrainingError, match="a batch of 4 cannot be shared by 3 workers"):
        Share(0, 3).of(Batch(torch.zeros(4), torch.zeros(4), torch.zeros(4)))


# --- learning ------------------------------------------------------------------------------


def test_loss_falls_on_a_batch_that_is_shown_again_and_again(
    tiny_config: ModelConfig, batches: BatchStream
) -> None:
    state = start_training(build_model(tiny_config, 0), OptimConfig())
    config = TrainConfig(iterations=24, optim=OptimConfig(lr=1e-2), log_every=6)
    losses = [e.loss for e in run(state, lambda _: batches(0), config) if isinstance(e, Progress)]
    assert losses[-1] < 0.5 * losses[0]


def test_each_step_draws_noise_of_its_own(state: TrainState, batches: BatchStream) -> None:
    still = TrainConfig(iterations=3, log_every=1, optim=OptimConfig(lr=1e-30, weight_decay=0))
    events = run(state, lambda _: batches(0), still)
    losses = {event.loss for event in events if isinstance(event, Progress)}
    assert len(losses) == 3


def test_bfloat16_keeps_weights_in_float32_and_the_loss_close(
    make_model: MakeModel, batches: BatchStream
) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        state = start_training(make_model(), OptimConfig())
        losses.append(run(state, batches, TrainConfig(iterations=1, precision=precision))[0].loss)
        assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_gradient_is_clipped_to_the_norm_allowed(
    make_model: MakeModel, batches: BatchStream
) -> None:
    optim = OptimConfig(lr=1e-9, max_grad_norm=1e-3)
    state = start_training(make_model(), optim)
    (progress, _) = run(state, batches, TrainConfig(iterations=1, optim=optim))
    left = torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None])
    assert progress.grad_norm > 1e-3
    assert float(left.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_pull_to_the_anchors_is_strength_times_distance(
    make_model: MakeModel, batches: BatchStream
) -> None:
    """The gradient of strength / 2 * |w - w_0|^2 on top of the loss's own."""
    gradients, anchors = (
        [],
        {n: torch.full_like(p, 0.5) for n, p in make_model().named_parameters()},
    )
    for strength in (0.0, 3.0):
        optim = OptimConfig(lr=1e-9, max_grad_norm=1e9, l2sp=strength, weight_decay=0)
        state = start_training(make_model(), optim)
        run(state, batches, TrainConfig(iterations=1, optim=optim), anchors=anchors)
        gradients.append({n: p.grad for n, p in state.model.named_parameters()})
    for name, parameter in make_model().named_parameters():
        plain, pulled = gradients[0][name], gradients[1][name]
        assert plain is not None
        assert pulled is not None
        expected = plain + 3.0 * (parameter.detach() - 0.5)
        torch.testing.assert_close(pulled, expected, rtol=1e-4, atol=1e-5)


def test_frozen_weights_are_not_pulled(make_model: MakeModel, batches: BatchStream) -> None:
    anchors = {n: torch.zeros_like(p) for n, p in make_model().named_parameters()}
    model = make_model()
    state = start(model, Recipe(freeze="fusion", l2sp=1.0), make_model().state_dict())
    config = TrainConfig(iterations=1, optim=OptimConfig(l2sp=1.0))
    run(state, batches, config, anchors=anchors)
    assert not [p for p in model.network.fusion.parameters() if p.grad is not None]


def test_adapters_are_pulled_back_to_no_effect(make_model: MakeModel, batches: BatchStream) -> None:
    """L2-SP on LoRA: A towards what it was drawn as, B towards zero, the frozen weights not."""
    gradients = []
    for strength in (0.0, 3.0):
        optim = OptimConfig(lr=1e-9, max_grad_norm=1e9, l2sp=strength, weight_decay=0)
        state = start(make_model(), Recipe(freeze="lora-2"), make_model().state_dict())
        anchors = starting_weights(state)
        for name, parameter in state.model.named_parameters():
            if name.endswith(".lora_b"):
                torch.nn.init.constant_(parameter, 0.01)
        run(state, batches, TrainConfig(iterations=1, optim=optim), anchors=anchors)
        gradients.append({n: p.grad for n, p in state.model.named_parameters()})
    plain, pulled = gradients
    for name, gradient in plain.items():
        other = pulled[name]
        if gradient is None:
            assert other is None
            assert not name.endswith((".lora_a", ".lora_b"))
            continue
        assert other is not None
        pull = 3.0 * 0.01 if name.endswith(".lora_b") else 0.0
        torch.testing.assert_close(other, gradient + pull, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("unfreeze_after", "changed"), [(None, False), (2, True), (0, True)])
def test_freeze_plan_holds_until_it_is_lifted(
    make_model: MakeModel, batches: BatchStream, unfreeze_after: int | None, changed: bool
) -> None:
    state = start(make_model(), Recipe(freeze="fusion"), make_model().state_dict())
    before = weights_of(state)
    early, config = [], TrainConfig(iterations=3, log_every=1, unfreeze_after=unfreeze_after)
    for event in train(state, batches, config):
        if isinstance(event, Progress) and event.step == 2:
            early = [
                n for n, v in state.model.state_dict().items() if not torch.equal(v, before[n])
            ]
    late = [n for n, v in state.model.state_dict().items() if not torch.equal(v, before[n])]
    assert any(n.startswith("network.fusion.") for n in early) == (unfreeze_after == 0)
    assert any(n.startswith("network.fusion.") for n in late) == changed


# --- steps that cannot be used -------------------------------------------------------------


def test_step_that_is_not_finite_changes_neither_weights_nor_moments(
    state: TrainState, batches: BatchStream, tmp_path: Path
) -> None:
    run(state, batches, TrainConfig(iterations=1))
    before, moments = weights_of(state), state.optimizer.state_dict()["state"]
    kept = {(i, key): value.clone() for i, row in moments.items() for key, value in row.items()}
    run(state, damaged(batches, 1, 2), TrainConfig(iterations=3))
    assert same(weights_of(state), before)
    after = state.optimizer.state_dict()["state"]
    assert kept
    assert all(torch.equal(after[i][key], value) for (i, key), value in kept.items())


def test_training_goes_on_after_a_skipped_step(state: TrainState, batches: BatchStream) -> None:
    before = weights_of(state)
    events = run(state, damaged(batches, 0), TrainConfig(iterations=3))
    assert not same(weights_of(state), before)
    assert all(bool(torch.isfinite(value).all()) for value in weights_of(state).values())
    assert math.isfinite(events[0].loss)  # the mean of the usable steps


@pytest.mark.parametrize("log_every", [1, 4])
def test_too_many_skipped_steps_stop_the_run_and_name_the_last(
    state: TrainState, batches: BatchStream, log_every: int
) -> None:
    config = TrainConfig(iterations=8, log_every=log_every, max_skipped=1)
    with pytest.raises(
        TrainingError, match=r"^step 3: loss nan, gradient norm nan; 2 step\(s\) were not finite"
    ):
        run(state, damaged(batches, 1, 2), config)


@pytest.mark.parametrize(
    ("snapshot_every", "kept"),
    [(0, "does not exist yet"), (2, "is of step 4"), (5, "is of step 5")],
)
def test_the_last_good_checkpoint_is_named(
    state: TrainState, batches: BatchStream, snapshot_every: int, kept: str
) -> None:
    config = TrainConfig(iterations=8, log_every=1, max_skipped=0, snapshot_every=snapshot_every)
    with pytest.raises(TrainingError, match=f"^step 6: loss nan.*the last good checkpoint {kept};"):
        run(state, damaged(batches, 5), config)


def test_a_resumed_run_names_the_checkpoint_it_came_from(
    make_model: MakeModel, batches: BatchStream, tmp_path: Path
) -> None:
    state, resumed = (start_training(make_model(), OptimConfig()) for _ in range(2))
    run(state, batches, TrainConfig(iterations=2))
    state.save(tmp_path)
    resumed.load(tmp_path)
    config = TrainConfig(iterations=4, log_every=1, max_skipped=0)
    with pytest.raises(TrainingError, match="the last good checkpoint is of step 2;"):
        run(resumed, damaged(batches, 3), config)


def test_overflow_in_the_backward_pass_counts_as_skipped(
    state: TrainState, batches: BatchStream
) -> None:
    first = next(state.model.parameters())
    first.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    before = weights_of(state)
    with pytest.raises(TrainingError, match="step 1"):
        run(state, batches, TrainConfig(iterations=2, log_every=1, max_skipped=0))
    assert same(weights_of(state), before)


# --- events --------------------------------------------------------------------------------


def steps_of(events: list[Any], kind: type[Any]) -> list[int]:
    return [event.step for event in events if isinstance(event, kind)]


def test_events_come_at_their_intervals_and_at_the_end(
    state: TrainState, batches: BatchStream
) -> None:
    config = TrainConfig(iterations=7, log_every=4, validate_every=2, snapshot_every=3)
    events = run(state, batches, config, validate=lambda _: {"psnr": 1.0})
    assert steps_of(events, Progress) == [4, 7]
    assert steps_of(events, Validated) == [2, 4, 6, 7]
    assert steps_of(events, Snapshot) == [3, 6, 7]


def test_interval_of_zero_means_only_at_the_end(state: TrainState, batches: BatchStream) -> None:
    events = run(state, batches, TrainConfig(iterations=2), validate=lambda _: {"psnr": 1.0})
    assert steps_of(events, Validated) == steps_of(events, Snapshot) == [2]


def test_validation_is_in_the_snapshot_of_its_step(state: TrainState, batches: BatchStream) -> None:
    events = run(state, batches, TrainConfig(iterations=1), validate=lambda _: {"psnr": 1.0})
    assert [type(event) for event in events] == [Progress, Validated, Snapshot]


def test_progress_reports_the_mean_loss_since_the_last(
    make_model: MakeModel, batches: BatchStream
) -> None:
    single, triple = (
        [e for e in run(start_training(make_model(), OptimConfig()), batches, config)
         if isinstance(e, Progress)]
        for config in (TrainConfig(iterations=6, log_every=n) for n in (1, 3))
    )  # fmt: skip
    losses = [event.loss for event in single]
    means = [sum(losses[:3]) / 3, sum(losses[3:]) / 3]
    assert [event.loss for event in triple] == pytest.approx(means)


def test_progress_reports_the_rate_that_was_used(state: TrainState, batches: BatchStream) -> None:
    optim = OptimConfig(lr=1e-3, warmup=2, schedule="linear")
    events = run(state, batches, TrainConfig(iterations=4, log_every=1, optim=optim))
    rates = [event.lr for event in events if isinstance(event, Progress)]
    assert rates == pytest.approx([1e-3 * lr_factor(optim, step, 4) for step in range(4)])


def test_best_weights_are_those_of_the_best_validation(
    state: TrainState, batches: BatchStream
) -> None:
    values = iter([1.0, 3.0, 2.0])
    judged: list[dict[str, torch.Tensor]] = []

    def validate(model: RestorationModel) -> dict[str, float]:
        judged.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"psnr": 0.0, "ssim": next(values)}

    config = TrainConfig(iterations=3, validate_every=1)
    events = run(state, batches, config, validate=validate, metric="ssim")
    assert [e.is_best for e in events if isinstance(e, Validated)] == [True, True, False]
    assert same(state.best_weights, judged[1])


@pytest.mark.parametrize(
    "fields",
    [{"iterations": -1}, {"log_every": 0}, {"validate_every": -1}, {"snapshot_every": -1},
     {"max_skipped": -1}],
)  # fmt: skip
def test_impossible_interval_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        TrainConfig(**fields)  # type: ignore[arg-type]
