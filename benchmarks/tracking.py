"""Many processes log to one fresh SQLite store at once: errors, strays and losses, and the time.

    python -m benchmarks.tracking [--rounds 10] [--json benchmarks/results/tracking.json]

Each round begins without a store; the processes race to create it. A run belongs to one
experiment; every value that was logged is read back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import write_result
from mfdiff_platform.tracking import TrackingStore

WRITERS, STEPS = 16, 20
EXPERIMENT = "studies"
_WRITER = """
import sys
from pathlib import Path
from mfdiff_platform.tracking import TrackingStore
run = TrackingStore(Path(sys.argv[1])).find_or_create("studies", sys.argv[2])
for step in range(int(sys.argv[3])):
    run.log_metrics({"psnr": float(step), "ssim": step / 100}, step)
run.finish("finished")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(Path(folder)))
        print(f"round {number}: {json.dumps(rounds[-1])}", flush=True)
    figures = {
        "rounds": len(rounds),
        "writers": WRITERS,
        "values_per_writer": 2 * STEPS,
        "seconds_median": round(median(r["seconds"] for r in rounds), 1),
    } | {name: sum(r[name] for r in rounds) for name in ("errors", "strays", "lost", "waiting")}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        write_result(arguments.json, figures)


def one_round(workspace: Path) -> dict[str, Any]:
    """Processes that failed, runs elsewhere, values lost, calls left in the spool."""
    began = time.monotonic()
    command = [sys.executable, "-c", _WRITER, str(workspace)]
    writers = [subprocess.Popen([*command, f"run-{n}", str(STEPS)]) for n in range(WRITERS)]
    errors = sum(writer.wait() != 0 for writer in writers)
    seconds = time.monotonic() - began
    store = TrackingStore(workspace)
    experiment = store.get_or_create_experiment(EXPERIMENT)
    everywhere = [e.experiment_id for e in store.client.search_experiments()]
    runs = store.client.search_runs(everywhere)
    values = sum(
        len(store.client.get_metric_history(run.info.run_id, name))
        for run in runs
        for name in ("psnr", "ssim")
    )
    return {
        "errors": errors,
        "strays": sum(run.info.experiment_id != experiment for run in runs),
        "lost": WRITERS * STEPS * 2 - values,
        "waiting": store.spool.count(),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
