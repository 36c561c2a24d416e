"""What pretraining survives: killed workers, killed drivers, signals, a full disk, no MLflow.

    python -m benchmarks.faults [--kills 20] [--json benchmarks/results/faults.json] [--only NAME]

Every run trains a small network 60 steps with a checkpoint every 10, and is compared with one
that nothing happened to: weights by their hash, metrics by their steps in MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any
from urllib.request import urlopen

from benchmarks.record import write_result
from benchmarks.small_data import SMALL, make_dataset
from mfdiff_core.bundle import load_bundle
from mfdiff_core.config import override
from mfdiff_core.model import preset
from mfdiff_core.seeding import rng
from mfdiff_core.training.loop import TrainConfig
from mfdiff_platform.cluster import connect
from mfdiff_platform.pretrain import BUNDLE, EVENTS, EXPERIMENT, PretrainRequest, Workers, pretrain
from mfdiff_platform.pretrain_worker import LAST
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

STEPS, INTERVAL = 60, 10
LONG = 600
"""Steps of the run that goes on without MLflow."""
PATIENCE_S = 900
"""For what a busy machine does slowly."""
SETTINGS = {
    **{f"model.{path}": value for path, value in SMALL.items()},
    "train.optim.lr": 1e-3,
    "train.log_every": 1,
    "train.validate_every": 2 * INTERVAL,
    "train.snapshot_every": INTERVAL,
}
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS], action="append")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    figures: Figures = {"steps": STEPS, "checkpoint_every": INTERVAL}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.kills)
        for part in PARTS:
            if not arguments.only or part.__name__ in arguments.only:
                figures[part.__name__] = part(bench)
                print(part.__name__, json.dumps(figures[part.__name__], indent=2), flush=True)
    if arguments.json:
        write_result(arguments.json, figures)


class Bench:
    """A workspace with a dataset, and the results of undisturbed runs by number of workers."""

    def __init__(self, folder: Path, kills: int) -> None:
        self.space, self.kills = Workspace(folder), kills
        make_dataset(self.space.dataset("phantom"))
        self.store = TrackingStore(folder)
        self.store.prepare()
        self._undisturbed: dict[int, tuple[str, str]] = {}

    def request(self, name: str) -> PretrainRequest:
        request = PretrainRequest(
            name=name,
            data=str(self.space.dataset("phantom")),
            model=preset("tiny"),
            train=TrainConfig(iterations=STEPS),
        )
        return override(request, SETTINGS)

    def run(self, name: str, workers: int) -> None:
        pretrain(self.space, self.store, self.request(name), Workers(workers, on_gpu=False))

    def command(self, name: str, workers: int, steps: int = STEPS) -> list[str]:
        """The same run as a command line, ``steps`` long."""
        settings = [f"--set={path}={json.dumps(value)}" for path, value in SETTINGS.items()]
        program = "import sys; from mfdiff_platform.cli import run; sys.exit(run(sys.argv[1:]))"
        size = ["--preset", "tiny", "--iterations", str(steps), "--cpus", str(workers)]
        where = ["--name", name, "--workspace", str(self.space.root)]
        return [sys.executable, "-c", program, "pretrain", *size, *where, *settings]

    def weights(self, name: str) -> tuple[str, str]:
        """Hashes of a run's best and last weights."""
        folder = self.space.pretraining(name)
        best, last = (load_bundle(folder / part).provenance.sha256 for part in (BUNDLE, LAST))
        return best, last

    def undisturbed(self, workers: int) -> tuple[str, str]:
        if workers not in self._undisturbed:
            self.run(f"undisturbed-{workers}", workers)
            self._undisturbed[workers] = self.weights(f"undisturbed-{workers}")
        return self._undisturbed[workers]

    def events(self, name: str) -> list[dict[str, Any]]:
        file = self.space.pretraining(name) / EVENTS
        lines = file.read_text().split("\n") if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def step(self, name: str) -> int:
        """Newest logged step of a run."""
        steps = [event["step"] for event in self.events(name) if event["kind"] == "progress"]
        return max(steps, default=0)

    def wait_for(self, name: str, step: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.step(name) < step:
            if time.monotonic() > until:
                raise TimeoutError(f"{name} does not come to step {step}")
            time.sleep(0.005)

    def logged_well(self, name: str, steps: int = STEPS) -> bool:
        """Whether MLflow has one finished run with every step once, in order."""
        client, store = self.store.client, self.store
        experiment = store.get_or_create_experiment(EXPERIMENT)
        runs = client.search_runs([experiment], f"tags.`mfdiff.key` = 'pretrain/{name}'")
        if len(runs) != 1 or runs[0].info.status != "FINISHED":
            return False
        losses = client.get_metric_history(runs[0].info.run_id, "train/loss")
        return [metric.step for metric in losses] == list(range(1, steps + 1))


def worker_killed(bench: Bench) -> Figures:
    """SIGKILL for a random worker at a random step; the same command goes on by itself."""
    rows = []
    with connect(cpus=3, gpus=0):
        for number in range(bench.kills):
            draw, workers = rng(0, "kill", number), 1 + number % 2
            bench.undisturbed(workers)
            rows.append(
                _kill_one(bench, f"kill-{number}", workers, int(draw.integers(1, STEPS)), draw)
            )
            print("  ", rows[-1], flush=True)
    return _summary(rows)


def _kill_one(bench: Bench, name: str, workers: int, step: int, draw: Any) -> Figures:
    rank, killed = int(draw.integers(workers)), []

    def kill() -> None:
        bench.wait_for(name, step)
        card = json.loads((bench.space.pretraining(name) / "workers" / f"{rank}.json").read_text())
        killed.append(bench.step(name))
        os.kill(card["pid"], signal.SIGKILL)

    Thread(target=kill, daemon=True).start()
    started = time.monotonic()
    bench.run(name, workers)
    return {
        "workers": workers,
        "rank": rank,
        **_outcome(bench, name, workers, killed[0]),
        "seconds": time.monotonic() - started,
    }


def _outcome(bench: Bench, name: str, workers: int, reached: int) -> Figures:
    """What a disturbed run came to, beside one that was left alone."""
    began = [event["step"] for event in bench.events(name) if event["kind"] == "began"]
    return {
        "reached": reached,
        "began": began,
        # An orphaned worker may have come to the end by itself.
        "recomputed": reached - began[-1] if len(began) > 1 else 0,
        "bit_equal": bench.weights(name) == bench.undisturbed(workers),
        "logged_well": bench.logged_well(name),
    }


def _summary(rows: list[Figures]) -> Figures:
    return {
        "runs": len(rows),
        "bit_equal": sum(row["bit_equal"] for row in rows),
        "logged_well": sum(row["logged_well"] for row in rows),
        "most_recomputed": max(row["recomputed"] for row in rows),
        "rows": rows,
    }


def driver_killed(bench: Bench) -> Figures:
    """SIGKILL for the command itself; the same command again."""
    return _by_signal(bench, signal.SIGKILL, "driver")


def sigterm(bench: Bench) -> Figures:
    """SIGTERM for the command: exit code 143 with a checkpoint of the last step."""
    figures = _by_signal(bench, signal.SIGTERM, "term")
    stops = [row["seconds_to_exit"] for row in figures["rows"]]
    return figures | {"slowest_stop_s": max(stops)}


def _by_signal(bench: Bench, number: signal.Signals, name: str, times: int = 3) -> Figures:
    rows = []
    with connect(cpus=3, gpus=0):
        for workers in (1, 2):
            bench.undisturbed(workers)
    for repeat in range(times):
        draw, workers = rng(0, name, repeat), 1 + repeat % 2
        run, step = f"{name}-{repeat}", int(draw.integers(5, STEPS - 5))
        process = subprocess.Popen(bench.command(run, workers), stderr=subprocess.DEVNULL)
        bench.wait_for(run, step)
        sent = time.monotonic()
        process.send_signal(number)
        code = process.wait()
        seconds, reached = time.monotonic() - sent, bench.step(run)
        time.sleep(2)  # orphaned workers of a killed driver may take a moment to notice
        reached = max(reached, bench.step(run))
        again = subprocess.run(bench.command(run, workers), stderr=subprocess.DEVNULL, check=False)
        row = _outcome(bench, run, workers, reached)
        rows.append({"code": code, "again": again.returncode, "seconds_to_exit": seconds, **row})
        print("  ", rows[-1], flush=True)
    return _summary(rows)


def disk_full(bench: Bench) -> Figures:
    """A run's disk fills up, then has room again; needs the right to mount a tmpfs."""
    place = bench.space.root / "pretrained"
    with connect(cpus=3, gpus=0):
        bench.undisturbed(1)
    small = place / "full"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(small)], check=True)
    try:
        process = subprocess.Popen(bench.command("full", 1), stderr=subprocess.PIPE, text=True)
        bench.wait_for("full", 12)
        filler = small / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], check=False, capture_output=True)
        _, told = process.communicate()
        filler.unlink()
        reached = bench.step("full")
        again = subprocess.run(bench.command("full", 1), stderr=subprocess.DEVNULL, check=False)
        message = next(x for x in told.splitlines() if x.startswith("Error"))
        row = _outcome(bench, "full", 1, reached)
        return {"code": process.returncode, "message": message, "again": again.returncode, **row}
    finally:
        subprocess.run(["umount", str(small)], check=True)


def mlflow_away(bench: Bench) -> Figures:
    """The tracking server dies in mid-run and is back after the end; the same with it there."""
    with _Server(bench.space.root) as server:
        there = _tracked(bench, server, "there", leave=False)
        away = _tracked(bench, server, "away", leave=True)
    return {"steps": LONG, "server_there": there, "server_away": away}


def _tracked(bench: Bench, server: _Server, name: str, *, leave: bool) -> Figures:
    """What a run waited for its tracking, with or without a server to take it."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": server.uri}
    run = bench.command(name, 1, LONG)
    process = subprocess.Popen(run, env=environment, stderr=subprocess.DEVNULL)
    bench.wait_for(name, 20)
    gone = time.monotonic()
    if leave:
        server.stop()
    code = process.wait()
    without = time.monotonic() - gone if leave else 0.0
    waiting = TrackingStore(bench.space.root, server.uri).spool.count()
    if leave:
        server.start()
    again = subprocess.run(run, env=environment, stderr=subprocess.DEVNULL, check=False)
    store, bench.store = bench.store, TrackingStore(bench.space.root, server.uri)
    try:
        return {
            "code": code,
            "again": again.returncode,
            "seconds_without_server": without,
            "calls_that_waited": waiting,
            "calls_waiting_at_the_end": bench.store.spool.count(),
            "logged_well": bench.logged_well(name, LONG),
            **_waits(bench.events(name)),
        }
    finally:
        bench.store = store


def _waits(events: list[dict[str, Any]]) -> Figures:
    """By the worker's own clock: what all steps together spent on handing over their metrics, of
    which no step can have waited more; and the slowest step, validations and checkpoints apart."""
    (ended,) = [event for event in events if event["kind"] == "finished"]
    steps = [event for event in events if event["kind"] == "progress"]
    gaps = [
        after["time_s"] - before["time_s"]
        for before, after in pairwise(steps)
        if before["step"] > 20 and before["step"] % INTERVAL
    ]
    return {
        "all_steps_waited_s": ended["share_logging"] * ended["seconds"],
        "slowest_step_s": max(gaps),
        "median_step_s": median(gaps),
    }


class _Server:
    """An MLflow server that comes and goes."""

    def __init__(self, folder: Path) -> None:
        port = "5971"
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db?timeout=60"),
            *("--artifacts-destination", str(folder / "served")),
        ]

    def __enter__(self) -> _Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(
            self._command, env=os.environ | quiet, start_new_session=True, **silent
        )
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with suppress(OSError):
                urlopen(f"{self.uri}/health", timeout=1).close()
                return
            time.sleep(0.2)
        self.stop()
        raise TimeoutError(self.uri)

    def stop(self) -> None:
        """SIGKILL for it and its workers."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


PARTS: tuple[Callable[[Bench], Figures], ...] = (
    worker_killed,
    driver_killed,
    sigterm,
    disk_full,
    mlflow_away,
)

if __name__ == "__main__":
    main()
