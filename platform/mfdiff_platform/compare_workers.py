"""Rows of a comparison side by side: each chain of trainings in a Ray task of its own."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from mfdiff_core.errors import MfdiffError
from mfdiff_platform.cluster import Resources, as_completed, connect, is_addressed, machine
from mfdiff_platform.compare_bench import Bench, open_bench
from mfdiff_platform.compare_plan import CompareScale, Comparison, Method
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.progress import posted, posting, say, task
from mfdiff_platform.workspace import Workspace

POSTS = "at-work"
REPEATS = 2
"""Times that a chain is begun anew on what it left when its worker or its machine is lost."""


def side_by_side(bench: Bench, concurrent: int | None) -> None:
    """Train and restore what is missing, several chains at a time; the caller then only reads it.

    Leaves it to the caller where one process does as well. What a row becomes does not depend on
    the others, but on CPUs on how many threads it has.

    Args:
        bench: what is compared.
        concurrent: chains of trainings at a time; None takes one per GPU, or per CPU core.

    Raises:
        ResourceError: Ray does not start, lost a worker again and again, or its nodes do not share
            the workspace.
        MfdiffError: a chain failed, told after the others have ended.
    """
    chains = [chain for chain in bench.chains() if not all(map(bench.is_done, chain))]
    if not chains or concurrent == 1 or (len(chains) == 1 and not is_addressed()):
        return
    if concurrent is None and not is_addressed():
        concurrent = _places(machine())
        if concurrent == 1:
            return
    faults = _run(bench, chains, concurrent)
    if faults:
        for fault in faults[1:]:
            say(str(fault), mark="[red]✗[/] ")
        raise faults[0]
    if not all(bench.is_done(method) for chain in chains for method in chain):
        raise ResourceError(
            f"{bench.workspace.root}: what the workers wrote is not there; put the workspace on a"
            " disk that all nodes share, or give --concurrent 1"
        )


def _run(bench: Bench, chains: Sequence[list[Method]], concurrent: int | None) -> list[MfdiffError]:
    """Every chain in a task of its own.

    Returns:
        Why some failed.
    """
    import ray

    name, faults = bench.comparison.name, []
    with connect(purpose=f"compare {name}") as cluster, _posts(bench.workspace) as posts:
        places = min(concurrent or _places(cluster.total), len(chains))
        need = _share(cluster.total, places, _least_cpus())
        options = {"num_cpus": need.cpus, "num_gpus": need.gpus, "max_retries": REPEATS}
        remote = ray.remote(**options)(_carry_out)
        folders = (bench.domain.folder, bench.phantom.folder if bench.phantom else None)
        # What takes longest has to begin first: the long chains of evaluations stand last in the
        # paper's tables.
        tasks = [
            remote.options(name=f"compare:{name}:{chain[-1].label}").remote(
                *(bench.workspace, bench.comparison, bench.scale),
                *folders,
                chain,
                int(need.cpus),
                posts / f"{number:03d}.json",
            )
            for number, chain in reversed(list(enumerate(chains)))
        ]
        with task(f"Training and restoring with {len(chains)} models", len(chains)) as shown:

            def show() -> None:
                found = map(posted, sorted(posts.glob("*.json")))
                shown.at_work([post for post in found if post])

            with closing(as_completed(tasks, show)) as finished:
                for done, fault in enumerate(finished, start=1):
                    faults += [fault] if fault else []
                    shown.update(done)
            shown.at_work([])
    return faults


@contextmanager
def _posts(workspace: Workspace) -> Iterator[Path]:
    """A folder of this command's own for what its workers are at."""
    folder = workspace.comparison(POSTS)
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _places(have: Resources) -> int:
    """Chains at a time that have a GPU of their own, or a CPU core where there is no GPU."""
    return max(1, int(have.gpus or have.cpus))


def _share(have: Resources, places: int, node_cpus: float) -> Resources:
    """What each of so many takes: a GPU or an even part of one, or its part of the CPUs.

    Args:
        have: what there is.
        places: chains at a time.
        node_cpus: of the smallest node; no task spans two.
    """
    if have.gpus:
        sharing = math.ceil(places / have.gpus)  # chains on the fullest GPU
        return Resources(cpus=min(1.0, have.cpus / places), gpus=1 / sharing)
    return Resources(cpus=max(1, min(have.cpus // places, node_cpus)))


def _least_cpus() -> float:
    """CPUs of the smallest node that has any."""
    import ray

    found = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return float(min(filter(None, found), default=1.0))


def _carry_out(
    workspace: Workspace,
    comparison: Comparison,
    scale: CompareScale,
    data: Path,
    phantom: Path | None,
    chain: Sequence[Method],
    threads: int,
    post: Path,
) -> MfdiffError | None:
    """Worker: leave the rows of a chain on disk; returns why it could not."""
    import torch

    torch.set_num_threads(max(1, threads))
    try:
        bench = open_bench(workspace, comparison, scale, data, phantom, thorough=False)
        with posting(post):
            for method in chain:
                bench.carry_out(method)
    except MfdiffError as fault:
        return fault
    return None
