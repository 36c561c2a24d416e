"""The cluster files that users copy are files that Ray accepts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTERS = Path(__file__).resolve().parents[1] / "clusters"
RAY_UP = sorted(CLUSTERS.glob("*.yaml"))


def test_the_set_of_cluster_files_is_complete() -> None:
    names = {path.name for path in CLUSTERS.iterdir()}
    assert names == {"local.yaml", "on-prem.yaml", "slurm.sh"}


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_accepts_the_cluster_file(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("path", sorted(CLUSTERS.iterdir()), ids=lambda path: path.name)
def test_cluster_files_keep_the_token_and_the_loopback_dashboard(path: Path) -> None:
    text = path.read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "--dashboard-host=0.0.0.0" not in text


def test_the_slurm_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(CLUSTERS / "slurm.sh")], check=True)
