"""`mfdiff-platform restore`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import common, open_store, print_result, seed_option

File = click.Path(path_type=Path, dir_okay=False)


@click.command("restore")
@click.option(
    "--model",
    "reference",
    required=True,
    help="mfdiff-DOMAIN@candidate, mfdiff-DOMAIN/3, or a bundle folder.",
)
@click.option("--pet", type=File, required=True, help="Low-dose PET, NIfTI.")
@click.option("--mr", type=File, required=True, help="T1 MR of the same head, NIfTI.")
@click.option("--out", type=File, required=True, help="Restored PET, .nii or .nii.gz.")
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@seed_option
@common
def command(
    reference: str,
    pet: Path,
    mr: Path,
    out: Path,
    overwrite: bool,
    seed: int,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Restore one scan: a NIfTI on the PET's own grid, in the PET's own units.

    The MR must be registered to the PET; it is resampled to the PET's grid by the affines.

    \b
    Example:
      mfdiff-platform restore --model mfdiff-ood3@candidate \\
          --pet lpet.nii.gz --mr t1.nii.gz --out spet.nii.gz
    """
    if not out.name.endswith((".nii", ".nii.gz")):
        raise click.BadParameter(f"{out.name}: the name must end with .nii or .nii.gz")
    if out.exists() and not overwrite:
        raise click.UsageError(f"{out} exists; give --overwrite to replace it")
    from mfdiff_platform.restoration import restore_files
    from mfdiff_platform.workspace import open_workspace

    bundle = Path(reference)
    if not bundle.is_dir():
        from mfdiff_platform.registry import SiteModels

        bundle = SiteModels(open_store(open_workspace(workspace))).resolve(reference)
    done = restore_files(bundle, pet, mr, out, seed)
    values = {
        "out": str(out),
        "slices": done.slices,
        "activity_ratio": done.activity_ratio,
        "notes": list(done.notes),
    }
    facts = f"{done.slices} slices restored"
    activity = f"total activity {done.activity_ratio:.3f} of the input's"
    print_result(values, "\n".join([str(out), f"{facts}; {activity}", *done.notes]), as_json)
