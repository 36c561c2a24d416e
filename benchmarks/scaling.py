"""Throughput of pretraining on 1 and 2 workers, and what share of its time is not training.

    python -m benchmarks.scaling [--iterations 2000] [--json benchmarks/results/scaling.json]

The command's own intervals: a validation, a picture and a checkpoint every 1000 steps. Throughput
is that of training alone; `outside` is the share of the time from a worker's first step to its
last that went to validation, checkpoints, event log and looking for a stop. Starting Ray and the
workers is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from benchmarks.small_data import SMALL, make_dataset
from mfdiff_core.config import override
from mfdiff_core.model import preset
from mfdiff_core.training.loop import TrainConfig
from mfdiff_platform.cluster import connect
from mfdiff_platform.pretrain import EVENTS, PretrainRequest, Workers, pretrain
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

INTERVAL = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=2 * INTERVAL)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder, connect(cpus=max(arguments.workers), gpus=0):
        rows = [measure(Path(folder), n, arguments.iterations) for n in arguments.workers]
    figures = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "rows": rows}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        write_result(arguments.json, figures)


def measure(folder: Path, workers: int, iterations: int) -> dict[str, Any]:
    space = Workspace(folder)
    store = TrackingStore(folder)
    store.prepare()
    request = PretrainRequest(
        name=f"on-{workers}",
        data=str(make_dataset(space.dataset("phantom"))),
        model=override(preset("tiny"), SMALL),
        train=TrainConfig(iterations=iterations, validate_every=INTERVAL, snapshot_every=INTERVAL),
    )
    started = time.monotonic()
    pretrain(space, store, request, Workers(workers, on_gpu=False))
    seconds = time.monotonic() - started
    lines = (space.pretraining(request.name) / EVENTS).read_text().splitlines()
    (ended,) = [
        event for event in map(json.loads, filter(None, lines)) if event["kind"] == "finished"
    ]
    training = ended["seconds"] * (1 - ended["share_outside"])
    return {
        "workers": workers,
        "iterations": iterations,
        "slices_per_s": request.batch_size * iterations / training,
        "outside": ended["share_outside"],
        "of_which": {k: v for k, v in ended.items() if k.startswith("share_") and v},
        "starting_and_ending_s": seconds - ended["seconds"],
    }


if __name__ == "__main__":
    main()
