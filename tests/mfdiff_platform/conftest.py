"""MLflow stores for tests: the schema is built once, every test gets a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.tracking import TrackingStore


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        store = TrackingStore(tmp_path_factory.mktemp("mlflow"))
        store.prepare()
    assert store.address.database is not None
    return store.address.database


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingStore:
    """A store in a fresh workspace, tried again at once after it was out of reach."""
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return TrackingStore(tmp_path, retry_after_s=0)
