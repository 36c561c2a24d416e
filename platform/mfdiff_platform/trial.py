"""One trial of a study: a recipe carried out, from pretrained weights to a validated bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mfdiff_core.bundle import Bundle, Provenance, load_bundle, save_bundle
from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.data.batches import Batch, BatchStream
from mfdiff_core.errors import ConfigError, TrainingError
from mfdiff_core.files import write_bytes
from mfdiff_core.model import RestorationModel, build_model
from mfdiff_core.training.freezing import merged_weights
from mfdiff_core.training.loop import Progress, TrainConfig, Validated, train
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe, start, starting_weights
from mfdiff_platform.context import LocalContext, Stopped, TrainContext
from mfdiff_platform.objective import PSNR, Objective
from mfdiff_platform.picture import restore_middle_slice
from mfdiff_platform.suggestion import FINAL, LAST
from mfdiff_platform.trial_data import SharedData, TrialData
from mfdiff_platform.trial_validation import SCORE, Validator

BUNDLE, LATEST, PICTURE = "bundle", "last", "validation.png"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrialSetting:
    """What is the same for every trial of a study.

    Attributes:
        study: name of the study.
        domain: domain it adapts to.
        folder: study folder; the trial writes below ``trials/<number>``.
        pretrained: bundle folder of the external stage.
        data: fingerprint of the domain's dataset.
        seed: seed of the study; every trial draws the same noise and order.
        validations: how often a trial validates, evenly over its iterations.
        precision: ``fp32`` or ``bf16``.
        on_gpu: whether a trial was given a share of a GPU.
        workers: how many share a trial, each with a GPU of its own; see `trial_group`.
        objectives: what is measured beside the usual metrics; the first decides which of a
            trial's weights are its best.
        facts: what that dataset looks like, kept with the model to know its like by.
    """

    study: str
    domain: str
    folder: Path
    pretrained: Path
    data: str
    seed: int
    validations: int
    precision: Precision = "fp32"
    on_gpu: bool = False
    workers: int = 1
    objectives: tuple[Objective, ...] = (PSNR,)
    facts: dict[str, Any] = field(default_factory=dict)

    def place(self, number: int) -> Path:
        """Folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"


Report = Callable[[dict[str, float]], None]


def run_trial(
    number: int, recipe: Recipe, setting: TrialSetting, data: TrialData, report: Report
) -> Bundle:
    """Carry out ``recipe``, report each validation, and write the best weights as a bundle.

    Raises:
        TrainingError: the loss or the validation was not finite.
        ConfigError: the recipe does not fit the network.
    """
    device = torch.device("cuda") if setting.on_gpu and torch.cuda.is_available() else CPU
    context = LocalContext(setting.place(number), device)
    trained = train_trial(number, recipe, setting, data, report, context)
    return keep_trial(number, recipe, setting, data, trained)


class Trained(NamedTuple):
    """What a trial ends with: weights, adapters merged, and their metrics."""

    weights: dict[str, torch.Tensor]
    metrics: dict[str, float]


def train_trial(
    number: int,
    recipe: Recipe,
    setting: TrialSetting,
    data: TrialData,
    report: Report,
    context: TrainContext,
) -> tuple[Trained, Trained]:
    """The part of `run_trial` that several workers do together; what was best, and the last.

    Raises:
        TrainingError, ConfigError: as `run_trial`.
    """
    parent = load_bundle(setting.pretrained)
    model = build_model(parent.config, setting.seed).to(context.device)
    state = start(model, recipe, parent.weights() if recipe.starts_pretrained else None)
    folder, held_out = setting.place(number), data.validation.unpack()
    validator = Validator(held_out, folder, setting.objectives, context.share)
    best, last = _carry_out(state, recipe, setting, data, validator, report, context)
    if not state.best_weights:
        raise TrainingError("no validation gave a finite result; lower the learning rate")
    final = Trained(_merged(model, state.weights()), last)
    return Trained(_merged(model, state.best_weights), best), final


def _merged(model: RestorationModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.load_state_dict(weights)
    return {name: value.clone() for name, value in merged_weights(model).items()}


def keep_trial(
    number: int,
    recipe: Recipe,
    setting: TrialSetting,
    data: TrialData,
    trained: tuple[Trained, Trained],
) -> Bundle:
    """Write the best weights as a bundle, with a picture, and the last where those are others."""
    best, last = trained
    parent, folder = load_bundle(setting.pretrained), setting.place(number)
    held_out = data.validation.unpack()
    provenance = Provenance(
        domain=setting.domain,
        strategy=recipe.strategy,
        iterations=recipe.iterations,
        seed=setting.seed,
        data=setting.data,
        data_facts=setting.facts,
        voxel_mm=held_out.infos[0].voxel_mm,
        parent=parent.provenance.sha256 if recipe.starts_pretrained else "",
        recipe=to_dict(recipe),
        metrics=best.metrics,
    )
    if last.metrics != best.metrics:
        final = replace(provenance, metrics=last.metrics)
        save_bundle(folder / LATEST, parent.config, last.weights, final)
    bundle = save_bundle(folder / BUNDLE, parent.config, best.weights, provenance)
    picture = restore_middle_slice(bundle.model(), held_out).png(recipe.strategy)
    write_bytes(folder / PICTURE, picture)
    return bundle


def _carry_out(
    state: TrainState,
    recipe: Recipe,
    setting: TrialSetting,
    data: TrialData,
    validator: Validator,
    report: Report,
    context: TrainContext,
) -> tuple[dict[str, float], dict[str, float]]:
    """Train as ``recipe`` says; returns the metrics of the best weights and of the last."""

    if recipe.iterations == 0:
        with state.averaged() as model:
            metrics = validator(model, 0)
        if state.note_validation(metrics.pop(SCORE)):
            validator.note_best()
        report(metrics | {"iterations": 0})
        return metrics, metrics
    config = TrainConfig(
        iterations=recipe.iterations,
        optim=recipe.optim(),
        seed=setting.seed,
        precision=setting.precision,
        validate_every=max(1, recipe.iterations // setting.validations),
        unfreeze_after=recipe.unfreeze_after,
        unfreeze_stepwise=recipe.unfreeze_stepwise,
    )
    batches = _stream(recipe, setting, data, context.device)
    best: dict[str, float] = {}
    last: dict[str, float] = {}
    loss = float("nan")
    anchors = starting_weights(state) if recipe.l2sp > 0 else None

    def validate(model: RestorationModel) -> dict[str, float]:
        return validator(model, state.step)

    def batch(step: int) -> Batch:
        if context.stopping():
            raise Stopped
        return batches(step)

    events = train(
        state,
        batches if context.share.world_size == 1 else batch,
        config,
        validate=validate,
        metric=SCORE,
        wrap=context.wrap,
        share=context.share,
        anchors=anchors,
    )
    for event in events:
        if isinstance(event, Progress):
            loss = event.loss
        elif isinstance(event, Validated):
            last = {name: value for name, value in event.metrics.items() if name != SCORE}
            if event.is_best:
                best = last
                validator.note_best()
            report(last | {"loss": loss, "iterations": event.step})
    return best, last


def _stream(
    recipe: Recipe, setting: TrialSetting, data: TrialData, device: torch.device
) -> BatchStream:
    """Domain slices, with the recipe's share of phantom slices mixed in."""
    domain = data.train.unpack().resident(device)
    phantom, share = None, 0.0
    if recipe.strategy == "single_stage" or recipe.replay > 0:
        if data.phantom is None:
            raise ConfigError(f"strategy {recipe.strategy!r} with replay needs the phantom slices")
        phantom = data.phantom.unpack().resident(domain.x_p.device)
        share = recipe.replay or len(phantom) / (len(phantom) + len(domain))
    return BatchStream(
        domain, recipe.batch_size, setting.seed, recipe.augment, phantom, share, device
    )


def carry_out(
    number: int,
    recipe: Recipe,
    setting: TrialSetting,
    data: TrialData | SharedData,
    report: Report,
) -> Bundle:
    """`run_trial`, on as many workers as the trial was given."""
    if isinstance(data, TrialData):
        return run_trial(number, recipe, setting, data, report)
    from mfdiff_platform.trial_group import run_trial_together

    return run_trial_together(number, recipe, setting, data, report)


def tune_trial(
    config: dict[str, Any], *, setting: TrialSetting, data: TrialData | SharedData
) -> None:
    """`carry_out` as a Ray Tune trainable; the last report is marked as final."""
    from ray import tune

    torch.use_deterministic_algorithms(True, warn_only=True)
    last: dict[str, float] = {}

    recipe = from_dict(Recipe, config["recipe"], "recipe")

    def report(metrics: dict[str, float]) -> None:
        last.update(metrics)
        # The last validation waits for the bundle: a trial may be stopped wherever it reports.
        if metrics["iterations"] < recipe.iterations:
            tune.report(metrics)

    bundle = carry_out(config["number"], recipe, setting, data, report)
    at_the_end = {f"{LAST}{name}": value for name, value in last.items()}
    tune.report(last | at_the_end | bundle.provenance.metrics | {FINAL: True})
