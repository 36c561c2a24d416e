"""`mfdiff-platform ingest`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mfdiff_platform.cli.bids_app import BidsCommand, label_option, pet_filter_option
from mfdiff_platform.cli.common import (
    common,
    parse_settings,
    print_result,
    seed_option,
    settings_option,
)

if TYPE_CHECKING:
    from mfdiff_platform.ingest import Ingested
    from mfdiff_platform.ingest_sources import Person

Folder = click.Path(path_type=Path, file_okay=False)


@click.group("ingest")
def command() -> None:
    """Make a dataset from a site's own scans: BIDS, NIfTI pairs or DICOM.

    It is used like a simulated one; subjects get pseudonyms with the workspace's salt.

    \b
    Examples:
      mfdiff-platform ingest bids ds003397 --domain ood3 --preset ood3
      mfdiff-platform ingest nifti pairs.csv --domain leeds
      mfdiff-platform ingest dicom export --domain leeds
    """


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of all three forms."""
    function = settings_option(seed_option(common(function)))
    for option in reversed(
        (
            click.option("--domain", required=True, help="Name of the domain to make."),
            click.option(
                "--planes", help="Planes to cut, FIRST:STOP:STEP.  [default: the wide head]"
            ),
            click.option(
                "--no-register", is_flag=True, help="PET and MR lie on each other already."
            ),
            click.option(
                "--out", type=Folder, help="Dataset folder.  [default: WORKSPACE/data/DOMAIN]"
            ),
        )
    ):
        function = option(function)
    return function


def _dynamic(function: Callable[..., None]) -> Callable[..., None]:
    """Options of the forms that build pairs from frames."""
    for option in reversed(
        (
            click.option(
                "--window", metavar="START:END", help="SPET, seconds.  [default: 1800:3600]"
            ),
            click.option(
                "--lpet",
                multiple=True,
                metavar="NAME=SECONDS",
                help="An LPET to build; several times.  [default: 16s=16, 2min=120]",
            ),
            click.option("--without-dose", is_flag=True, help="Accept scans that state no dose."),
        )
    ):
        function = option(function)
    return function


@command.command("bids", cls=BidsCommand)
@click.argument("bids_dir", type=Folder)
@label_option
@pet_filter_option
@click.option(
    "--preset",
    type=click.Choice(["ood1", "ood2", "ood3"]),
    help="The paper's settings: ood1 and ood2 for ds002898, ood3 for ds003397.",
)
@_dynamic
@_options
def bids(
    bids_dir: Path, labels: tuple[str, ...], pet_filter: str, preset: str | None, **options: Any
) -> None:
    """T1 and dynamic PET of a BIDS dataset, frames chosen by time.

    \b
    Examples:
      mfdiff-platform ingest bids ds002898 --domain ood1 --preset ood1
      mfdiff-platform ingest bids study --domain leeds --participant-label 01 02 \\
          --window 1800:3600 --lpet 16s=16
    """
    from mfdiff_platform.ingest_sources import bids_people

    _run("bids", lambda: bids_people(bids_dir, labels, pet_filter), preset, **options)


@command.command("nifti")
@click.argument("table", type=click.Path(path_type=Path, dir_okay=False))
@_options
def nifti(table: Path, **options: Any) -> None:
    """Pairs listed in a CSV file with columns subject, setting, lpet, mr, spet (and dose_mbq).

    Paths are relative to the file's folder.

    \b
    Example:
      mfdiff-platform ingest nifti pairs.csv --domain leeds
    """
    from mfdiff_platform.ingest_sources import table_people

    _run("nifti", lambda: table_people(table), None, **options)


@command.command("dicom")
@click.argument("dicom_dir", type=Folder)
@_dynamic
@_options
def dicom(dicom_dir: Path, **options: Any) -> None:
    """PT and MR series below a folder, whatever the names of its files.

    A patient needs a T1 and either one dynamic PET, cut into windows, or a short and a long PET
    of one study, which are LPET and SPET.

    \b
    Example:
      mfdiff-platform ingest dicom export --domain leeds
    """
    from mfdiff_platform.ingest_sources import dicom_people

    _run("dicom", lambda: dicom_people(dicom_dir), None, **options)


def _run(
    kind: str,
    people: Callable[[], list[Person]],
    preset: str | None,
    *,
    domain: str,
    out: Path | None,
    seed: int,
    workspace: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    from mfdiff_core.config import override
    from mfdiff_core.scans.pairing_config import PRESETS, PairingConfig
    from mfdiff_platform.ingest import ingest
    from mfdiff_platform.site_salt import site_salt
    from mfdiff_platform.workspace import open_workspace

    config = override(PRESETS[preset] if preset else PairingConfig(), _changes(**options))
    place = open_workspace(workspace)
    folder = out.absolute() if out else place.dataset(domain)
    salt = site_salt(place.root)
    done = ingest(
        people(), domain=domain, kind=kind, config=config, out=folder, salt=salt, seed=seed
    )
    _report(done, folder, as_json)


def _changes(
    settings: tuple[str, ...],
    planes: str | None,
    no_register: bool,
    window: str | None = None,
    lpet: tuple[str, ...] = (),
    without_dose: bool = False,
) -> dict[str, Any]:
    """Options as changes to a `PairingConfig`."""
    from mfdiff_platform.time_window import parse_window

    changes = parse_settings(settings)
    if planes:
        changes["planes"] = planes
    if window:
        span = parse_window(window)
        changes |= {"start_s": span.start_s, "end_s": span.end_s}
    if lpet:
        changes["lpet_s"] = dict(_seconds(item) for item in lpet)
    if no_register:
        changes["register"] = False
    if without_dose:
        changes["without_dose"] = True
    return changes


def _seconds(item: str) -> tuple[str, float]:
    name, _, value = item.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.UsageError(f"--lpet takes NAME=SECONDS, got {item!r}") from None


def _report(done: Ingested, folder: Path, as_json: bool) -> None:
    from mfdiff_platform.errors import PartialError

    manifest = done.manifest
    if manifest is None:
        if len(done.refused) == 1:
            raise done.refused[0].fault
        raise _all_refused(done)
    values = {
        "out": str(folder),
        "slices": manifest.rows,
        "subjects": list(manifest.subjects),
        "settings": list(manifest.settings),
        "pages": str(folder / "qc"),
        "lpet": manifest.lpet,
        "notes": done.notes,
        "refused": [
            {"subject": r.subject, "code": r.fault.code, "sentence": r.fault.sentence}
            for r in done.refused
        ],
    }
    lines = [f"{manifest.rows} slices of {len(manifest.subjects)} subjects in {folder}"]
    lines.append(f"settings {', '.join(manifest.settings)}; look at {folder / 'qc'} before use")
    lines += [f"{subject}: {note}" for subject, notes in done.notes.items() for note in notes]
    if len(manifest.subjects) < 3:
        lines.append("no split: training needs 3 subjects, to train on, choose by and test on")
    print_result(values, "\n".join(lines), as_json)
    if done.refused:
        names = "; ".join(f"{r.name} [{r.fault.code}]" for r in done.refused)
        raise PartialError(f"{len(done.refused)} subject(s) left out: {names}")


def _all_refused(done: Ingested) -> Exception:
    from mfdiff_core.errors import DataError

    names = "; ".join(f"{r.name} [{r.fault.code}]" for r in done.refused)
    return DataError(f"no subject could be used: {names}; docs/bad-input.md explains the codes")
