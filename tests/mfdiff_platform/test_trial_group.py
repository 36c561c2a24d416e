"""Trials of two workers on four logical GPUs, in a process and a cluster of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mfdiff_core.bundle import Bundle
from mfdiff_core.errors import ConfigError
from mfdiff_platform.search import check_batches
from mfdiff_platform.session import SearchScale
from mfdiff_platform.study import Study, StudyRequest
from mfdiff_platform.train_group import _words

SPACE = """
parameters:
  iterations: {value: 6}
  batch_size: {value: 4}
  lr: {value: 1e-3}
  ema: {value: 0.0}
references:
  - {name: thawed, strategy: two_stage, lr: 1e-3, freeze: fusion, unfreeze_at: 0.5, l2sp: 0.1}
"""
NAMES = ["external", "two-stage (paper)", "internal", "thawed"]
# A worker of the third trial is killed; then a trial without end is stopped at its first report.
PROGRAM = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from threading import Thread

sys.path[:0] = sys.argv[4:]
root, data_folder, pretrained = map(Path, sys.argv[1:4])
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray, torch
from mfdiff_core.config import from_dict
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.adapt import adapt
from mfdiff_platform.cluster import connect
from mfdiff_platform.interrupt import STOP
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.search import trial_data, trial_setting
from mfdiff_platform.session import SearchScale
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import run_trial
from mfdiff_platform.trial_data import SharedData
from mfdiff_platform.trial_group import run_trial_together
from mfdiff_platform.workspace import Workspace

torch.set_num_threads(1)
workspace, store = Workspace(root), TrackingStore(root)
plan = StudyPlan(domain="toy", data=data_folder, pretrained=pretrained,
                 space_file=root / "space.yaml", validations=3)
request = plan_study(workspace, plan)
trials = workspace.study("toy") / "trials"

def kill_a_worker():
    card = trials / "0002/workers/1.json"
    while not card.is_file():
        time.sleep(0.01)
    os.kill(json.loads(card.read_text())["pid"], signal.SIGKILL)

Thread(target=kill_a_worker, daemon=True).start()
told = {}
with connect(cpus=4, gpus=4) as cluster:
    store.prepare()
    done = adapt(workspace, store, request, SearchScale(trials=4, gpus_per_trial=2))
    told["trials"] = [
        {"name": r.config["reference"], "state": r.state, "reason": r.reason,
         "metrics": r.metrics, "curve": r.curve}
        for r in done.study.ledger
    ]
    told["gpus"] = [
        [json.loads(card.read_text())["gpus"] for card in sorted(trials.glob(f"{n:04d}/workers/*"))]
        for n in range(4)
    ]
    dataset = open_dataset(data_folder)
    data = trial_data(done.study, dataset)
    alone = replace(trial_setting(done.study, {}), folder=root / "alone")
    told["alone"] = []
    for record in done.study.ledger:
        if record.state == "failed":
            told["alone"].append(None)
            continue
        curve = []
        note = lambda m: curve.append((int(m["iterations"]), m["psnr"]))
        recipe = from_dict(Recipe, record.config["recipe"])
        bundle = run_trial(record.number, recipe, alone, data, note)
        told["alone"].append({"metrics": bundle.provenance.metrics, "curve": curve})

    def stop(metrics):
        raise SystemExit

    endless = Recipe(iterations=100_000, batch_size=4)
    setting = replace(trial_setting(done.study, {}, 2.0), validations=50_000)
    began = time.monotonic()
    try:
        run_trial_together(9, endless, setting, SharedData(ray.put(data)), stop)
    except SystemExit:
        told["stopped"] = (trials / "0009" / STOP).is_file()
    told["bundle"] = (trials / "0009/bundle").exists()
    until = time.monotonic() + 20
    while cluster.free != cluster.total and time.monotonic() < until:
        time.sleep(0.2)
    told["free"] = [cluster.free.cpus, cluster.free.gpus]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, dataset_folder: Path, pretrained: Bundle
) -> dict[str, Any]:
    """What the program found."""
    root = tmp_path_factory.mktemp("group")
    (root / "space.yaml").write_text(SPACE)
    arguments = [str(root), str(dataset_folder), str(pretrained.folder), *sys.path]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 3])
def test_two_workers_give_what_one_gives(told: dict[str, Any], number: int) -> None:
    trial, alone = told["trials"][number], told["alone"][number]
    assert (trial["name"], trial["state"]) == (NAMES[number], "finished")
    assert trial["metrics"]["psnr"] == pytest.approx(alone["metrics"]["psnr"], abs=1e-3)
    assert trial["metrics"]["ld/nmse"] == pytest.approx(alone["metrics"]["ld/nmse"], rel=1e-3)
    steps = [step for step, _ in trial["curve"]]
    assert steps == [step for step, _ in alone["curve"]][: len(steps)]


@pytest.mark.ray
@pytest.mark.slow
def test_each_worker_has_a_gpu_of_its_own(told: dict[str, Any]) -> None:
    for gpus in told["gpus"]:
        assert len({gpu for worker in gpus for gpu in worker}) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_trial_whose_worker_is_killed_fails_and_the_search_goes_on(told: dict[str, Any]) -> None:
    killed = told["trials"][2]
    assert (killed["name"], killed["state"]) == ("internal", "failed")
    assert killed["reason"] == "its worker died (out of memory, or killed)"


@pytest.mark.ray
@pytest.mark.slow
def test_stopped_trial_lets_its_workers_go_and_leaves_no_bundle(told: dict[str, Any]) -> None:
    assert told["stopped"]
    assert not told["bundle"]
    assert told["free"] == [4, 4]


@pytest.mark.parametrize(
    ("fault", "dead"),
    [
        (RuntimeError("[x:537] Read error [127.0.0.1]:1: Connection reset by peer. GLHF!"), True),
        (RuntimeError("[x:544] Connection closed by peer [127.0.0.1]:1"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (ConnectionResetError("[Errno 104] Connection reset by peer"), False),  # some server
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_neighbours_broken_connection_is_told_as_the_death_it_comes_of(
    fault: Exception, dead: bool
) -> None:
    told = _words([fault])
    assert (told == "its process or its node is gone") == dead
    assert dead or told == str(fault)


def test_batches_that_the_gpus_cannot_share_are_refused(tmp_path: Path) -> None:
    fixed: dict[str, Any] = dict.fromkeys(
        ("data", "data_fingerprint", "phantom", "pretrained", "pretrained_sha256", "setting"), ""
    )
    space = "parameters: {batch_size: {choices: [4, 3]}, iterations: {value: 6}}"
    study = Study(tmp_path, StudyRequest(name="s", domain="toy", space=space, **fixed))
    check_batches(study, SearchScale(trials=5))
    with pytest.raises(ConfigError, match=r"--gpus-per-trial 2: batches of 3 cannot be shared"):
        check_batches(study, SearchScale(trials=5, gpus_per_trial=2))


@pytest.mark.parametrize("gpus", [-1.0, 1.5])
def test_trial_takes_a_share_of_a_gpu_or_whole_ones(gpus: float) -> None:
    with pytest.raises(ValueError, match="share of a GPU or whole ones"):
        SearchScale(trials=5, gpus_per_trial=gpus)
