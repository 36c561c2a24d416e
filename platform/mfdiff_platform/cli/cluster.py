"""`mfdiff-platform cluster`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import cluster_option, print_result, table


@click.group("cluster")
def command() -> None:
    """See what the nodes of a Ray cluster have.

    \b
    Example:
      mfdiff-platform cluster check --cluster clusters/on-prem.yaml
    """


@command.command("check")
@cluster_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def check(cluster: Path | None, as_json: bool) -> None:
    """CPUs, GPUs and versions of every node, those that do not fit first.

    Without --cluster and RAY_ADDRESS it is this machine that is looked at. Ends with code 3 when a
    node does not answer or has other versions than this machine.

    \b
    Examples:
      mfdiff-platform cluster check
      mfdiff-platform cluster check --cluster clusters/on-prem.yaml
    """
    from dataclasses import asdict

    from mfdiff_platform.cluster import connect
    from mfdiff_platform.errors import ResourceError
    from mfdiff_platform.nodes import COMPARED, report_nodes

    with connect(purpose="cluster check") as connected:
        nodes, total, dashboard = report_nodes(), connected.total, connected.dashboard
    rows = [
        (
            f"{node.node} ({node.address})",
            f"{node.cpus:g}",
            f"{node.gpus:g}",
            *(node.versions.get(n, "?") + "*" * (n in node.differs) for n in COMPARED),
            node.fault,
        )
        for node in nodes
    ]
    odd = [node for node in nodes if not node.fits]
    text = table(("node", "CPUs", "GPUs", *COMPARED, ""), rows)
    values = {"nodes": [asdict(node) for node in nodes], "cpus": total.cpus, "gpus": total.gpus}
    ending = f"\n{len(nodes)} node{'s' * (len(nodes) != 1)}: {total}; dashboard {dashboard}"
    print_result(values, text + ending, as_json)
    if odd:
        raise ResourceError(
            f"{len(odd)} of {len(nodes)} nodes cannot run what starts here"
            " (* other version than this machine's): install the same versions on all of them"
        )
