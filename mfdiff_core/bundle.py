"""A trained model on disk: ``weights.safetensors``, ``config.json``, ``provenance.json``.

The config alone rebuilds the network, the provenance says where the weights come from and what
they must hash to. Nothing in a bundle can execute code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import mfdiff_core
from mfdiff_core.config import from_dict, one_of, to_dict
from mfdiff_core.errors import BundleError, ConfigError, DataError
from mfdiff_core.files import atomic_path, read_json, sha256_file, write_json
from mfdiff_core.model import AnyModelConfig, RestorationModel, build_model
from mfdiff_core.tensors import load_tensors, save_tensors

WEIGHTS, CONFIG, PROVENANCE = "weights.safetensors", "config.json", "provenance.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights come from.

    Attributes:
        domain: domain they were last trained on.
        strategy: how, see `training.strategies.Recipe`; ``pretrain`` for the external stage.
        iterations: training steps of that stage.
        seed: seed of that stage.
        data: fingerprint of its dataset.
        voxel_mm: in-plane pixel size of the training slices.
        data_facts: what the training slices are like, see `data.facts.dataset_facts`; empty in
            bundles of older versions.
        parent: weights hash of the bundle it started from, empty if from scratch.
        recipe: the full recipe or training settings.
        metrics: validation metrics, by name.
        code: version of this library.
        sha256: hash of the weights file.
    """

    domain: str
    strategy: str
    iterations: int
    seed: int
    data: str
    voxel_mm: float
    parent: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    code: str = mfdiff_core.__version__
    sha256: str = ""
    data_facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle folder; `model` builds the network with its weights."""

    folder: Path
    config: AnyModelConfig
    provenance: Provenance

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights by name.

        Raises:
            BundleError: the file is missing, damaged or not the one that was described.
        """
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise BundleError(f"{self.folder}: no {WEIGHTS}")
        if sha256_file(path) != self.provenance.sha256:
            raise BundleError(f"{path}: the weights do not match the hash in {PROVENANCE}")
        try:
            return load_tensors(path)
        except DataError as fault:
            raise BundleError(str(fault)) from None

    def model(self) -> RestorationModel:
        """The trained model on the CPU, in evaluation mode.

        Raises:
            BundleError: a tensor is missing, unexpected or of another shape.
        """
        model = build_model(self.config, seed=0)
        weights = self.weights()
        expected = model.state_dict()
        for name in sorted(expected.keys() | weights.keys()):
            if name not in weights:
                raise BundleError(f"{self.folder}: tensor {name} is missing from {WEIGHTS}")
            if name not in expected:
                raise BundleError(f"{self.folder}: {WEIGHTS} has an unexpected tensor {name}")
            if weights[name].shape != expected[name].shape:
                have, want = tuple(weights[name].shape), tuple(expected[name].shape)
                raise BundleError(f"{self.folder}: {name} has shape {have}, expected {want}")
        model.load_state_dict(weights)
        return model.eval()


def save_bundle(
    folder: Path, config: AnyModelConfig, weights: dict[str, torch.Tensor], provenance: Provenance
) -> Bundle:
    """Write a bundle to ``folder`` atomically, replacing what was there."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_tensors(temporary / WEIGHTS, weights)
        write_json(temporary / CONFIG, {"format": FORMAT, "model": to_dict(config)})
        described = asdict(provenance) | {"sha256": sha256_file(temporary / WEIGHTS)}
        write_json(temporary / PROVENANCE, described)
    return load_bundle(folder)


def load_bundle(folder: Path) -> Bundle:
    """Open a bundle; the weights are checked when they are read.

    Raises:
        BundleError: not a bundle, or one of a format or config this version does not know.
    """
    if not (folder / CONFIG).is_file():
        raise BundleError(f"{folder}: not a model bundle (no {CONFIG})")
    try:
        described = read_json(folder / CONFIG)
        if described["format"] != FORMAT:
            raise BundleError(f"{folder}: bundle format {described['format']}, expected {FORMAT}")
        config = one_of(AnyModelConfig, described["model"], f"{folder.name}/{CONFIG}")
        provenance = from_dict(Provenance, read_json(folder / PROVENANCE), PROVENANCE)
    except (KeyError, TypeError, ConfigError) as fault:
        raise BundleError(
            f"{folder}: {CONFIG} or {PROVENANCE} is not understood: {fault}"
        ) from None
    except BundleError:
        raise
    except DataError as fault:
        raise BundleError(str(fault)) from None
    return Bundle(folder, config, provenance)
