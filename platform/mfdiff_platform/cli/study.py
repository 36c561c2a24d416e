"""`mfdiff-platform study`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import common, open_store, print_result

ArchiveFile = click.Path(path_type=Path, dir_okay=False)


@click.group("study")
def command() -> None:
    """Studies: see what there is, go on with one, take one to another site, free their disk.

    \b
    Examples:
      mfdiff-platform study list
      mfdiff-platform study show ood3
      mfdiff-platform study resume ood3
      mfdiff-platform study export ood3 --out ood3.zip
      mfdiff-platform study import ood3.zip
    """


@command.command("list")
@common
def list_(workspace: Path | None, as_json: bool) -> None:
    """One line per study: how far it is, and what it has won.

    \b
    Example:
      mfdiff-platform study list
    """
    from dataclasses import asdict

    from mfdiff_platform.cli.results import overviews_text
    from mfdiff_platform.study_overview import overviews
    from mfdiff_platform.workspace import open_workspace

    found = overviews(open_workspace(workspace).root / "studies")
    print_result({"studies": [asdict(one) for one in found]}, overviews_text(found), as_json)


@command.command("show")
@click.argument("name")
@common
def show(name: str, workspace: Path | None, as_json: bool) -> None:
    """A study's trials, its table, and where its report is.

    \b
    Example:
      mfdiff-platform study show ood3
    """
    from mfdiff_platform.cli.results import study_json, study_text
    from mfdiff_platform.study import load_study
    from mfdiff_platform.workspace import open_workspace

    study = load_study(open_workspace(workspace).study(name))
    print_result(study_json(study), study_text(study), as_json)


@command.command("resume")
@click.argument("name")
@click.option("--trials", type=click.IntRange(min=1), help="In all.  [default: as asked for last]")
@click.option("--concurrent", type=click.IntRange(min=1), help="Trials at a time.")
@click.option("--max-failures", type=click.IntRange(min=0), help="Stop when more have failed.")
@common
def resume(
    name: str,
    trials: int | None,
    concurrent: int | None,
    max_failures: int | None,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Go on with a study, with all that its last command was given.

    \b
    Examples:
      mfdiff-platform study resume ood3
      mfdiff-platform study resume ood3 --trials 80
    """
    from mfdiff_platform.adapt import resume_study
    from mfdiff_platform.cli.results import adapted_json, adapted_text
    from mfdiff_platform.study import load_study
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    study = load_study(place.study(name))
    given = {"trials": trials, "concurrent": concurrent, "max_failures": max_failures}
    changes = {what: value for what, value in given.items() if value is not None}
    adapted = resume_study(study, open_store(place), changes)
    print_result(adapted_json(adapted), adapted_text(adapted), as_json)


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
    """Bring in an exported study: folder, runs and versions, which await the gates as candidates.

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
