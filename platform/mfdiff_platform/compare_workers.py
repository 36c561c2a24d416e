"""Rows of a comparison side by side: each chain of trainings in a Ray task of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mfdiff_platform.cluster import Resources, as_completed, connect, is_addressed, machine
from mfdiff_platform.compare_bench import Bench, open_bench
from mfdiff_platform.compare_plan import CompareScale, Comparison, Method
from mfdiff_platform.progress import Task, posted, posting, task
from mfdiff_platform.workspace import Workspace

POSTS = "at-work"


def side_by_side(bench: Bench, concurrent: int | None) -> None:
    """Train and restore what is missing, several rows at a time; the caller then only reads it.

    Does nothing where one process does as well. What a row becomes does not depend on the others,
    but on CPUs on the threads that each has.

    Args:
        bench: what is compared.
        concurrent: chains of trainings at a time; None takes one per GPU, or per CPU core.

    Raises:
        ResourceError: Ray does not start, or lost a worker.
        TrainingError: a training diverged or ran out of memory.
    """
    chains = [chain for chain in bench.chains() if not all(map(bench.is_done, chain))]
    if concurrent is None and not is_addressed():
        concurrent = _places(machine())
    if concurrent == 1 or len(chains) < 2:
        return
    import ray

    posts = bench.workspace.comparison(POSTS)
    with connect(purpose=f"compare {bench.comparison.name}") as cluster:
        places = min(concurrent or _places(cluster.total), len(chains))
        need = _share(cluster.total, places)
        options = {"num_cpus": need.cpus, "num_gpus": need.gpus, "max_retries": 0}
        remote = ray.remote(**options)(_carry_out)
        arguments = (bench.workspace, bench.comparison, bench.scale)
        folders = (bench.domain.folder, bench.phantom.folder if bench.phantom else None)
        # What takes longest has to begin first: the long chains of evaluations stand last in the
        # paper's tables.
        tasks = [
            remote.options(name=f"compare:{bench.comparison.name}:{chain[-1].label}").remote(
                *arguments, *folders, chain, int(need.cpus), posts / f"{number}.json"
            )
            for number, chain in reversed(list(enumerate(chains)))
        ]
        with task(f"Training and restoring with {len(chains)} models", len(chains)) as shown:
            finished = as_completed(tasks, while_waiting=lambda: _show(shown, posts))
            for done, _ in enumerate(finished, start=1):
                shown.update(done)
    shutil.rmtree(posts, ignore_errors=True)


def _places(have: Resources) -> int:
    """Chains at a time that have a GPU of their own, or a CPU core where there is no GPU."""
    return max(1, int(have.gpus or have.cpus))


def _share(have: Resources, places: int) -> Resources:
    """What each of so many takes: at most one GPU, or its part of the CPUs."""
    if have.gpus:
        return Resources(cpus=min(1.0, have.cpus / places), gpus=min(1.0, have.gpus / places))
    return Resources(cpus=max(1, have.cpus // places))


def _carry_out(
    workspace: Workspace,
    comparison: Comparison,
    scale: CompareScale,
    data: Path,
    phantom: Path | None,
    chain: Sequence[Method],
    threads: int,
    post: Path,
) -> None:
    """Worker: leave the rows of a chain on disk."""
    import torch

    torch.set_num_threads(max(1, threads))
    bench = open_bench(workspace, comparison, scale, data, phantom, thorough=False)
    with posting(post):
        for method in chain:
            bench.carry_out(method)


def _show(shown: Task, posts: Path) -> None:
    """What the workers are at, under the bar or in one line."""
    at_work = [found for path in sorted(posts.glob("*.json")) if (found := posted(path))]
    rows = [(p.title, f"{p.done}/{p.total}", p.note) for p in at_work]
    shown.show_table(("at work", "", ""), rows)
    shown.note("; ".join(" ".join(row).rstrip() for row in rows))
