"""What the platform's tests share: MLflow stores, one Ray cluster, one pretrained bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.model import ModelConfig, build_model
from mfdiff_platform.cluster import Cluster, connect
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import ENVIRONMENT

# Before Ray is imported, and for tests alone: outside them it asks for a token.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Else Ray's workers wait for whatever the other process of the test run does.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, spelt as Ray reads it


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schema takes seconds to make, so it is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        store = TrackingStore(tmp_path_factory.mktemp("mlflow"))
        store.prepare()
    assert store.address.database is not None
    return store.address.database


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingStore:
    """A store in a fresh workspace, tried again at once after it was out of reach."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return TrackingStore(tmp_path, retry_after_s=0)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Three logical CPUs on any machine, for all tests; commands inside join it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(cpus=3, gpus=0) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig) -> Bundle:
    """Fresh weights that call themselves pretrained."""
    folder = tmp_path_factory.mktemp("pretrained") / "bundle"
    provenance = Provenance(
        domain="phantom", strategy="pretrain", iterations=0, seed=0, data="none", voxel_mm=2.0
    )
    weights = build_model(tiny_config, seed=5).state_dict()
    return save_bundle(folder, tiny_config, weights, provenance)
