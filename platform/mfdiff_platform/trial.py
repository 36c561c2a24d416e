"""One trial of a study: a recipe carried out, from pretrained weights to a validated bundle."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfdiff_core.bundle import Bundle, Provenance, load_bundle, save_bundle
from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.data.batches import BatchStream
from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.data.slices import SliceInfo
from mfdiff_core.errors import ConfigError, TrainingError
from mfdiff_core.evaluation.metrics import METRICS, Metrics, evaluate_slices
from mfdiff_core.evaluation.regions import region_bias, simulated_regions, t1_regions
from mfdiff_core.evaluation.statistics import subject_means
from mfdiff_core.evaluation.validation import restore_slices, summarise
from mfdiff_core.files import write_bytes, write_json
from mfdiff_core.model import RestorationModel, build_model
from mfdiff_core.training.freezing import merge_lora
from mfdiff_core.training.loop import Progress, TrainConfig, Validated, train
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe, start, starting_weights
from mfdiff_platform.objective import PSNR, Objective
from mfdiff_platform.picture import restore_middle_slice
from mfdiff_platform.strip import strip_file, write_strip
from mfdiff_platform.suggestion import FINAL, LAST

BUNDLE, PICTURE, SUBJECTS = "bundle", "validation.png", "subjects.json"
SCORE = "score"
CPU = torch.device("cpu")
_ARRAYS = ("x_p", "x_m", "x_s", "tissue", "lesions")


@dataclass(frozen=True)
class PackedSlices:
    """A slice set as NumPy arrays, which Ray's object store shares without copying."""

    infos: tuple[SliceInfo, ...]
    arrays: dict[str, np.ndarray[Any, Any]]

    @classmethod
    def pack(cls, slices: SliceSet) -> PackedSlices:
        """Arrays of a slice set."""
        return cls(slices.infos, {name: getattr(slices, name).numpy() for name in _ARRAYS})

    def unpack(self) -> SliceSet:
        """The slice set; it shares the store's read-only memory."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensors = [torch.from_numpy(self.arrays[name]) for name in _ARRAYS]
        return SliceSet(self.infos, *tensors)


@dataclass(frozen=True)
class TrialData:
    """What every trial of a study shares."""

    train: PackedSlices
    validation: PackedSlices
    phantom: PackedSlices | None


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
    objectives: tuple[Objective, ...] = (PSNR,)
    facts: dict[str, Any] = field(default_factory=dict)


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
    parent = load_bundle(setting.pretrained)
    model = build_model(parent.config, setting.seed).to(device)
    pretrained = parent.weights() if recipe.starts_pretrained else None
    state = start(model, recipe, pretrained)
    held_out = data.validation.unpack()
    folder = setting.folder / "trials" / f"{number:04d}"
    validator = _Validator(held_out, folder, setting.objectives)
    best = _carry_out(state, recipe, setting, data, validator, report)
    if not state.best_weights:
        raise TrainingError("no validation gave a finite result; lower the learning rate")
    model.load_state_dict(state.best_weights)
    merge_lora(model)
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
        metrics=best,
    )
    bundle = save_bundle(folder / BUNDLE, parent.config, model.state_dict(), provenance)
    picture = restore_middle_slice(bundle.model(), held_out).png(recipe.strategy)
    write_bytes(folder / PICTURE, picture)
    return bundle


class _Validator:
    """Validates on the held-out slices, and leaves what people want to see of it."""

    def __init__(self, held_out: SliceSet, folder: Path, objectives: tuple[Objective, ...]) -> None:
        self.held_out, self._folder, self._objectives = held_out, folder, objectives
        self._metrics: Metrics | None = None

    def __call__(self, model: RestorationModel, step: int) -> dict[str, float]:
        """Metrics of ``model``, and as ``score`` the deciding one; draws one slice."""
        started = time.perf_counter()
        restored = restore_slices(model, self.held_out).x_s[:, 0].cpu()
        seconds = (time.perf_counter() - started) / len(self.held_out)
        self._metrics = evaluate_slices(restored, self.held_out.x_s[:, 0].cpu())
        summary = summarise(self._metrics, self.held_out)
        wanted = {objective.metric for objective in self._objectives}
        if "slice_seconds" in wanted:
            summary["slice_seconds"] = seconds
        if "bias" in wanted:
            summary["bias"] = regional_bias(restored.numpy(), self.held_out)
        summary[SCORE] = self._objectives[0].score(summary)
        if math.isfinite(summary["psnr"]):
            write_strip(strip_file(self._folder, step), model, self.held_out)
        return summary

    def note_best(self) -> None:
        """The last validation is the best so far: keep each subject's means."""
        assert self._metrics is not None
        people = [info.subject for info in self.held_out.infos]
        means = {name: subject_means(getattr(self._metrics, name), people) for name in METRICS}
        rows = [
            {"subject": person} | {name: means[name][person] for name in METRICS}
            for person in dict.fromkeys(people)
        ]
        write_json(self._folder / SUBJECTS, rows)


def _carry_out(
    state: TrainState,
    recipe: Recipe,
    setting: TrialSetting,
    data: TrialData,
    validator: _Validator,
    report: Report,
) -> dict[str, float]:
    """Train as ``recipe`` says; returns the metrics of the best weights."""

    if recipe.iterations == 0:
        with state.averaged() as model:
            metrics = validator(model, 0)
        if state.note_validation(metrics.pop(SCORE)):
            validator.note_best()
        report(metrics | {"iterations": 0})
        return metrics
    config = TrainConfig(
        iterations=recipe.iterations,
        optim=recipe.optim(),
        seed=setting.seed,
        precision=setting.precision,
        validate_every=max(1, recipe.iterations // setting.validations),
        unfreeze_after=recipe.unfreeze_after,
        unfreeze_stepwise=recipe.unfreeze_stepwise,
    )
    stream = _stream(recipe, setting, data, next(state.model.parameters()).device)
    best: dict[str, float] = {}
    loss = float("nan")
    anchors = starting_weights(state) if recipe.l2sp > 0 else None

    def validate(model: RestorationModel) -> dict[str, float]:
        return validator(model, state.step)

    for event in train(state, stream, config, validate=validate, metric=SCORE, anchors=anchors):
        if isinstance(event, Progress):
            loss = event.loss
        elif isinstance(event, Validated):
            metrics = {name: value for name, value in event.metrics.items() if name != SCORE}
            if event.is_best:
                best = metrics
                validator.note_best()
            report(metrics | {"loss": loss, "iterations": event.step})
    return best


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


def regional_bias(restored: np.ndarray[Any, Any], slices: SliceSet) -> float:
    """Mean over subjects and regions of a region's absolute relative error of the mean.

    Args:
        restored: [N, H, W], as the slices' own.
        slices: what it is compared with; simulated ones have tissue maps, others thirds of T1.
    """
    people = [info.subject for info in slices.infos]
    found: list[float] = []
    for person in dict.fromkeys(people):
        rows = np.array([subject == person for subject in people])
        x_s, x_m = (getattr(slices, name)[rows, 0].cpu().numpy() for name in ("x_s", "x_m"))
        tissue, lesions = (getattr(slices, name)[rows].cpu().numpy() for name in _ARRAYS[3:])
        shape = x_s.shape
        regions = (
            simulated_regions(tissue.reshape(shape), lesions.reshape(shape))
            if tissue.any()
            else t1_regions(x_m, x_s)
        )
        biases = [abs(region.mean_bias) for region in region_bias(restored[rows], x_s, regions)]
        found += [bias for bias in biases if math.isfinite(bias)]
    return float(np.mean(found)) if found else math.nan


def tune_trial(config: dict[str, Any], *, setting: TrialSetting, data: TrialData) -> None:
    """`run_trial` as a Ray Tune trainable; the last report is marked as final."""
    from ray import tune

    torch.use_deterministic_algorithms(True, warn_only=True)
    last: dict[str, float] = {}

    recipe = from_dict(Recipe, config["recipe"], "recipe")

    def report(metrics: dict[str, float]) -> None:
        last.update(metrics)
        # The last validation waits for the bundle: a trial may be stopped wherever it reports.
        if metrics["iterations"] < recipe.iterations:
            tune.report(metrics)

    bundle = run_trial(config["number"], recipe, setting, data, report)
    at_the_end = {f"{LAST}{name}": value for name, value in last.items()}
    tune.report(last | at_the_end | bundle.provenance.metrics | {FINAL: True})
