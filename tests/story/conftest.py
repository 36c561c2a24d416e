"""One Ray cluster and one workspace for the whole story."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfdiff_platform.cluster import Cluster, connect
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.workspace import ENVIRONMENT

# Before Ray is imported, and for tests alone: outside them it asks for a token.
os.environ["RAY_AUTH_MODE"] = "disabled"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Joins the cluster of the other tests if it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(cpus=3, gpus=0) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Cluster) -> Iterator[Path]:
    """An empty workspace that commands find through the environment, as a user's would."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        patch.setenv(ENVIRONMENT, str(folder))
        yield folder
