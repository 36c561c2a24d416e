"""`mfdiff-platform ui`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from mfdiff_platform.cli.common import open_store


@click.command("ui")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="MFDIFF_WORKSPACE",
    help="[default: ./mfdiff-workspace]",
)
def command(workspace: Path | None) -> None:
    """Start MLflow on this machine's loopback address; Ctrl-C stops it.

    \b
    Example:
      mfdiff-platform ui
    """
    import os
    import subprocess
    import sys

    from mfdiff_platform.adapt import EXPERIMENT
    from mfdiff_platform.tracking import ui_command, ui_link
    from mfdiff_platform.workspace import open_workspace

    store = open_store(open_workspace(workspace))
    click.echo(ui_link(store.get_or_create_experiment(EXPERIMENT)))
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    server = subprocess.Popen(shlex.split(ui_command(store)), env=os.environ | {"PATH": beside})
    try:
        raise SystemExit(server.wait())
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
