"""Trials on eight logical GPUs, in a process and a cluster of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mfdiff_platform.cluster import Resources
from mfdiff_platform.search import fitting

# Each trial of a wave waits until all of them are there: were fewer to run together, none would
# end. Nothing of the platform is imported in the workers, which would take minutes for 32 of them.
PROGRAM = """
import json, os, sys, time
from pathlib import Path

sys.path[:0] = sys.argv[2:]
folder = Path(sys.argv[1])
os.environ["RAY_AUTH_MODE"] = "disabled"

def trial(config):
    from ray import tune

    number = config["number"]
    wave = range(32) if number < 32 else range(32, 50)
    seen = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}
    (folder / f"{number}.tmp").write_text(json.dumps(seen))
    (folder / f"{number}.tmp").rename(folder / f"{number}.json")
    until = time.monotonic() + 500
    while not all((folder / f"{n}.json").exists() for n in wave):
        if time.monotonic() > until:
            raise TimeoutError("the others never came")
        time.sleep(0.2)
    tune.report({"psnr": 20.0, "iterations": 0, "final": True})

from mfdiff_platform.cluster import connect
from mfdiff_platform.search import build_tuner, fitting, trial_resources
from mfdiff_platform.session import SearchScale
from mfdiff_platform.study import StudyRequest, claim_study

fixed = dict.fromkeys(("data", "data_fingerprint", "phantom", "pretrained", "setting"), "")
space = "parameters: {iterations: {value: 30}, lr: {low: 1.0e-4, high: 1.0e-2, log: true}}"
request = StudyRequest(name="s", domain="toy", pretrained_sha256="", space=space, **fixed)
study = claim_study(folder / "w/studies/s", request)
scale = SearchScale(trials=50, gpus_per_trial=0.25)
with connect(cpus=16, gpus=8) as cluster:
    need = trial_resources(cluster, scale)
    grid = build_tuner(study, scale, cluster.total, need, trial).fit()
    print(json.dumps({"errors": grid.num_errors, "together": fitting(cluster.total, need)}))
"""


@pytest.mark.parametrize(
    ("have", "need", "together"),
    [
        (Resources(cpus=16, gpus=8), Resources(cpus=0.5, gpus=0.25), 32),
        (Resources(cpus=64, gpus=2), Resources(cpus=1, gpus=0.4), 4),  # two on each, not five
        (Resources(cpus=64, gpus=3), Resources(cpus=1, gpus=0.1), 30),
        (Resources(cpus=64, gpus=8), Resources(cpus=1, gpus=2), 4),
        (Resources(cpus=4, gpus=8), Resources(cpus=1, gpus=1), 4),
        (Resources(cpus=3), Resources(cpus=1), 3),
    ],
)
def test_as_many_trials_run_as_find_a_place(
    have: Resources, need: Resources, together: int
) -> None:
    assert fitting(have, need) == together


@pytest.mark.ray
@pytest.mark.slow
def test_fifty_quarter_trials_on_eight_gpus_run_in_two_waves(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"errors": 0, "together": 32}
    seen: dict[int, dict[str, Any]] = {
        int(path.stem): json.loads(path.read_text()) for path in tmp_path.glob("*.json")
    }
    assert sorted(seen) == list(range(50))
    first_wave = Counter(seen[number]["gpu"] for number in range(32))
    assert first_wave == dict.fromkeys(map(str, range(8)), 4)
    assert max(Counter(one["pid"] for one in seen.values()).values()) <= 2
