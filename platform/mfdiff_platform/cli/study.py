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


@command.command("gc")
@click.option(
    "--quota-gb",
    default=50.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="What studies, artifacts and fetched models may take.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def gc(quota_gb: float, dry_run: bool, yes: bool, workspace: Path | None, as_json: bool) -> None:
    """Free disk: copies first, then checkpoints of beaten trials until the quota is kept.

    Best trials, reference recipes and registered versions always stay.

    \b
    Examples:
      mfdiff-platform study gc --dry-run
      mfdiff-platform study gc --quota-gb 20 --yes
    """
    from mfdiff_platform.disk import clean_up, plan_clean_up
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    store = open_store(place)
    plan = plan_clean_up(place, store, int(quota_gb * 1e9))
    lines = [f"{i.bytes / 1e6:10.1f} MB  {i.path}  ({i.why})" for i in plan.items]
    lines.append(
        f"{plan.freed / 1e6:10.1f} MB of {plan.used / 1e6:.1f} MB go, {plan.left / 1e6:.1f} MB stay"
    )
    if plan.left > plan.quota:
        lines.append(f"that is above the quota of {plan.quota / 1e6:.1f} MB; the rest is needed")
    if not dry_run and plan.items:
        if not yes:
            click.echo("\n".join(lines), err=True)
            click.confirm("Remove these?", abort=True, err=True)
        clean_up(store, plan)
    values = {
        "used": plan.used,
        "freed": plan.freed,
        "left": plan.left,
        "removed": not dry_run,
        "items": [{"path": str(i.path), "bytes": i.bytes, "why": i.why} for i in plan.items],
    }
    print_result(values, "\n".join(lines), as_json)
