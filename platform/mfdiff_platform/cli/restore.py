"""`mfdiff-platform restore`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mfdiff_platform.cli.bids_app import BidsCommand, label_option, pet_filter_option
from mfdiff_platform.cli.common import common, open_store, print_result, seed_option

if TYPE_CHECKING:
    from mfdiff_platform.restoration import Restorer

File = click.Path(path_type=Path, dir_okay=False)
Folder = click.Path(path_type=Path, file_okay=False)
DEFAULT = "nifti"


class RestoreGroup(click.Group):
    """A group whose first form needs no name: ``restore --model ... --pet ... --mr ...``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the first form before options that come without one."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group("restore", cls=RestoreGroup)
def command() -> None:
    """Restore scans with a trained model: NIfTI files, a BIDS dataset, DICOM folders.

    The result lies on the PET's own grid and in its own units. The MR is registered to the PET.

    \b
    Examples:
      mfdiff-platform restore --model mfdiff-ood3@candidate \\
          --pet lpet.nii.gz --mr t1.nii.gz --out spet.nii.gz
      mfdiff-platform restore bids study derivatives participant \\
          --participant-label 01 --model mfdiff-ood3@champion
      mfdiff-platform restore dicom --pet PT --mr MR --out result --model mfdiff-ood3@champion
    """


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of all three forms."""
    function = seed_option(common(function))
    for option in reversed(
        (
            click.option(
                "--model",
                "reference",
                required=True,
                help="mfdiff-DOMAIN@candidate, mfdiff-DOMAIN/3, an exported file or a bundle.",
            ),
            click.option(
                "--samples",
                type=click.IntRange(min=1),
                help="Samples to average; two or more write their standard deviation too.",
            ),
            click.option("--no-register", is_flag=True, help="The MR lies on the PET already."),
            click.option("--strict", is_flag=True, help="Refuse scans unlike the training data."),
            click.option("--overwrite", is_flag=True, help="Replace what was written before."),
        )
    ):
        function = option(function)
    return function


@command.command("nifti")
@click.option("--pet", type=File, required=True, help="Low-dose PET, NIfTI.")
@click.option("--mr", type=File, required=True, help="T1 MR of the same head, NIfTI.")
@click.option("--out", type=File, required=True, help="Restored PET, .nii or .nii.gz.")
@_options
def nifti(pet: Path, mr: Path, out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Restore one scan: a NIfTI on the PET's own grid, in the PET's own units.

    A page with views, activity and warnings is written beside it.

    \b
    Example:
      mfdiff-platform restore nifti --model mfdiff-ood3@candidate \\
          --pet lpet.nii.gz --mr t1.nii.gz --out spet.nii.gz
    """
    if not out.name.endswith((".nii", ".nii.gz")):
        raise click.BadParameter(f"{out.name}: the name must end with .nii or .nii.gz")
    if out.exists() and not overwrite:
        raise click.UsageError(f"{out} exists; give --overwrite to replace it")
    from mfdiff_platform.restoration import restore_files

    done = restore_files(pet, mr, out, _restore_options(**options))
    _print({"out": str(out), **done.summary()}, as_json)


@command.command("bids", cls=BidsCommand)
@click.argument("bids_dir", type=Folder)
@click.argument("out_dir", type=Folder)
@click.argument("level", type=click.Choice(["participant"]))
@label_option
@pet_filter_option
@click.option("--window", metavar="START:END", help="Frames of a dynamic PET to average, seconds.")
@_options
def bids(
    bids_dir: Path,
    out_dir: Path,
    level: str,
    labels: tuple[str, ...],
    pet_filter: str,
    window: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Restore participants of a BIDS dataset into BIDS derivatives, with a page each.

    Finished participants are skipped; one that cannot be used does not stop the others.

    \b
    Example:
      mfdiff-platform restore bids study derivatives participant \\
          --participant-label 01 02 --model mfdiff-ood3@champion --window 2692:2708
    """
    from mfdiff_platform.errors import PartialError
    from mfdiff_platform.restore_bids import restore_bids
    from mfdiff_platform.time_window import parse_window

    span = parse_window(window) if window else None
    restorer = _restorer(**options)
    found = restore_bids(
        bids_dir,
        out_dir,
        restorer,
        asked=labels,
        window=span,
        pet_filter=pet_filter,
        overwrite=overwrite,
    )
    if not found.done and len(found.refused) == 1:
        raise next(iter(found.refused.values()))
    values = {
        "out": str(out_dir),
        "restored": [{"scan": d.stem, "skipped": d.skipped, **d.summary} for d in found.done],
        "refused": {name: fault.code for name, fault in found.refused.items()},
    }
    lines = [f"{d.stem}: {_line(d.summary, d.skipped)}" for d in found.done]
    print_result(values, "\n".join([*lines, f"{len(lines)} scans in {out_dir}"]), as_json)
    if found.refused:
        names = "; ".join(f"{name} [{fault.code}]" for name, fault in found.refused.items())
        raise PartialError(f"{len(found.refused)} participant(s) left out: {names}")


@command.command("dicom")
@click.option("--pet", type=Folder, required=True, help="Folder with the low-dose PT series.")
@click.option("--mr", type=Folder, required=True, help="Folder with the T1 MR series.")
@click.option("--out", type=Folder, required=True, help="Folder for the result.")
@_options
def dicom(pet: Path, mr: Path, out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Restore a PT series into a derived series of the same study, with a page.

    The derived series keeps its patient, as it must; nothing else that is written names one.

    \b
    Example:
      mfdiff-platform restore dicom --model mfdiff-ood3@champion \\
          --pet export/PT --mr export/MR --out result
    """
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise click.UsageError(f"{out} is not empty; give --overwrite to replace its result")
    from mfdiff_platform.restore_dicom import restore_dicom
    from mfdiff_platform.site_salt import site_salt
    from mfdiff_platform.workspace import open_workspace

    salt = site_salt(open_workspace(options["workspace"]).root)
    done, subject = restore_dicom(pet, mr, out, _restorer(**options), salt)
    _print({"out": str(out), "subject": subject, **done.summary()}, as_json)


def _restorer(**options: Any) -> Restorer:
    from mfdiff_platform.restoration import Restorer

    return Restorer(_restore_options(**options))


def _restore_options(
    reference: str,
    samples: int | None,
    no_register: bool,
    strict: bool,
    seed: int,
    workspace: Path | None,
) -> Any:
    from mfdiff_platform.restoration import RestoreOptions
    from mfdiff_platform.workspace import open_workspace

    bundle = Path(reference)
    if bundle.is_file():
        from mfdiff_platform.model_archive import unpacked_bundle

        bundle = unpacked_bundle(open_workspace(workspace), bundle)
    elif not bundle.is_dir():
        from mfdiff_platform.registry import SiteModels

        bundle = SiteModels(open_store(open_workspace(workspace))).resolve(reference)
    return RestoreOptions(
        model=bundle, seed=seed, samples=samples, register=not no_register, strict=strict
    )


def _print(values: dict[str, Any], as_json: bool) -> None:
    remarks = [*values["warnings"], *values["notes"]]
    print_result(values, "\n".join([values["out"], _line(values), *remarks]), as_json)


def _line(summary: Any, skipped: bool = False) -> str:
    """What was done to a scan, in one line."""
    facts = [f"{summary['slices']} slices restored"]
    facts.append(f"total activity {summary['activity_ratio']:.3f} of the input's")
    if summary["moved_mm"] is not None:
        facts.append(f"MR moved by {summary['moved_mm']:.1f} mm")
    return "; ".join(["finished before", *facts] if skipped else facts)
