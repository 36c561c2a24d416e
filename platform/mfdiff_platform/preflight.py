"""What must be true before a pretraining starts; each check fails with one sentence.

Cheap ones come first and need no Ray: a request that this machine cannot meet is refused in
seconds.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from mfdiff_core.comparison.fb_sem import FBSEMConfig
from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.data.batches import Augmentation
from mfdiff_core.data.check import open_sound_dataset
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import ConfigError
from mfdiff_core.model import NEEDS_SINOGRAMS, AnyModelConfig, build_model
from mfdiff_core.physics.projector import Geometry
from mfdiff_platform.checkpoints import KEPT, checkpoint_bytes, no_space
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.pretrain_request import PretrainRequest, share_batch
from mfdiff_platform.workers import Workers

_BUNDLES = 2


def check_request(request: PretrainRequest, workers: Workers, folder: Path) -> Dataset:
    """Refuse a batch, dataset or disk that the run cannot use; returns the dataset.

    Raises:
        ConfigError: the batch cannot be shared, or the slices are of another size.
        DataError: the dataset is missing, damaged or leaking.
        ResourceError: no space for the checkpoints.
    """
    share_batch(request, workers.count)
    check_augmentation(request.model, request.augment)
    dataset = open_sound_dataset(Path(request.data))
    check_image_size(dataset, request.model)
    check_disk(folder, request.model)
    return dataset


def check_image_size(dataset: Dataset, model: AnyModelConfig) -> None:
    """Refuse slices that the network was not built for.

    Raises:
        ConfigError: sizes differ, or the model needs what the slices do not carry.
    """
    if isinstance(model, FBSEMConfig):
        _check_sinograms(dataset, model)
    have, want = dataset.manifest.image_size, model.image_size
    if have != want:
        setting = f"{'network.' if model.system == 'mfdiff' else ''}image_size"
        raise ConfigError(
            f"{dataset.folder}: slices of {have}x{have} pixels, the model takes {want}x{want};"
            f" simulate at {want}x{want}, or pretrain a model of that size"
            f" (pretrain --set model.{setting}={have})"
        )


def check_augmentation(model: AnyModelConfig, augment: Augmentation) -> None:
    """Refuse to turn images whose sinograms cannot be turned alike.

    Raises:
        ConfigError: they cannot.
    """
    if isinstance(model, FBSEMConfig) and augment == "affine":
        raise ConfigError(
            f"{model.system} takes augmentation flip or none: sinograms are measured on lines that"
            " a turned or zoomed image does not have"
        )


def _check_sinograms(dataset: Dataset, model: FBSEMConfig) -> None:
    have = dataset.manifest.sinograms
    if not have:
        raise ConfigError(f"{dataset.folder}: {model.system} {NEEDS_SINOGRAMS}")
    if from_dict(Geometry, have) != model.geometry:
        raise ConfigError(
            f"{dataset.folder}: sinograms of {have}, the model takes {to_dict(model.geometry)};"
            " set it by pretrain --set model.geometry.num_bins=... and so on"
        )


def check_disk(folder: Path, model: AnyModelConfig) -> None:
    """See that the kept checkpoints, the one being written and the bundles will fit.

    Raises:
        ResourceError: they do not; names the folder and the bytes.
    """
    weights = weight_bytes(model)
    have = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) if folder.exists() else 0
    need = (KEPT + 1) * checkpoint_bytes(weights) + _BUNDLES * weights - have
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if shutil.disk_usage(there).free < need:
        raise ResourceError(no_space(folder, need))


def weight_bytes(model: AnyModelConfig) -> int:
    """Bytes of a model's weights, counted without making them."""
    import torch

    with torch.device("meta"):
        return sum(value.nbytes for value in build_model(model, 0).state_dict().values())


def check_cluster(cluster: Cluster, workers: Workers, *, wait: bool) -> None:
    """See that the workers fit on the cluster's nodes and that these are free.

    Raises:
        ResourceError: they do not, now or (without ``wait``) yet.
    """
    instead = workers.instead(cluster.total)
    cluster.obtain(workers.resources, workers.purpose, instead, wait=wait)
    if (fitting := _places(workers)) < workers.count:
        raise ResourceError(
            f"{workers.purpose} needs a CPU beside each GPU; the nodes have {fitting} such places,"
            f" try --gpus {fitting}"
        )


def _places(workers: Workers) -> int:
    """Workers that the nodes have room for."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = ("CPU", "GPU") if workers.on_gpu else ("CPU",)
    return sum(math.floor(min(node.get(name, 0) for name in wanted)) for node in resources)
