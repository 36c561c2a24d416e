"""Datasets simulated on a real cluster: the small recipe, three people."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
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
from mfdiff_core.data.manifest import MANIFEST, SHARDS, SPLIT, describe_shard, load_manifest
from mfdiff_core.data.slices import read_shard
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import sha256_file
from mfdiff_core.physics.simulate import list_subjects, recipe, simulate_subject
from mfdiff_platform.cli import run
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.simulate import (
    ORIGIN,
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


def test_rows_of_a_stand_in_say_how_much_was_given_and_how() -> None:
    once = {"slices.indices": [74], "slices.num_rotations": 1}
    config = override(recipe("ood3", quick=True), once)
    drawn = simulate_subject(config, list_subjects(config)[0], seed=0)
    infos = [to_record("ood3", each).info for each in drawn]
    assert [info.protocol for info in infos] == ["bolus", "infusion", "hybrid"]
    assert [info.setting for info in infos] == ["bolus", "infusion", "hybrid"]
    doses = {s.name: s.low.frame.protocol.dose_mbq for s in config.settings if s.low.frame}
    assert {info.setting: info.dose_mbq for info in infos} == doses


def test_rows_of_the_phantom_name_neither_dose_nor_protocol() -> None:
    config = override(recipe("phantom", quick=True), {"slices.indices": [74]})
    (drawn,) = simulate_subject(config, list_subjects(config)[0], seed=0)
    info = to_record("phantom", drawn).info
    assert (info.protocol, math.isnan(info.dose_mbq)) == ("", True)


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


OPEN_CHOICES = {
    "scanner.counts_divisor": 127.0,
    "scanner.normalisation": "none",
    "scanner.background_fraction": 0.2,
    "settings.0.standard.recon.num_subsets": 14,
    "settings.0.low.recon.psf_mm": 4.0,
    "slices.signed": False,
}


def test_every_open_choice_can_be_set_and_stands_in_the_manifest(
    tmp_path: Path, ray_cluster: Cluster
) -> None:
    small = {"slices.indices": [74], "settings.0.standard.recon.num_iterations": 1}
    changes = {**OPEN_CHOICES, **small}
    request = replace(REQUEST, num_subjects=1, changes=changes)
    config = simulate(request, tmp_path / "set").origin["config"]
    assert config == to_dict(override(recipe("phantom", quick=True), changes))
    assert config["scanner"]["counts_divisor"] == 127
    assert config["scanner"]["normalisation"] == "none"
    assert config["settings"][0]["standard"]["recon"]["num_subsets"] == 14
    with pytest.raises(ConfigError, match="made with other settings"):
        simulate(replace(request, changes=small), tmp_path / "set")


def test_view_is_a_setting() -> None:
    grid = SimulationRequest("phantom", view="crop192").config().grid
    assert (grid.output_px, grid.output_mm) == (192, 2.08626)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scanner.divisor": 3}, "scanner.divisor: unknown key 'divisor'; valid keys are atten"),
        ({"scanner.counts_divisor": 0.0}, "scanner: counts_divisor and sensitivity must be pos"),
        ({"settings.1.name": "x"}, "settings.1: unknown key '1'; valid keys are 0"),
        ({"domain": "ood1"}, "domain: is chosen by --domain"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimulationRequest("phantom", changes=changes).config()


def test_sinograms_with_background_are_refused() -> None:
    request = SimulationRequest(
        "phantom", sinograms=True, changes={"scanner.background_fraction": 0.2}
    )
    with pytest.raises(ConfigError, match="FB-SEM models no background"):
        request.config()


def test_own_maximum_gives_every_image_its_own_scale() -> None:
    config = override(recipe("phantom", quick=True), {"slices.indices": [74]})
    (drawn,) = simulate_subject(config, list_subjects(config)[0], seed=0)
    record = to_record("phantom", drawn, "own_maximum")
    assert record.x_p.max() == record.x_m.max() == record.x_s.max() == 1
    assert record.x_p * record.info.scale == pytest.approx(drawn.x_p, rel=1e-5)


def test_intensity_goes_into_the_facts_that_bundles_carry(
    tmp_path: Path, ray_cluster: Cluster
) -> None:
    small = {"slices.indices": [74], "settings.0.standard.recon.num_iterations": 1}
    request = replace(REQUEST, num_subjects=1, changes=small, intensity="own_maximum")
    manifest = simulate(request, tmp_path / "set")
    assert manifest.facts["intensity"] == manifest.origin["intensity"] == "own_maximum"
    # each by its own maximum already, both conventions say the same but for the SSIM's window
    assert manifest.lpet["psnr"] == pytest.approx(manifest.lpet_quantitative["psnr"])


def test_a_file_under_two_names_is_refused(tmp_path: Path) -> None:
    for name in ("subject_04.bin.gz", "subject_05.bin.gz"):
        (tmp_path / name).write_bytes(b"the same person")
    request = SimulationRequest("phantom", quick=True, brainweb=tmp_path)
    with pytest.raises(DataError, match=r"subject_04.* and .*subject_05.* are the same file"):
        simulate(request, tmp_path / "out")
    assert not (tmp_path / "out").exists()


WITH_WORKERS = """
import sys
from pathlib import Path
import ray
from mfdiff_platform.simulate import SimulationRequest, simulate
request = SimulationRequest("phantom", quick=True, num_subjects=4, changes={"slices.indices": [74]})
ray.init(address="local", num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False)
simulate(request, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_one_worker_and_four_write_the_same_files(tmp_path: Path) -> None:
    folders = {workers: tmp_path / str(workers) for workers in (1, 4)}
    for workers, folder in folders.items():
        command = [sys.executable, "-c", WITH_WORKERS, str(workers), str(folder)]
        environment = os.environ | {"RAY_ADDRESS": "local"}
        subprocess.run(command, check=True, env=environment, timeout=600)
    one, four = (
        {p.relative_to(folder): sha256_file(p) for p in folder.rglob("*") if p.is_file()}
        for folder in folders.values()
    )
    assert one == four
    assert len(one) == 4 + len((MANIFEST, ORIGIN, SPLIT))


def test_json_is_the_lpet_row_with_what_it_stands_for(
    simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", "--domain", "phantom", "--quick", "--subjects", "3"]
    assert run([*command, "--out", str(simulated), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    manifest = load_manifest(simulated)
    assert shown == {
        "lpet": manifest.lpet,
        "slices": 24,
        "subjects": 3,
        "out": str(simulated),
    }
    assert set(shown["lpet"]) == {"psnr", "ssim", "nmse"}
    assert run([*command, "--out", str(simulated)]) == 0
    text = capsys.readouterr().out
    for row in (manifest.lpet, manifest.lpet_quantitative):
        assert f"{row['psnr']:.2f}" in text


def test_lpet_row_is_that_of_its_definition(simulated: Path) -> None:
    shards = [read_shard(path) for path in sorted((simulated / SHARDS).iterdir())]
    x_p, x_s = (np.concatenate([s.arrays[n] for s in shards]) for n in ("x_p", "x_s"))
    top = x_s.max((1, 2), keepdims=True)
    own = (x_p / x_p.max((1, 2), keepdims=True) - x_s / top) ** 2
    alike = ((x_p - x_s) / top) ** 2
    manifest = load_manifest(simulated)
    for row, error in ((manifest.lpet, own), (manifest.lpet_quantitative, alike)):
        assert row["psnr"] == pytest.approx(np.mean(-10 * np.log10(error.mean((1, 2)))), rel=1e-5)


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


def test_folder_without_a_shard_takes_other_settings(tmp_path: Path, ray_cluster: Cluster) -> None:
    (tmp_path / "subject_04.bin.gz").write_bytes(b"no label volume")
    with pytest.raises(DataError, match="subject_04"):
        simulate(SimulationRequest("phantom", quick=True, brainweb=tmp_path), tmp_path / "out")
    small = {"slices.indices": [74], "settings.0.standard.recon.num_iterations": 1}
    request = replace(REQUEST, num_subjects=1, changes=small)
    assert simulate(request, tmp_path / "out").subjects == ("mni-01",)


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
