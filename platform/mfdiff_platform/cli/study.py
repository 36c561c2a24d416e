"""`mfdiff-platform study`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import common, open_store, print_result

ArchiveFile = click.Path(path_type=Path, dir_okay=False)


@click.group("study")
def command() -> None:
    """Studies: take one to another site, bring one in, free their disk.

    \b
    Examples:
      mfdiff-platform study export ood3 --out ood3.zip
      mfdiff-platform study import ood3.zip
    """


@command.command("export")
@click.argument("name")
@click.option("--out", type=ArchiveFile, help="File to write.  [default: ./NAME.zip]")
@common
def export(name: str, out: Path | None, workspace: Path | None, as_json: bool) -> None:
    """Write a study with its MLflow runs, checkpoints and pictures to one zip file.

    \b
    Example:
      mfdiff-platform study export ood3 --out ood3.zip
    """
    from mfdiff_platform.names import check_name
    from mfdiff_platform.study_archive import export_study
    from mfdiff_platform.workspace import open_workspace

    check_name("study", name)
    place = open_workspace(workspace)
    target = (out or Path(f"{name}.zip")).absolute()
    runs = export_study(place, open_store(place), name, target)
    size = target.stat().st_size
    values = {"archive": str(target), "runs": runs, "bytes": size}
    print_result(values, f"{target}  ({runs} runs, {size / 1e6:.1f} MB)", as_json)


@command.command("import")
@click.argument("archive", type=ArchiveFile)
@common
def import_(archive: Path, workspace: Path | None, as_json: bool) -> None:
    """Bring in an exported study: folder, runs and registered versions; aliases stay as they are.

    \b
    Example:
      mfdiff-platform study import ood3.zip
    """
    from mfdiff_platform.study_archive import import_study
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    done = import_study(place, open_store(place), archive)
    values = {"study": str(done.folder), "runs": done.runs, "models": list(done.models)}
    models = ", ".join(done.models) or "none"
    print_result(values, f"{done.folder}  ({done.runs} runs; models: {models})", as_json)
