"""What the nodes of a cluster are like, and whether each of them can take part in a run."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfdiff_core.data.manifest import load_manifest
from mfdiff_core.errors import DataError
from mfdiff_core.files import write_bytes
from mfdiff_platform.cluster import versions
from mfdiff_platform.errors import ResourceError

ANSWER_S = 8.0
"""Patience before a run, which must refuse within ten seconds."""
CHECK_S = 60.0
"""Patience of `cluster check`; a busy node takes its time to start a worker."""
COMPARED = ("python", "torch", "ray", "mfdiff-platform")


@dataclass(frozen=True)
class NodeReport:
    """One node: its resources, its versions, and what of them differs from this machine's.

    Attributes:
        node: host name, or the address of one that did not answer.
        address: its IP address.
        cpus, gpus: logical resources.
        versions: by name; empty if it did not answer.
        fault: why it did not answer.
        differs: names of the versions that are not ours.
    """

    node: str
    address: str
    cpus: float
    gpus: float
    versions: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    differs: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether work that starts here can run there."""
        return not self.fault and not self.differs


def report_nodes() -> list[NodeReport]:
    """Every node of the connected cluster, those that do not fit first."""
    ours = versions()
    alive = _alive()
    reports = []
    for node, answer in zip(alive, _ask_each(alive, CHECK_S, _describe), strict=True):
        known = not isinstance(answer, Exception)
        theirs = answer["versions"] if known else {}
        resources = node["Resources"]
        report = NodeReport(
            node=answer["host"] if known else node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpus=resources.get("CPU", 0),
            gpus=resources.get("GPU", 0),
            versions=theirs,
            fault="" if known else _words(answer),
            differs=tuple(n for n in COMPARED if known and theirs.get(n) != ours[n]),
        )
        reports.append(report)
    return sorted(reports, key=lambda report: (report.fits, report.node))


def check_shared(folder: Path, data: Path) -> None:
    """See that every node reads the dataset and what this one writes to ``folder``.

    Raises:
        ResourceError: a node does not answer, or does not see the folder.
        DataError: a node does not see the dataset, or sees another one.
    """
    alive = _alive()
    if len(alive) < 2:
        return
    probe, word = folder / f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex
    write_bytes(probe, word.encode())
    try:
        answers = _ask_each(alive, ANSWER_S, _look, str(probe), str(data))
    finally:
        probe.unlink(missing_ok=True)
    ours = load_manifest(data).fingerprint
    for node, answer in zip(alive, answers, strict=True):
        name = f"node {node['NodeManagerAddress']}"
        if isinstance(answer, Exception):
            raise ResourceError(f"{name} cannot take part: {_words(answer)}")
        seen, fingerprint = answer
        if seen != word:
            raise ResourceError(
                f"{name} does not see {folder}: with {len(alive)} nodes the workspace must lie on"
                " a folder that all of them mount at the same path; choose it with --workspace"
            )
        if fingerprint != ours:
            raise DataError(
                f"{name} does not read {data} as it is here; put it on a folder that all nodes"
                " mount at the same path, and choose it with --data"
            )


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _ask_each(
    nodes: list[dict[str, Any]], patience_s: float, question: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """The answer of each node, or the exception it gave instead."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(question)
    pending = [
        ask.options(
            name=f"check {node['NodeManagerAddress']}",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(*arguments)
        for node in nodes
    ]
    ready, _ = ray.wait(pending, num_returns=len(pending), timeout=patience_s)
    answers: list[Any] = []
    for reference in pending:
        try:
            late = TimeoutError(f"no answer within {patience_s:g} s")
            answers.append(ray.get(reference) if reference in ready else late)
        except ray.exceptions.RayError as fault:
            answers.append(getattr(fault, "cause", None) or fault)
    return answers


def _words(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[-1]


def _describe() -> dict[str, Any]:
    return {"host": socket.gethostname(), "versions": versions()}


def _look(probe: str, data: str) -> tuple[str, str]:
    """What a node reads of the probe and of the dataset, empty where it cannot."""
    path = Path(probe)
    seen = path.read_text() if path.is_file() else ""
    try:
        return seen, load_manifest(Path(data)).fingerprint
    except DataError:
        return seen, ""
