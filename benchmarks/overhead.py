"""What a trial costs beside training and validation: time of the search's machinery.

    python -m benchmarks.overhead [--trials 20] [--workspace W] [--json FILE]

No-op trials, one at a time, with workers that go on with the next trial and with fresh ones. With
a workspace (`benchmarks.tiny_workspace` will do) also short real trials through all of `adapt`'s
bookkeeping: their time outside training and validation, without and with the cluster's start-up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from mfdiff_core.data.dataset import open_dataset
from mfdiff_platform.cluster import Resources, connect
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.search import build_tuner, search
from mfdiff_platform.session import SearchScale
from mfdiff_platform.study import Study, StudyRequest, claim_study
from mfdiff_platform.study_record import open_study_run
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import TrialSetting, tune_trial
from mfdiff_platform.trial_data import TrialData
from mfdiff_platform.workspace import Workspace

SPACE = """
parameters:
  iterations: {value: 18}
  batch_size: {value: 2}
  lr: {low: 1e-4, high: 1e-2, log: true}
  ema: {value: 0.9}
"""
ONE = Resources(cpus=1)
INSIDE = "inside.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--domain", default="ood3")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.perf_counter()
        with connect(cpus=2) as cluster:
            result["start_up_s"] = time.perf_counter() - began
            for name, reuse in (("no_op_reused_s", True), ("no_op_fresh_s", False)):
                study = no_op_study(folder / name)
                result[name] = no_op(study, arguments.trials, cluster.total, reuse=reuse)
            if arguments.workspace:
                result |= short_trials(arguments, folder, result["start_up_s"])
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_result(arguments.json, result)


def no_op_trial(config: dict[str, Any]) -> None:
    """Reports at once."""
    from ray import tune

    tune.report({"psnr": 20.0, "iterations": 0, "final": True})


def no_op_study(folder: Path) -> Study:
    fixed: dict[str, Any] = dict.fromkeys(("data", "data_fingerprint", "phantom", "setting"), "")
    request = StudyRequest(
        name="no-op", domain="toy", pretrained="", pretrained_sha256="", space=SPACE, **fixed
    )
    return claim_study(folder / "studies/no-op", request)


def no_op(study: Study, trials: int, have: Resources, *, reuse: bool) -> float:
    """Seconds per trial, those of the first worker included."""
    scale = SearchScale(trials=trials, concurrent=1)
    tuner = build_tuner(study, scale, have, ONE, no_op_trial, reuse_actors=reuse)
    began = time.perf_counter()
    grid = tuner.fit()
    assert len(grid) == trials, grid
    assert not grid.errors
    return (time.perf_counter() - began) / trials


def timed_trial(config: dict[str, Any], *, setting: TrialSetting, data: TrialData) -> None:
    """A trial that adds up its own time; what it does after its last report is next to nothing."""
    began = time.perf_counter()
    try:
        tune_trial(config, setting=setting, data=data)
    finally:
        with (setting.folder / INSIDE).open("a") as stream:
            stream.write(f"{time.perf_counter() - began}\n")


def short_trials(
    arguments: argparse.Namespace, folder: Path, start_up_s: float
) -> dict[str, float]:
    """Real trials of a few steps, one at a time."""
    for part in ("data", "pretrained"):
        shutil.copytree(arguments.workspace / part, folder / "w" / part)
    (folder / "space.yaml").write_text(SPACE)
    workspace = Workspace(folder / "w")
    plan = StudyPlan(
        domain=arguments.domain, space_file=folder / "space.yaml", scheduler="none", validations=3
    )
    study = claim_study(workspace.study("short"), plan_study(workspace, plan))
    store = TrackingStore(workspace.root)
    store.prepare()
    dataset = open_dataset(Path(study.request.data))
    parent = open_study_run(study, store, dataset)
    scale = SearchScale(trials=arguments.trials, concurrent=1)
    began = time.perf_counter()
    search(study, store, parent, scale, dataset, timed_trial)
    took = time.perf_counter() - began
    inside = [float(line) for line in (study.folder / INSIDE).read_text().split()]
    outside = took - sum(inside)
    return {
        "short_inside_s": sum(inside) / len(inside),
        "short_outside_s": outside / len(inside),
        "short_outside_with_start_up_s": (outside + start_up_s) / len(inside),
    }


if __name__ == "__main__":
    main()
