"""`mfdiff-platform dashboard`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import cluster_option, print_result


@click.command("dashboard")
@cluster_option
@click.option("--open", "browse", is_flag=True, help="Open it in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(cluster: Path | None, browse: bool, as_json: bool) -> None:
    """Address of Ray's dashboard: jobs, actors, logs and resources of what runs now.

    Without --cluster and RAY_ADDRESS it is that of the command that is running on this machine.
    Curves, pictures and models are in MLflow: mfdiff-platform ui.

    \b
    Example:
      mfdiff-platform dashboard --open
    """
    from mfdiff_platform.dashboard import find_dashboard

    found = find_dashboard()
    if browse:
        click.launch(found.url)
    values = {"url": found.url, "token_file": found.token_file}
    print_result(values, "\n".join([found.url, *found.hints]), as_json)
