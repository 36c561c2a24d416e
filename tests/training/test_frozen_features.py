from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mfdiff_core.data.batches import Augmentation, BatchStream
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.model import MFdiffModel
from mfdiff_core.training import frozen_features
from mfdiff_core.training.frozen_features import FrozenFeatures
from mfdiff_core.training.loop import Progress, TrainConfig, train
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe, start

MakeModel = Callable[[], MFdiffModel]


class Counted:
    """How often the fusion ran."""

    def __init__(self, model: MFdiffModel) -> None:
        self.images = 0
        model.network.fusion.register_forward_hook(self._count)

    def _count(self, _: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        self.images += len(inputs[0])


def fine_tuned(
    make_model: MakeModel, dataset: Dataset, *, cache: bool, **settings: Any
) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Losses, final weights, and how many images the fusion saw."""
    iterations = settings.pop("iterations", 12)
    freeze = settings.pop("freeze", "fusion")
    recipe = Recipe(freeze=freeze, unfreeze_at=0.75, iterations=iterations)
    augment: Augmentation = settings.pop("augment", "flip")
    after = recipe.unfreeze_after if settings.pop("thaw", False) else None
    model = make_model()
    state = start(model, recipe, make_model().state_dict())
    counted = Counted(model)
    stream = BatchStream(
        dataset.part("train"), 2, 0, augment, replayed=dataset.part("validation"), replay_share=0.3
    )
    config = TrainConfig(
        iterations=iterations, log_every=1, keep_features=cache, unfreeze_after=after, **settings
    )
    events = train(state, stream, config)
    losses = [event.loss for event in events if isinstance(event, Progress)]
    return losses, state.model.state_dict(), counted.images


@pytest.mark.parametrize("augment", ["none", "flip"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_and_weights_are_identical_with_and_without_the_cache(
    make_model: MakeModel,
    dataset: Dataset,
    augment: Augmentation,
    precision: Precision,
    accumulate: int,
) -> None:
    settings = {"augment": augment, "precision": precision, "accumulate": accumulate}
    with_cache = fine_tuned(make_model, dataset, cache=True, **settings)
    without = fine_tuned(make_model, dataset, cache=False, **settings)
    assert with_cache[0] == without[0]
    assert all(torch.equal(with_cache[1][name], value) for name, value in without[1].items())
    assert with_cache[2] < without[2] == 24


def test_fusion_sees_each_image_once_whatever_the_epochs(
    make_model: MakeModel, dataset: Dataset
) -> None:
    slices = dataset.part("train")
    model = make_model()
    state = start(model, Recipe(freeze="fusion"), make_model().state_dict())
    counted = Counted(model)
    list(train(state, BatchStream(slices, 2, 0), TrainConfig(iterations=3 * len(slices))))
    assert counted.images == len(slices)


@pytest.mark.parametrize("settings", [{"augment": "affine"}, {"freeze": "encoders"}])
def test_features_that_change_are_never_kept(
    make_model: MakeModel, dataset: Dataset, settings: dict[str, Any]
) -> None:
    assert fine_tuned(make_model, dataset, cache=True, **dict(settings))[2] == 24


def test_cache_ends_with_the_freezing(make_model: MakeModel, dataset: Dataset) -> None:
    settings: dict[str, Any] = {"iterations": 24, "thaw": True, "augment": "none"}
    with_cache = fine_tuned(make_model, dataset, cache=True, **settings)
    without = fine_tuned(make_model, dataset, cache=False, **settings)
    assert with_cache[0] == without[0]
    assert with_cache[2] < without[2]


def test_images_beyond_the_room_are_computed_each_time(
    make_model: MakeModel, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    model.network.fusion.requires_grad_(False)
    counted = Counted(model)
    batch = BatchStream(dataset.part("train"), 4, 0)(0)
    one = model.fuse(batch.x_p[:1], batch.x_m[:1]).nbytes
    room = 2.5 * one / frozen_features.MEMORY_SHARE
    monkeypatch.setattr(frozen_features, "_free_bytes", lambda _: room)
    features = FrozenFeatures(model, "fp32")
    first, again = features(batch), features(batch)
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert counted.images == 1 + 4 + 2


def test_features_do_not_depend_on_the_batch_an_image_is_in(
    make_model: MakeModel, dataset: Dataset
) -> None:
    model = make_model()
    model.network.fusion.requires_grad_(False)
    batch = BatchStream(dataset.part("train"), 4, 0)(0)
    parts = [FrozenFeatures(model, "fp32")(batch.chunk(2, place)) for place in (0, 1)]
    whole = FrozenFeatures(model, "fp32", keep=False)(batch)
    assert whole is not None
    assert torch.equal(torch.cat([part for part in parts if part is not None]), whole)
    with torch.no_grad():
        torch.testing.assert_close(whole, model.fuse(batch.x_p, batch.x_m))
