"""Datasets simulated on a real cluster: the small recipe, three people."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfdiff_core.comparison.fb_sem import FBSEMConfig
from mfdiff_core.config import override, to_dict
from mfdiff_core.data.check import check_dataset
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.data.manifest import MANIFEST, SHARDS, describe_shard, load_manifest
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import sha256_file
from mfdiff_core.physics.simulate import list_subjects, recipe, simulate_subject
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.simulate import (
    SimulationRequest,
    _simulate_shard,
    simulate,
    to_record,
)

REQUEST = SimulationRequest("phantom", quick=True, num_subjects=3)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Cluster) -> Path:
    """Made by three workers at once; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("simulated") / "phantom"
    simulate(REQUEST, folder)
    return folder


@pytest.fixture
def own(simulated: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(simulated, tmp_path / "own"))


def test_dataset_opens_with_one_shard_and_one_part_per_subject(simulated: Path) -> None:
    dataset = open_dataset(simulated)
    assert dataset.manifest.subjects == ("mni-01", "mni-02", "mni-03")
    assert [len(dataset.part(part)) for part in ("train", "validation", "test")] == [8, 8, 8]
    assert dataset.manifest.origin["config"]["domain"] == "phantom"


def test_pixels_times_scale_are_the_simulated_activity() -> None:
    config = override(recipe("phantom", quick=True), {"slices.indices": [74]})
    (drawn,) = simulate_subject(config, list_subjects(config)[0], seed=0)
    record = to_record("phantom", drawn)
    assert 0.5 < np.percentile(record.x_p, 99.5) < 1.5
    assert record.x_p * record.info.scale == pytest.approx(drawn.x_p, rel=1e-5)
    assert record.x_s * record.info.scale == pytest.approx(drawn.x_s, rel=1e-5)
    assert record.x_m * record.info.mr_scale == pytest.approx(drawn.x_m, rel=1e-5)


def test_set_with_sinograms_has_the_same_images_and_says_so(
    simulated: Path, tmp_path: Path
) -> None:
    simulate(replace(REQUEST, sinograms=True), tmp_path / "measured")
    plain, measured = open_dataset(simulated), open_dataset(tmp_path / "measured")
    part, other = plain.part("test"), measured.part("test")
    assert torch.equal(part.x_p, other.x_p)
    assert torch.equal(part.x_s, other.x_s)
    assert part.sinograms is None
    assert other.sinograms is not None
    assert other.sinograms.shape == (8, 2, 252, 128)
    assert plain.manifest.sinograms == {}
    assert measured.manifest.sinograms == to_dict(FBSEMConfig().geometry)
    assert check_dataset(tmp_path / "measured") == []
    with pytest.raises(ConfigError, match="holds a dataset made with other settings"):
        simulate(replace(REQUEST, sinograms=True), simulated)


def test_sinograms_of_in_vivo_domains_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="whose images come without the measured sinograms"):
        SimulationRequest("ood1", sinograms=True)


def test_one_worker_in_another_order_writes_the_same_bytes(simulated: Path, tmp_path: Path) -> None:
    config, entries = recipe("phantom", quick=True), load_manifest(simulated).shards
    for subject, entry in reversed(list(zip(list_subjects(config)[:2], entries, strict=False))):
        alone, _ = _simulate_shard(config, subject, REQUEST.seed, tmp_path)
        assert alone == entry


def test_same_command_again_returns_what_is_there(simulated: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in simulated.rglob("*")}
    assert simulate(REQUEST, simulated) == load_manifest(simulated)
    assert {path: path.stat().st_mtime_ns for path in simulated.rglob("*")} == before


def test_resumed_simulation_keeps_finished_shards_and_ends_the_same(own: Path) -> None:
    whole, shards = load_manifest(own), sorted((own / SHARDS).iterdir())
    (own / MANIFEST).unlink()
    shards[1].unlink()
    kept = {path: path.stat().st_mtime_ns for path in (shards[0], shards[2])}
    assert simulate(REQUEST, own) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize("changes", [{"seed": 1}, {"num_subjects": 4}, {"quick": False}])
def test_folder_of_other_settings_is_refused_and_kept(own: Path, changes: dict[str, Any]) -> None:
    before = sha256_file(own / MANIFEST)
    with pytest.raises(ConfigError, match="other settings"):
        simulate(replace(REQUEST, **changes), own)
    assert sha256_file(own / MANIFEST) == before


def test_failed_simulation_leaves_no_manifest_and_speaks_for_itself(
    tmp_path: Path, ray_cluster: Cluster
) -> None:
    with gzip.open(tmp_path / "subject_04.bin.gz", "wb") as stream:
        stream.write(b"too short")
    request = SimulationRequest("phantom", quick=True, brainweb=tmp_path)
    with pytest.raises(DataError, match=r"subject_04\.bin\.gz") as fault:
        simulate(request, tmp_path / "out")
    assert type(fault.value) is DataError
    assert "Traceback" not in str(fault.value)
    assert not (tmp_path / "out" / MANIFEST).exists()
    with pytest.raises(DataError, match="no dataset"):
        open_dataset(tmp_path / "out")


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (lambda: SimulationRequest("ood9"), "unknown domain 'ood9'; simulated are phantom, ood1"),
        (lambda: SimulationRequest("ood1", brainweb=Path()), "--brainweb is for --domain phantom"),
    ],
)
def test_impossible_request_is_refused_at_once(request_of: object, message: str) -> None:
    assert callable(request_of)
    with pytest.raises(ConfigError, match=message):
        request_of()


def test_shard_is_described_by_its_hash(simulated: Path) -> None:
    entry = load_manifest(simulated).shards[0]
    path = simulated / entry.file
    assert describe_shard(simulated, path, entry.subject, entry.rows) == entry
