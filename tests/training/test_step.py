from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mfdiff_core.data.batches import BatchStream
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import TrainingError
from mfdiff_core.model import Layout, MFdiffModel
from mfdiff_core.training.loop import Progress, TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Share
from mfdiff_core.training.strategies import Recipe, start, start_training

MakeModel = Callable[[], MFdiffModel]
PLAIN = OptimConfig(lr=1e-3, max_grad_norm=1e9, ema=0.0)


@pytest.fixture
def batches(dataset: Dataset) -> BatchStream:
    return BatchStream(dataset.part("train"), batch_size=4, seed=0, augment="flip")


def trained(
    model: MFdiffModel, batches: BatchStream, **settings: Any
) -> tuple[list[float], TrainState]:
    """Losses of three steps, and the state after them."""
    state = start_training(model, PLAIN)
    config = TrainConfig(iterations=3, optim=PLAIN, log_every=1, **settings)
    events = list(train(state, batches, config))
    return [event.loss for event in events if isinstance(event, Progress)], state


def gradients(state: TrainState) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in state.model.named_parameters() if p.grad is not None}


# --- micro-batches -------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 3, 4, 9])
def test_micro_batches_give_the_step_of_the_whole_batch(
    make_model: MakeModel, batches: BatchStream, accumulate: int
) -> None:
    """Uneven ones too: each is weighted by its rows."""
    whole, one = trained(make_model(), batches)
    parts, other = trained(make_model(), batches, accumulate=accumulate)
    assert parts == pytest.approx(whole, rel=1e-4)
    theirs = gradients(other)
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-2, atol=2e-4)


class Cramped(nn.Module):
    """A model on a device that holds so many slices at a time."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room = model, room
        self.seen: list[int] = []

    def forward(self, x_p: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.seen.append(len(x_p))
        if len(x_p) > self.room:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        loss: torch.Tensor = self.model(x_p, *rest)
        return loss


def test_step_that_does_not_fit_is_done_again_in_halves_and_is_the_same_step(
    make_model: MakeModel, batches: BatchStream
) -> None:
    whole, _ = trained(make_model(), batches)
    state = start_training(make_model(), PLAIN)
    cramped = Cramped(state.model, room=2)
    config = TrainConfig(iterations=3, optim=PLAIN, log_every=1)
    events = train(state, batches, config, wrap=lambda _: cramped)
    losses = [event.loss for event in events if isinstance(event, Progress)]
    assert losses == pytest.approx(whole, rel=1e-4)
    assert cramped.seen == [4] + 3 * [2, 2]  # it fails once and is remembered


@pytest.mark.parametrize(
    ("room", "accumulate", "share", "sentence"),
    [
        (1, 1, Share(), r"2 slice\(s\) at a time; try --set train.accumulate=4, train.precision"),
        (0, 4, Share(), r"1 slice\(s\) at a time; try --set train.precision=bf16"),
        (2, 1, Share(0, 1), ""),
    ],
)
def test_memory_that_never_suffices_ends_with_what_would(
    make_model: MakeModel,
    batches: BatchStream,
    room: int,
    accumulate: int,
    share: Share,
    sentence: str,
) -> None:
    state = start_training(make_model(), PLAIN)
    config = TrainConfig(iterations=1, optim=PLAIN, accumulate=accumulate)
    run = train(state, batches, config, wrap=lambda _: Cramped(state.model, room), share=share)
    if not sentence:
        assert list(run)
        return
    with pytest.raises(TrainingError, match=f"^out of memory on cpu with {sentence}"):
        list(run)


def test_other_faults_are_not_taken_for_lack_of_memory(
    make_model: MakeModel, batches: BatchStream
) -> None:
    state = start_training(make_model(), PLAIN)
    state.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("cable")))
    with pytest.raises(RuntimeError, match="cable"):
        list(train(state, batches, TrainConfig(iterations=1)))


# --- memory layout, checkpointing, compilation ---------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "mixed"])
def test_memory_layout_changes_nothing_but_rounding(
    make_model: MakeModel, batches: BatchStream, layout: Layout
) -> None:
    expected, _ = trained(make_model(), batches)
    model = make_model()
    model.set_layout(layout)
    losses, _ = trained(model, batches)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert model.network.unet.conv_in.weight.is_contiguous()


def test_compiled_training_is_the_same_training(
    make_model: MakeModel, batches: BatchStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole, without a break; code generation itself takes minutes on a CPU."""
    compiled: list[dict[str, Any]] = []
    original = torch.compile

    def traced(module: nn.Module, **options: Any) -> Any:
        compiled.append(options)
        return original(module, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    expected, _ = trained(make_model(), batches)
    losses, _ = trained(make_model(), batches, compile="reduce-overhead")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert compiled == [{"mode": "reduce-overhead"}]


# --- unfreezing in steps -------------------------------------------------------------------


def test_stepwise_unfreezing_releases_one_stage_after_the_other_from_the_output_inwards(
    make_model: MakeModel, batches: BatchStream
) -> None:
    recipe = Recipe(
        freeze="fusion+down", unfreeze_at=0.25, unfreeze_stepwise=True, iterations=16, batch_size=4
    )
    state = start(make_model(), recipe, make_model().state_dict())
    config = TrainConfig(
        iterations=16,
        log_every=1,
        unfreeze_after=recipe.unfreeze_after,
        unfreeze_stepwise=recipe.unfreeze_stepwise,
    )
    first_trained: dict[str, int] = {}
    for event in train(state, batches, config):
        for name, parameter in state.model.named_parameters():
            if parameter.requires_grad:
                first_trained.setdefault(name, event.step)
    steps = [
        {first_trained[name] for name in state.model.state_dict() if name.startswith(prefix)}
        for prefix in (
            "network.unet.up.", "network.unet.down.", "network.unet.conv_in.",
            "network.fusion.decoder.", "network.fusion.global_fuse.", "network.fusion.global_p.",
            "network.fusion.encoder_p.",
        )
    ]  # fmt: skip
    assert steps == [{1}, {5}, {7}, {9}, {11}, {13}, {15}]


def test_model_is_wrapped_anew_whenever_more_of_it_is_trained(
    make_model: MakeModel, batches: BatchStream
) -> None:
    state = start(make_model(), Recipe(freeze="fusion"), make_model().state_dict())
    trained: list[int] = []

    def wrap(model: nn.Module) -> nn.Module:
        trained.append(sum(parameter.requires_grad for parameter in model.parameters()))
        return model

    list(train(state, batches, TrainConfig(iterations=4, unfreeze_after=2), wrap=wrap))
    frozen_first, all_of_it = trained
    assert frozen_first < all_of_it == len(list(state.model.parameters()))
