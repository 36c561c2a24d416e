"""`mfdiff-platform simulate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mfdiff_platform.cli.common import (
    common,
    parse_settings,
    print_result,
    seed_option,
    settings_option,
    table,
)

if TYPE_CHECKING:
    from mfdiff_core.data.intensity import Intensity
    from mfdiff_core.physics.simulate import View


@click.command("simulate")
@click.option("--domain", required=True, help="phantom, ood1, ood2 or ood3.")
@click.option(
    "--subjects",
    type=click.IntRange(min=1),
    help="How many people.  [default: the recipe's number, or every BrainWeb file]",
)
@click.option(
    "--brainweb",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of BrainWeb label files instead of the embedded anatomy.",
)
@click.option(
    "--labels",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A segmentation (NIfTI) as a phantom; several times for several people.",
)
@click.option(
    "--label-map",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML that gives each label value a tissue name.",
)
@click.option(
    "--sinograms",
    is_flag=True,
    help="Store each LPET's sinogram too (0.25 MB per slice), which FB-SEM needs; phantom only.",
)
@click.option(
    "--view",
    type=click.Choice(["headbox", "crop192"]),
    default="headbox",
    show_default=True,
    help="Of the phantoms: the central 267 mm on 192 pixels, or 192 of the scanner's own.",
)
@click.option(
    "--intensity",
    type=click.Choice(["lpet", "own_maximum"]),
    default="lpet",
    show_default=True,
    help="What slices are divided by: one scale from the LPET, or each image by its own maximum"
    " (the paper's reading; no restored image then has its true scale).",
)
@click.option("--quick", is_flag=True, help="128x128 slices for a laptop instead of 192x192.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Dataset folder.  [default: WORKSPACE/data/DOMAIN]",
)
@settings_option
@seed_option
@common
def command(
    domain: str,
    subjects: int | None,
    brainweb: Path | None,
    labels: tuple[Path, ...],
    label_map: Path | None,
    sinograms: bool,
    view: View,
    intensity: Intensity,
    quick: bool,
    out: Path | None,
    settings: tuple[str, ...],
    seed: int,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Make a dataset: phantom to projections to OSEM images to slices on disk.

    The three ood domains are simulated stand-ins for real ones. Running the same command again
    keeps what is finished.

    \b
    Examples:
      mfdiff-platform simulate --domain phantom
      mfdiff-platform simulate --domain ood3 --subjects 8 --quick
      mfdiff-platform simulate --domain phantom --brainweb ~/.brainweb
      mfdiff-platform simulate --domain phantom --labels seg.nii.gz --label-map tissues.yaml
      mfdiff-platform simulate --domain phantom --set scanner.counts_divisor=127 \\
          --set settings.0.standard.recon.num_subsets=14 --out phantom-127

    A label map gives each value of the file a tissue, for example "{1: csf, 2: grey, 3: white}";
    values that are to be air are called background, 0 is unless it is named. Every setting of a
    recipe stands in the manifest under origin.config and can be changed by --set.
    """
    from mfdiff_core.data.splits import LEAST_SUBJECTS
    from mfdiff_platform.label_map import read_label_map
    from mfdiff_platform.simulate import SimulationRequest, simulate
    from mfdiff_platform.workspace import open_workspace

    request = SimulationRequest(
        domain,
        quick,
        subjects,
        brainweb,
        labels,
        read_label_map(label_map),
        seed,
        sinograms,
        view,
        parse_settings(settings),
        intensity,
    )
    folder = out.absolute() if out else open_workspace(workspace).dataset(domain)
    manifest = simulate(request, folder)
    lpet = manifest.lpet
    values = {
        "lpet": lpet,
        "slices": manifest.rows,
        "subjects": len(manifest.subjects),
        "out": str(folder),
    }
    rows = {"each by its own maximum (paper)": lpet, "quantitative": manifest.lpet_quantitative}
    text = table(
        ("LPET against SPET", "PSNR", "SSIM", "NMSE"),
        [(name, *_cells(row)) for name, row in rows.items() if row],
    )
    facts = f"{manifest.rows} slices of {len(manifest.subjects)} subjects in {folder}"
    if len(manifest.subjects) < LEAST_SUBJECTS:
        facts += (
            f"\nno split: training needs {LEAST_SUBJECTS} subjects, to train on, to choose by and"
            " to test on"
        )
    print_result(values, f"{text}\n\n{facts}", as_json)


def _cells(row: Mapping[str, float]) -> tuple[str, str, str]:
    return f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['nmse']:.3f}"
