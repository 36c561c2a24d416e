"""Tiny real objects shared by the tests: a dataset of 32 x 32 slices, a model, a bundle.

``dataset_folder`` is made once and read-only; a test that damages a dataset takes
``own_dataset``, its private copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.config import override
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.data.intensity import mr_scale, pet_scale
from mfdiff_core.data.manifest import SHARDS, SPLIT, Manifest, describe_shard
from mfdiff_core.data.slices import PET_LESION, SliceInfo, SliceRecord, write_shard
from mfdiff_core.data.splits import make_split
from mfdiff_core.model import MFdiffModel, ModelConfig, build_model, preset
from mfdiff_core.seeding import rng

SIZE = 32
SUBJECTS = ("s0", "s1", "s2", "s3", "s4")
SETTINGS = ("ld", "uld")
NOISE = {"ld": 0.2, "uld": 0.4}
BQ_PER_ML = 20_000.0

MakeDataset = Callable[..., Path]
MakeRecord = Callable[..., SliceRecord]
MakeModel = Callable[[], MFdiffModel]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _make_record(
    subject: str = "s0", setting: str = "ld", index: int = 0, domain: str = "toy", seed: int = 0
) -> SliceRecord:
    """A head of smooth activity with one lesion, its noisy low-dose image and its MR."""
    draws = rng(seed, domain, subject, index)
    row, column = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    head = ((row / 14) ** 2 + (column / 11) ** 2 < 1).astype(np.float32)
    cortex = gaussian_filter(draws.random((SIZE, SIZE)), 2)
    lesion = (row - draws.uniform(-6, 6)) ** 2 + (column - draws.uniform(-5, 5)) ** 2 < 4
    x_s = BQ_PER_ML * head * (cortex + 0.5 * lesion)
    noise = rng(seed, domain, subject, index, setting).standard_normal((SIZE, SIZE))
    x_p = (x_s * (1 + NOISE[setting] * noise)).clip(0)
    x_m = 800 * head * (1 - cortex)
    scale, scale_m = pet_scale(x_p.astype(np.float32)), mr_scale(x_m.astype(np.float32))
    info = SliceInfo(domain, setting, subject, index, 0, 2.0, scale, scale_m, 1e5)
    images = [image.astype(np.float32) for image in (x_p / scale, x_m / scale_m, x_s / scale)]
    maps = [head.astype(np.uint8), (PET_LESION * lesion).astype(np.uint8)]
    return SliceRecord(info, *images, *maps)


def _make_dataset(
    folder: Path,
    domain: str = "toy",
    subjects: tuple[str, ...] = SUBJECTS,
    slices_per_setting: int = 2,
    seed: int = 0,
) -> Path:
    """A complete dataset folder: one shard per subject, split and manifest."""
    entries = []
    for subject in subjects:
        records = [
            _make_record(subject, setting, index, domain, seed)
            for setting in SETTINGS
            for index in range(slices_per_setting)
        ]
        path = folder / SHARDS / f"{subject}.arrow"
        write_shard(path, records)
        entries.append(describe_shard(folder, path, subject, len(records)))
    make_split(subjects, (0.6, 0.2, 0.2), seed).save(folder / SPLIT)
    origin = {"kind": "test"}
    Manifest(domain, SIZE, SETTINGS, seed, origin, tuple(entries), {"psnr": 20.0}).save(folder)
    return folder


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """``make_record(subject, setting, index, domain, seed)``."""
    return _make_record


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """``make_dataset(folder, domain, subjects, slices_per_setting, seed)``."""
    return _make_dataset


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five subjects, two settings, two slices of each: 20 slices."""
    return _make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def dataset(dataset_folder: Path) -> Dataset:
    return open_dataset(dataset_folder)


@pytest.fixture
def own_dataset(dataset_folder: Path, tmp_path: Path) -> Path:
    """A copy of `dataset_folder` that a test may damage."""
    return Path(shutil.copytree(dataset_folder, tmp_path / "dataset"))


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Preset ``tiny`` on half the grid with fewer channels: 30 ms per training step."""
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


@pytest.fixture(scope="session")
def make_model(tiny_config: ModelConfig) -> MakeModel:
    """Makes one and the same model, in which no layer is left at zero: every input matters."""

    def make() -> MFdiffModel:
        model = build_model(tiny_config, seed=0)
        source = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1, generator=source)
        return model

    return make


@pytest.fixture
def tiny_model(make_model: MakeModel) -> MFdiffModel:
    return make_model().eval()


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_model: MFdiffModel) -> Bundle:
    """`tiny_model` on disk."""
    provenance = Provenance(
        domain="toy", strategy="pretrain", iterations=0, seed=0, data="none", voxel_mm=2.0
    )
    folder = tmp_path / "bundle"
    return save_bundle(folder, tiny_model.config, tiny_model.state_dict(), provenance)
