"""A dataset of 32 x 32 heads, made in a second, to measure everything but physics on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from mfdiff_core.data.intensity import mr_scale, pet_scale
from mfdiff_core.data.manifest import SHARDS, SPLIT, Manifest, describe_shard
from mfdiff_core.data.slices import SliceInfo, SliceRecord, write_shard
from mfdiff_core.data.splits import make_split
from mfdiff_core.seeding import rng

SIZE, SLICES = 32, 4
SUBJECTS = tuple(f"s{number}" for number in range(6))
BQ_PER_ML = 20_000.0


def make_dataset(folder: Path) -> Path:
    """Write six subjects of four slices to ``folder``."""
    entries = []
    for subject in SUBJECTS:
        path = folder / SHARDS / f"{subject}.arrow"
        write_shard(path, [_slice(subject, index) for index in range(SLICES)])
        entries.append(describe_shard(folder, path, subject, SLICES))
    make_split(SUBJECTS, (0.7, 0.15, 0.15), 0).save(folder / SPLIT)
    shards, origin = tuple(entries), {"kind": "benchmark"}
    Manifest("heads", SIZE, ("ld",), 0, origin, shards, {"psnr": 20.0}).save(folder)
    return folder


def _slice(subject: str, index: int) -> SliceRecord:
    draws = rng(0, "heads", subject, index)
    row, column = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    head = (row / 14) ** 2 + (column / 11) ** 2 < 1
    x_s = BQ_PER_ML * head * gaussian_filter(draws.random((SIZE, SIZE)), 2)
    x_p = (x_s * (1 + 0.2 * draws.standard_normal((SIZE, SIZE)))).clip(0)
    x_m = 800.0 * head * draws.random((SIZE, SIZE))
    scale, scale_m = pet_scale(x_p.astype(np.float32)), mr_scale(x_m.astype(np.float32))
    info = SliceInfo("heads", "ld", subject, index, 0, 2.0, scale, scale_m, 1e5)
    images = [image.astype(np.float32) for image in (x_p / scale, x_m / scale_m, x_s / scale)]
    maps = [head.astype(np.uint8), np.zeros((SIZE, SIZE), np.uint8)]
    return SliceRecord(info, *images, *maps)


SMALL: dict[str, Any] = {
    "network.patch_size": 2,
    "network.fusion.channels": 8,
    "network.fusion.heads": 2,
    "network.fusion.couplings": 1,
    "network.fusion.fusion_couplings": 1,
    "network.unet.channels": 8,
    "network.unet.norm_groups": 4,
    "network.unet.attention_resolutions": [8],
}
"""Changes to preset ``tiny`` after which a training step takes about 30 ms on a CPU core."""
