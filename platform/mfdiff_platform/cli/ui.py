"""`mfdiff-platform ui`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from mfdiff_platform.cli.common import open_store


@click.command("ui")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1024, 65535))
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="MFDIFF_WORKSPACE",
    help="[default: ./mfdiff-workspace]",
)
def command(port: int, workspace: Path | None) -> None:
    """Start MLflow on this machine's loopback address; Ctrl-C stops it.

    \b
    Example:
      mfdiff-platform ui --port 5001
    """
    import os
    import subprocess
    import sys

    from mfdiff_platform.experiment_view import (
        OVERVIEW,
        PRETRAINING_COLUMNS,
        newest_studies,
        share_views,
        study_view,
    )
    from mfdiff_platform.pretrain_request import EXPERIMENT as PRETRAINING
    from mfdiff_platform.study_record import EXPERIMENT
    from mfdiff_platform.ui import models_link, require_free, ui_command, ui_link
    from mfdiff_platform.workspace import open_workspace

    store = open_store(open_workspace(workspace))
    address = f"http://127.0.0.1:{port}"
    if store.address.is_server:
        address = store.address.shown.rstrip("/")
    else:
        require_free(port)
    share_views(store, EXPERIMENT)
    experiment = store.get_or_create_experiment(EXPERIMENT)
    click.echo(f"studies  {ui_link(experiment, address=address, view=OVERVIEW)}")
    for study in newest_studies(store, EXPERIMENT):
        page = ui_link(experiment, address=address, view=study_view(study))
        click.echo(f"{study}  {page}")
    share_views(store, PRETRAINING, columns=PRETRAINING_COLUMNS)
    pretraining = store.get_or_create_experiment(PRETRAINING)
    click.echo(f"pretraining  {ui_link(pretraining, address=address, view=OVERVIEW)}")
    click.echo(f"models  {models_link(address)}")
    if store.address.is_server:
        return
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    server = subprocess.Popen(
        shlex.split(ui_command(store, address)), env=os.environ | {"PATH": beside}
    )
    try:
        raise SystemExit(server.wait())
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
