"""Training of the models that a comparison needs: each once, resumed where it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mfdiff_core
from mfdiff_core.bundle import Bundle, Provenance, load_bundle, save_bundle
from mfdiff_core.config import to_dict
from mfdiff_core.data.batches import BatchStream
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import TrainingError
from mfdiff_core.evaluation.validation import evaluate_model
from mfdiff_core.files import read_json, sha256_text, write_json
from mfdiff_core.model import AnyModelConfig, RestorationModel, build_model
from mfdiff_core.training.loop import Event, Snapshot, TrainConfig, Validated, train
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe, start
from mfdiff_platform.code_state import code_fingerprint
from mfdiff_platform.context import LocalContext
from mfdiff_platform.durable import locked
from mfdiff_platform.preflight import check_image_size
from mfdiff_platform.pretrain_request import fast_sampler
from mfdiff_platform.progress import Task, task
from mfdiff_platform.slice_parts import evenly

BUNDLE, CLOCK, DESCRIPTION, LOCK = "bundle", "clock.json", "arm.json", "lock"
VALIDATIONS, VALIDATION_SLICES, CHECKPOINTS = 2, 8, 8
UNKNOWN, THEN = "code that was not noted", ", then "


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training.

    Attributes:
        label: for people.
        model: what is trained.
        recipe: how.
        data: slices of its domain.
        phantom: slices of the external stage, where the recipe mixes them in.
        parent: the external stage it starts from.
        precision: of the training.
        seed: keys everything.
    """

    label: str
    model: AnyModelConfig
    recipe: Recipe
    data: Dataset
    phantom: Dataset | None = None
    parent: Arm | None = None
    precision: Precision = "fp32"
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """Everything that decides the weights."""
        return {
            "model": to_dict(self.model),
            "recipe": to_dict(self.recipe),
            "data": self.data.manifest.fingerprint,
            "split": to_dict(self.data.split),
            "phantom": self.phantom.manifest.fingerprint if self.phantom else "",
            "parent": self.parent.fingerprint if self.parent else "",
            "precision": self.precision,
            "seed": self.seed,
            "code": mfdiff_core.__version__,
        }

    @property
    def fingerprint(self) -> str:
        """Equal for trainings that end with the same weights, by one release on one machine."""
        return sha256_text(json.dumps(self.describe(), sort_keys=True))

    @property
    def first(self) -> Arm:
        """The training that comes before all others of this one."""
        return self.parent.first if self.parent else self

    def folder(self, models: Path) -> Path:
        """Its place below a folder of models."""
        return models / f"{self.model.system}-{self.fingerprint[:16]}"


@dataclass(frozen=True)
class Trained:
    """A bundle, what its stages took in all, and which code was at them, first to last."""

    bundle: Bundle
    iterations: int
    training_s: float
    by: tuple[str, ...]


def trained(arm: Arm, models: Path) -> Trained:
    """The arm's bundle, trained if it is not there, and resumed if it was begun.

    Waits while another command is at the same training.

    Raises:
        ConfigError: slices and network are of different size.
        TrainingError: the training diverged or ran out of memory.
    """
    parent = trained(arm.parent, models) if arm.parent else None
    folder = arm.folder(models)
    if not (folder / BUNDLE).is_dir():
        check_image_size(arm.data, arm.model)
        title = f"Training {arm.label}"
        with task(title, arm.recipe.iterations) as shown, repeatable(), locked(folder / LOCK):
            if not (folder / BUNDLE).is_dir():
                write_json(folder / DESCRIPTION, arm.describe())
                _train(arm, folder, parent.bundle if parent else None, shown)
    clock = read_json(folder / CLOCK)
    iterations, spent = arm.recipe.iterations, clock["training_s"]
    by = tuple(clock.get("by", [UNKNOWN]))
    if parent is not None:
        iterations, spent = iterations + parent.iterations, spent + parent.training_s
        by = parent.by + by
    return Trained(load_bundle(folder / BUNDLE), iterations, spent, tuple(dict.fromkeys(by)))


def maker(device: torch.device) -> str:
    """Which code works here, with which torch and on what; another CPU changes the last digits."""
    code = f"{code_fingerprint()}, torch {torch.__version__}"
    if device.type == "cuda":
        return f"{code} on {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{code} on {threads} CPU thread{'s' * (threads > 1)}"


def find_trained(arm: Arm, models: Path) -> Bundle | None:
    """The arm's bundle if it has been trained."""
    folder = arm.folder(models) / BUNDLE
    return load_bundle(folder) if folder.is_dir() else None


def _train(arm: Arm, folder: Path, parent: Bundle | None, shown: Task) -> None:
    context = LocalContext(folder)
    model = build_model(arm.model, arm.seed).to(context.device)
    model.set_layout("channels_last")
    state = start(model, arm.recipe, parent.weights() if parent else None)
    context.resume(state)
    clock = _Clock(folder, state.step, maker(context.device))
    for event in _events(arm, state, context.device):
        shown.update(state.step)
        if isinstance(event, Snapshot):
            context.checkpoint(state)
            clock.save()
        elif isinstance(event, Validated):
            shown.update(state.step, f"validation {event.metrics['psnr']:.2f} dB")
    if not state.best_weights:
        raise TrainingError(
            f"{arm.label}: no validation gave a finite PSNR; lower the learning rate (--set lr=...)"
        )
    save_bundle(folder / BUNDLE, arm.model, state.best_weights, _provenance(arm, state, parent))


def _events(arm: Arm, state: TrainState, device: torch.device) -> Iterator[Event]:
    held_out = evenly(arm.data.part("validation"), VALIDATION_SLICES)
    sampler = fast_sampler(arm.model)

    def validate(model: RestorationModel) -> dict[str, float]:
        return {"psnr": evaluate_model(model, held_out, sampler=sampler).mean().psnr}

    iterations = arm.recipe.iterations
    config = TrainConfig(
        iterations=iterations,
        optim=arm.recipe.optim(),
        seed=arm.seed,
        precision=arm.precision,
        validate_every=-(-iterations // VALIDATIONS),
        snapshot_every=max(1, iterations // CHECKPOINTS),
    )
    return train(state, _stream(arm, device), config, validate=validate)


def _stream(arm: Arm, device: torch.device) -> BatchStream:
    """Slices of the domain; in single-stage training phantoms too, each slice as often."""
    own = arm.data.part("train").resident(device)
    recipe, phantom, share = arm.recipe, None, 0.0
    if arm.phantom is not None:
        phantom = arm.phantom.part("train").resident(own.x_p.device)
        share = recipe.replay or len(phantom) / (len(phantom) + len(own))
    return BatchStream(own, recipe.batch_size, arm.seed, recipe.augment, phantom, share, device)


def _provenance(arm: Arm, state: TrainState, parent: Bundle | None) -> Provenance:
    return Provenance(
        domain=arm.data.manifest.domain,
        strategy=arm.recipe.strategy,
        iterations=arm.recipe.iterations,
        seed=arm.seed,
        data=arm.data.manifest.fingerprint,
        voxel_mm=arm.data.shards[0].infos[0].voxel_mm,
        parent=parent.provenance.sha256 if parent else "",
        recipe=to_dict(arm.recipe),
        metrics={"psnr": state.best},
    )


class _Clock:
    """Wall time of a training up to its last checkpoint, and who was at it, resumptions too."""

    def __init__(self, folder: Path, step: int, by: str) -> None:
        self._path = folder / CLOCK
        before: dict[str, Any] = {"training_s": 0.0}
        if step == 0:
            before["by"] = []
        elif self._path.is_file():
            before = read_json(self._path)
        self._before: float = before["training_s"]
        self._by: list[str] = [*before.get("by", [UNKNOWN]), by]
        self._started = time.monotonic()

    def save(self) -> None:
        """Note what has passed until now."""
        spent = self._before + time.monotonic() - self._started
        write_json(self._path, {"training_s": spent, "by": list(dict.fromkeys(self._by))})


@contextmanager
def repeatable() -> Iterator[None]:
    """Kernels that give the same result every time, where there are such."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
