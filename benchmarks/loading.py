"""Random access to slice triplets: mapped Arrow shards beside a plain memory-mapped array.

    python -m benchmarks.loading [--slices 1000] [--json benchmarks/results/loading.json]

Both are read in one process, in turn, from a warm page cache; figures are medians of repeats and
their ratio. `Table.take`, the obvious way, stands beside them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from benchmarks.record import write_result
from mfdiff_core.data.slices import SliceInfo, SliceRecord, read_shard, write_shard

NAMES = ("x_p", "x_m", "x_s")
BATCH, BATCHES, REPEATS = 4, 60, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.slices, arguments.size)
    for name, value in result.items():
        print(f"{name:32} {value:12.1f}")
    if arguments.json:
        write_result(arguments.json, result)


def measure(folder: Path, num_slices: int, size: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    images = rng.random((3, num_slices, size, size), dtype=np.float32)
    blank = np.zeros((size, size), dtype=np.uint8)
    records = [
        SliceRecord(_info(row), images[0, row], images[1, row], images[2, row], blank, blank)
        for row in range(num_slices)
    ]
    write_shard(folder / "shard.arrow", records)
    np.save(folder / "plain.npy", images)
    shard = read_shard(folder / "shard.arrow")
    plain = np.load(folder / "plain.npy", mmap_mode="r")
    table = pa.ipc.open_file(pa.memory_map(str(folder / "shard.arrow"))).read_all()
    draws = rng.integers(num_slices, size=(REPEATS, BATCHES, BATCH))
    readers: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
        "plain_memmap": lambda rows: [plain[i, rows] for i in range(3)],
        "arrow_views": lambda rows: [shard.arrays[name][rows] for name in NAMES],
    }
    for mine, theirs in zip(
        readers["arrow_views"](draws[0, 0]), readers["plain_memmap"](draws[0, 0]), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    times: dict[str, list[float]] = {name: [] for name in readers}
    for repeat in draws:
        for name, read in readers.items():
            times[name].append(_seconds(read, repeat))
    take = _seconds(lambda rows: table.select(list(NAMES)).take(rows), draws[0][:3]) * BATCHES / 3
    triplets = BATCH * BATCHES
    medians = {name: median(values) for name, values in times.items()}
    return {
        **{f"{name}_triplets_per_s": triplets / value for name, value in medians.items()},
        "table_take_triplets_per_s": triplets / take,
        "arrow_over_plain_time": median(
            a / p for a, p in zip(times["arrow_views"], times["plain_memmap"], strict=True)
        ),
    }


def _info(row: int) -> SliceInfo:
    return SliceInfo("bench", "all", "nobody", row, 0, 1.39, 1.0, 1.0)


def _seconds(read: Callable[..., object], batches: np.ndarray) -> float:
    started = time.perf_counter()
    for rows in batches:
        read(rows)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
