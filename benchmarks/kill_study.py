"""A study whose command is killed again and again, and what is left of it.

    python -m benchmarks.kill_study --workspace W --scratch S [--kills 10]

An uninterrupted study says how long a start and a trial take here. In a second one SIGKILL hits
the command again and again, at random moments of its start, of its first trial and of trials
spread evenly over the study; the same command then goes on. At the end each trial must have ended
once, with one MLflow run, no two search points alike, and every trial that had ended before a kill
as it was; with one trial at a time both studies try the same recipes. A workspace of
`benchmarks.tiny_workspace` will do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from mfdiff_core.seeding import rng
from mfdiff_platform.ledger import Ledger
from mfdiff_platform.study import TRIALS
from mfdiff_platform.study_record import EXPERIMENT
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

SPACE = """
parameters:
  iterations: {value: 18}
  batch_size: {value: 2}
  lr: {low: 1e-4, high: 1e-2, log: true}
  freeze: {choices: [none, encoders]}
  ema: {value: 0.9}
"""
ALL_ENDED_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True, help="is copied, not touched")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--domain", default="ood3")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pace = undisturbed(arguments)
    result = {"seconds": asdict(pace), **torment(arguments, pace)}
    result["same_as_uninterrupted"] = same_as_uninterrupted(arguments)
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_result(arguments.json, result)
    wrong = [result[name] for name in ("lost", "changed", "alike", "missing_runs", "double_runs")]
    sys.exit(any(wrong) or not result["same_as_uninterrupted"])


@dataclass(frozen=True)
class Pace:
    """Seconds of the uninterrupted study: to its first trial's end, per trial, and in all."""

    start: float
    trial: float
    whole: float


def undisturbed(arguments: argparse.Namespace) -> Pace:
    """Run the study without killing it, and time it."""
    workspace, began = copy_of(arguments, "whole"), time.monotonic()
    ledger = Ledger(workspace.study("tormented") / TRIALS)
    process = begin(arguments, workspace)
    wait_for(ledger, 1, process)
    first = time.monotonic() - began
    wait_for(ledger, arguments.trials, process)
    last = time.monotonic() - began
    if process.wait() != 0:
        sys.exit(f"the study failed on its own; see {workspace.root / 'adapt.log'}")
    each = (last - first) / (arguments.trials - 1)
    return Pace(round(first, 1), round(each, 2), round(time.monotonic() - began, 1))


def torment(arguments: argparse.Namespace, pace: Pace) -> dict[str, Any]:
    """Kill the command ``--kills`` times, let it end, and count what is wrong."""
    workspace = copy_of(arguments, "killed")
    ledger = Ledger(workspace.study("tormented") / TRIALS)
    draws, moments = rng(arguments.seed, "kills"), []
    before: dict[int, str] = {}
    changed = early = 0
    for kill in range(arguments.kills):
        process = begin(arguments, workspace)
        # The k-th kill waits for its share of the trials and then for a random part of another
        # one, so that all of them come before the study's end.
        wait_for(ledger, (arguments.trials - 1) * kill // arguments.kills, process)
        time.sleep(draws.uniform(0, pace.start + pace.trial if kill == 0 else pace.trial))
        moments.append(len(ended_records(ledger)))
        if process.poll() is None:
            early += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        changed += differing(ledger, before)
        before = ended_records(ledger)
    process = begin(arguments, workspace)
    code = process.wait()
    records = list(ledger)
    changed += differing(ledger, before)
    return {
        "exit_code": code,
        "kills_before_the_end": early,
        "ended_trials_at_each_kill": moments,
        "states": dict(Counter(record.state for record in records)),
        "lost": arguments.trials - len(ledger.ended()),
        "changed": changed,
        "alike": len(records) - len({record.key for record in records}),
        **count_runs(workspace, arguments.trials),
    }


def ended_records(ledger: Ledger) -> dict[int, str]:
    """Records of trials that have ended, as they stand on disk."""
    numbers = [record.number for record in ledger.ended()] if ledger.folder.is_dir() else []
    return {number: (ledger.folder / f"{number:04d}.json").read_text() for number in numbers}


def differing(ledger: Ledger, before: dict[int, str]) -> int:
    """How many ended trials are not what they were."""
    now = ended_records(ledger)
    return sum(now.get(number) != text for number, text in before.items())


def count_runs(workspace: Workspace, trials: int) -> dict[str, int]:
    """Runs of the study's trials in MLflow."""
    store = TrackingStore(workspace.root)
    experiment = store.get_or_create_experiment(EXPERIMENT)
    found = store.client.search_runs([experiment], max_results=1000)
    keys = Counter(run.data.tags["mfdiff.key"] for run in found)
    children = {key: count for key, count in keys.items() if key.startswith("tormented/")}
    return {
        "runs": sum(children.values()),
        "missing_runs": trials - len(children),
        "double_runs": sum(count - 1 for count in keys.values()),
    }


def same_as_uninterrupted(arguments: argparse.Namespace) -> bool:
    """Whether the study that nobody disturbed tried the same recipes."""
    places = [Workspace(arguments.scratch.absolute() / name) for name in ("whole", "killed")]
    ledgers = [Ledger(place.study("tormented") / TRIALS) for place in places]
    recipes = [[record.config["recipe"] for record in ledger] for ledger in ledgers]
    return recipes[0] == recipes[1]


def copy_of(arguments: argparse.Namespace, name: str) -> Workspace:
    target = arguments.scratch.absolute() / name
    for folder in ("data", "pretrained"):
        shutil.copytree(arguments.workspace / folder, target / folder)
    (target / "space.yaml").write_text(SPACE)
    return Workspace(target)


def begin(arguments: argparse.Namespace, workspace: Workspace) -> subprocess.Popen[bytes]:
    """The command of the study, in a process group of its own."""
    words = f"adapt --domain {arguments.domain} --name tormented --concurrent 1"
    program = "from mfdiff_platform.cli import main; main()"
    command = [sys.executable, "-c", program, *words.split()]
    command += ["--trials", str(arguments.trials), "--workspace", str(workspace.root)]
    command += ["--space", str(workspace.root / "space.yaml")]
    log = (workspace.root / "adapt.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def wait_for(ledger: Ledger, ended: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + ALL_ENDED_S
    while len(ledger.ended()) < ended and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
