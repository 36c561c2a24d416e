"""`adapt` as it is typed: again, grown, from a recipe, from another study, with another space."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfdiff_core.bundle import Bundle
from mfdiff_core.files import read_json
from mfdiff_platform.cli import run
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.recipe_file import RECIPE
from mfdiff_platform.session import SESSION
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.study import Study, load_study
from mfdiff_platform.study_record import EXPERIMENT
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPACE = """
parameters:
  iterations: {value: 6}
  batch_size: {value: 2}
  lr: {low: 1e-3, high: 1e-2, log: true}
  freeze: {choices: [none, lora-2]}
  ema: {value: 0.0}
"""
WIDER = SPACE.replace("1e-2", "2e-2")
COMMAND = "import sys; from mfdiff_platform.cli import run; sys.exit(run(sys.argv[1:]))"
Output = pytest.CaptureFixture[str]


def make_site(folder: Path, database: Path, dataset: Path, pretrained: Bundle) -> Workspace:
    """A workspace with slices of domain toy and a pretrained model."""
    site = Workspace(folder)
    shutil.copyfile(database, folder / "mlflow.db")
    shutil.copytree(dataset, site.dataset("toy"))
    shutil.copytree(pretrained.folder, site.pretraining("first") / "bundle")
    (folder / "space.yaml").write_text(SPACE)
    (folder / "wider.yaml").write_text(WIDER)
    return site


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    dataset_folder: Path,
    pretrained: Bundle,
    ray_cluster: Cluster,
) -> Iterator[Workspace]:
    """Where study `toy` has ended."""
    folder = tmp_path_factory.mktemp("site")
    site = make_site(folder, empty_database, dataset_folder, pretrained)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        assert adapt(site, "--space", str(folder / "space.yaml"), "--trials", "5") == 0
        yield site


def adapt(site: Workspace, *arguments: str) -> int:
    """Exit code of the command, one trial at a time."""
    always = ["--domain", "toy", "--concurrent", "1", "--workspace", str(site.root)]
    return run(["adapt", *always, *arguments])


def recipes(study: Study) -> list[dict[str, object]]:
    return [record.config["recipe"] for record in study.ledger]


def files(study: Study) -> list[str]:
    """Records of the trials as they lie on disk, by number."""
    return [path.read_text() for path in sorted(study.ledger.folder.glob("*.json"))]


def test_recipe_file_trains_the_winner_again_to_the_last_bit(site: Workspace) -> None:
    toy = load_study(site.study("toy"))
    assert adapt(site, "--recipe", str(toy.folder / RECIPE), "--name", "again") == 0
    again, best = load_study(site.study("again")), toy.best()
    assert len(again.ledger) == len(again.first()) + 1
    twin = again.ledger[len(again.ledger) - 1]
    assert twin.metrics == best.metrics
    assert twin.curve == best.curve
    weights = [
        study.bundle_of(r) / "weights.safetensors" for study, r in ((toy, best), (again, twin))
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_warm_start_tries_what_was_best_elsewhere_first(site: Workspace) -> None:
    toy = load_study(site.study("toy"))
    options = ["--space", str(site.root / "space.yaml"), "--warm-start", "toy", "--name", "warm"]
    assert adapt(site, *options, "--trials", "6") == 0
    warm = load_study(site.study("warm"))
    ranked = sorted(toy.ledger.finished(), key=lambda record: -record.metrics["psnr"])
    points = [record for record in ranked if record.config["distributions"]]
    first = warm.ledger[len(warm.request.references())]
    tried = {**first.config["recipe"]}
    assert any(tried == point.config["recipe"] for point in points)
    assert first.metrics == next(p.metrics for p in points if p.config["recipe"] == tried)


def test_plus_two_adds_two_trials_and_leaves_the_others(site: Workspace) -> None:
    toy = load_study(site.study("toy"))
    before = files(toy)
    assert adapt(site, "--space", str(site.root / "space.yaml"), "--trials", "+2") == 0
    assert files(toy)[: len(before)] == before
    assert len(toy.ledger) == len(before) + 2
    assert len({json.dumps(recipe, sort_keys=True) for recipe in recipes(toy)}) == len(toy.ledger)


def test_another_space_goes_on_in_a_child_that_knows_the_old_results(
    site: Workspace, capsys: Output
) -> None:
    toy = load_study(site.study("toy"))
    before = files(toy)
    assert adapt(site, "--space", str(site.root / "wider.yaml"), "--trials", "5") == 0
    assert "going on in its child 'toy-2'" in " ".join(capsys.readouterr().err.split())
    child = load_study(site.study("toy-2"))
    assert child.request.parent == "toy"
    assert child.request.space == WIDER
    assert len(child.ledger.ended()) == 5
    assert child.known.observations
    assert files(toy) == before


def test_sigterm_stops_a_study_in_good_order_and_the_same_command_goes_on(
    tmp_path: Path, empty_database: Path, dataset_folder: Path, pretrained: Bundle
) -> None:
    site = make_site(tmp_path, empty_database, dataset_folder, pretrained)
    arguments = [
        "--domain",
        "toy",
        "--trials",
        "4",
        "--concurrent",
        "1",
        "--workspace",
        str(tmp_path),
    ]
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "adapt",
        *arguments,
        "--space",
        f"{tmp_path}/space.yaml",
    ]
    environment = os.environ | {URI_VARIABLE: ""}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    second = site.study("toy") / "trials/0001.json"
    while not second.is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "Terminated; the same command goes on where it stopped." in told
    assert "Traceback" not in told
    study = load_study(site.study("toy"))
    assert read_json(study.folder / SESSION)["state"] == "interrupted"
    ended = study.ledger.ended()
    assert 1 <= len(ended) < 4
    kept = files(study)[: len(ended)]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files(study)[: len(kept)] == kept
    assert len(study.ledger.finished()) == 4
    store = TrackingStore(tmp_path)
    experiment = store.get_or_create_experiment(EXPERIMENT)
    assert len(store.client.search_runs([experiment])) == 1 + 4
