"""A workspace so small that hundreds of trainings take minutes: slices of 32 x 32 pixels.

    python -m benchmarks.tiny_workspace SOURCE TARGET [--iterations 300]

SOURCE is a workspace with `data/phantom` and `data/ood1` to `ood3`, such as the quick start's.
Their slices are averaged over squares, and a thin model is pretrained on the phantoms for seconds.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d

from mfdiff_core.bundle import Provenance, save_bundle
from mfdiff_core.config import override
from mfdiff_core.data.batches import BatchStream
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.data.manifest import SHARDS, SPLIT, describe_shard
from mfdiff_core.data.slices import SliceRecord, write_shard
from mfdiff_core.model import ModelConfig, build_model, preset
from mfdiff_core.training.loop import TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.strategies import start_training
from mfdiff_platform.workspace import Workspace, open_workspace

SIZE = 32
DOMAINS = ("phantom", "ood1", "ood2", "ood3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--iterations", type=int, default=300)
    arguments = parser.parse_args()
    source, target = open_workspace(arguments.source), open_workspace(arguments.target)
    for domain in DOMAINS:
        if (source.dataset(domain) / SPLIT).is_file() and not target.dataset(domain).exists():
            shrink(open_dataset(source.dataset(domain)), target.dataset(domain))
    if not target.pretraining("tiny").exists():
        pretrain_tiny(target, arguments.iterations)


def tiny_model() -> ModelConfig:
    """Preset ``tiny`` on this grid with fewer channels: 30 ms per training step."""
    thin = {
        "network.patch_size": 2,
        "network.fusion.channels": 8,
        "network.fusion.heads": 2,
        "network.fusion.couplings": 1,
        "network.fusion.fusion_couplings": 1,
        "network.unet.channels": 8,
        "network.unet.norm_groups": 4,
        "network.unet.attention_resolutions": (8,),
        "diffusion.num_steps": 20,
    }
    return override(preset("tiny"), thin)


def shrink(dataset: Dataset, folder: Path) -> None:
    """Write ``dataset`` again with pixels averaged over squares; maps keep every n-th value."""
    factor = dataset.manifest.image_size // SIZE
    entries = []
    for entry in dataset.manifest.shards:
        records = []
        for part in ("train", "validation", "test"):
            slices = dataset.part(part)
            for row, info in enumerate(slices.infos):
                if info.subject != entry.subject:
                    continue
                images = [
                    avg_pool2d(getattr(slices, name)[row : row + 1], factor)[0, 0].numpy()
                    for name in ("x_p", "x_m", "x_s")
                ]
                maps = [
                    getattr(slices, name)[row, ::factor, ::factor].contiguous().numpy()
                    for name in ("tissue", "lesions")
                ]
                there = replace(info, voxel_mm=info.voxel_mm * factor)
                records.append(SliceRecord(there, *images, *maps))
        path = folder / SHARDS / f"{entry.subject}.arrow"
        write_shard(path, records)
        entries.append(describe_shard(folder, path, entry.subject, len(records)))
    shutil.copyfile(dataset.folder / SPLIT, folder / SPLIT)
    small = replace(dataset.manifest, image_size=SIZE, shards=tuple(entries), sinograms={})
    small.save(folder)


def pretrain_tiny(workspace: Workspace, iterations: int) -> None:
    """The external stage on the shrunk phantoms."""
    dataset = open_dataset(workspace.dataset("phantom"))
    slices, config = dataset.part("train"), tiny_model()
    model = build_model(config, 0)
    optim = OptimConfig(lr=4e-3, warmup=20, schedule="cosine", ema=0.98)
    state = start_training(model, optim)
    stream = BatchStream(slices, 8, 0, "affine", None, 0.0, torch.device("cpu"))
    for _ in train(state, stream, TrainConfig(iterations=iterations, optim=optim)):
        pass
    with state.averaged() as averaged:
        weights = {name: value.clone() for name, value in averaged.state_dict().items()}
    provenance = Provenance(
        domain="phantom",
        strategy="pretrain",
        iterations=iterations,
        seed=0,
        data=dataset.manifest.fingerprint,
        voxel_mm=slices.infos[0].voxel_mm,
    )
    save_bundle(workspace.pretraining("tiny") / "bundle", config, weights, provenance)


if __name__ == "__main__":
    main()
