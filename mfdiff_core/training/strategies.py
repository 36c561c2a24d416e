"""Adaptation recipes: what a trial of the search does, from pretrained weights to a site model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from mfdiff_core.data.batches import Augmentation
from mfdiff_core.errors import ConfigError
from mfdiff_core.model import RestorationModel, stage_depths
from mfdiff_core.training.freezing import apply_plan, check_plan
from mfdiff_core.training.optim import (
    OptimConfig,
    Schedule,
    WeightAverage,
    averaged_tensors,
    build_optimizer,
)
from mfdiff_core.training.state import TrainState

Strategy = Literal["external", "internal", "single_stage", "two_stage"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One point of the search space; the defaults are the paper's internal stage.

    Attributes:
        strategy: ``external`` uses the pretrained weights as they are; ``internal`` trains on
            domain data from scratch; ``single_stage`` trains on phantoms and domain data mixed,
            from scratch; ``two_stage`` fine-tunes the pretrained weights (Sec. 3.3).
        freeze: freeze plan, see `freezing.check_plan`; needs pretrained weights.
        unfreeze_at: share of the iterations after which everything is trained, 1 = never.
        lr, warmup, schedule, weight_decay, layer_decay, l2sp, ema: see `OptimConfig`.
        iterations: training steps; 0 only for ``external``.
        batch_size: slices per step.
        replay: share of phantom slices mixed into each batch of ``two_stage``; in
            ``single_stage`` the share of phantoms (0 there means in proportion to the slices).
        augment: augmentation of the training slices.
        unfreeze_stepwise: from ``unfreeze_at`` on release one stage after the other.
    """

    strategy: Strategy = "two_stage"
    freeze: str = "none"
    unfreeze_at: float = 1.0
    lr: float = 1e-4
    warmup: int = 0
    schedule: Schedule = "constant"
    iterations: int = 20_000
    batch_size: int = 4
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    l2sp: float = 0.0
    replay: float = 0.0
    ema: float = 0.9999
    augment: Augmentation = "none"
    unfreeze_stepwise: bool = False

    def __post_init__(self) -> None:
        check_plan(self.freeze)
        self.optim()
        if self.strategy == "external" and self.iterations != 0:
            raise ValueError("external trains nothing: iterations must be 0")
        if self.strategy != "external" and self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations=}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size=}")
        if not 0 <= self.replay <= 1:
            raise ValueError(f"replay must lie in [0, 1], got {self.replay=}")
        if self.replay > 0 and self.strategy in ("external", "internal"):
            raise ValueError(f"replay mixes phantom slices in: {self.strategy=} takes none")
        if not 0 < self.unfreeze_at <= 1:
            raise ValueError(f"unfreeze_at must lie in (0, 1], got {self.unfreeze_at=}")
        if self.unfreeze_stepwise and self.unfreeze_after is None:
            raise ValueError("unfreeze_stepwise needs a freeze plan and unfreeze_at below 1")
        if self.freeze != "none" and not self.starts_pretrained:
            raise ValueError(f"freeze={self.freeze!r} needs pretrained weights: {self.strategy=}")
        if self.l2sp > 0 and not self.starts_pretrained:
            raise ValueError(f"l2sp pulls towards pretrained weights: {self.strategy=} has none")

    @property
    def starts_pretrained(self) -> bool:
        """Whether the recipe starts from the external stage's weights."""
        return self.strategy in ("external", "two_stage")

    @property
    def unfreeze_after(self) -> int | None:
        """Step after which everything is trained; None if the plan holds to the end."""
        held = self.freeze != "none" and self.unfreeze_at < 1
        return round(self.unfreeze_at * self.iterations) if held else None

    def optim(self) -> OptimConfig:
        """The recipe's optimiser settings."""
        return OptimConfig(
            lr=self.lr,
            warmup=self.warmup,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            ema=self.ema,
            layer_decay=self.layer_decay,
            l2sp=self.l2sp,
        )


def reference_recipes(
    iterations: int, batch_size: int, *, single_stage: bool = False
) -> dict[str, Recipe]:
    """The paper's own arms (Tables 6 and 7), which every study runs first.

    Args:
        iterations: fine-tuning iterations that the study allows a trial.
        batch_size: slices per step.
        single_stage: include the mixed training of Table 7.
    """

    def trained(strategy: Strategy) -> Recipe:
        return Recipe(strategy=strategy, iterations=iterations, batch_size=batch_size)

    recipes = {
        "external": Recipe(strategy="external", iterations=0, batch_size=batch_size),
        "two-stage (paper)": trained("two_stage"),
        "internal": trained("internal"),
    }
    if single_stage:
        recipes["single-stage"] = trained("single_stage")
    return recipes


def start(
    model: RestorationModel, recipe: Recipe, pretrained: Mapping[str, torch.Tensor] | None
) -> TrainState:
    """Training state at step 0 of a recipe.

    Args:
        model: a freshly built model on its device; receives the pretrained weights if the
            recipe starts from them.
        recipe: what to do.
        pretrained: weights of the external stage.

    Raises:
        ConfigError: the recipe needs pretrained weights and there are none, or its freeze plan
            does not fit the network.
    """
    if recipe.starts_pretrained:
        if pretrained is None:
            raise ConfigError(f"strategy {recipe.strategy!r} needs a pretrained model")
        model.load_state_dict(pretrained)
    network = model.network
    apply_plan(network, recipe.freeze, network.parameter_groups(), network.norm_parameters())
    return start_training(model, recipe.optim())


def start_training(model: RestorationModel, optim: OptimConfig) -> TrainState:
    """Training state at step 0 for whatever is trainable in ``model``."""
    depths = stage_depths(model.network.parameter_groups())  # after adapters got their names
    lr_scales = {f"network.{name}": optim.layer_decay**depth for name, depth in depths.items()}
    average = WeightAverage(averaged_tensors(model), optim.ema) if optim.ema > 0 else None
    optimizer = build_optimizer(model, optim, lr_scales, model.betas)
    model.train()  # what is frozen by now says which batch norms stand still
    return TrainState(model, optimizer, average, lr_scales, _frozen_stages(model, depths))


def _frozen_stages(model: RestorationModel, depths: Mapping[str, int]) -> list[list[str]]:
    """Names of frozen parameters by stage, the one nearest to the output first."""
    stages: dict[int, list[str]] = {}
    for name, parameter in model.network.named_parameters():
        if not parameter.requires_grad:
            stages.setdefault(depths[name], []).append(f"network.{name}")
    return [stages[depth] for depth in sorted(stages)]


def starting_weights(state: TrainState) -> dict[str, torch.Tensor]:
    """What L2-SP pulls towards: the trainable weights as they are now.

    Adapters of LoRA among them start at zero, so that pulling them back pulls the adapted weights
    towards the pretrained ones.
    """
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}
