"""`mfdiff-platform simulate`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import common, print_result, seed_option, table


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
@click.option("--quick", is_flag=True, help="128x128 slices for a laptop instead of 192x192.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Dataset folder.  [default: WORKSPACE/data/DOMAIN]",
)
@seed_option
@common
def command(
    domain: str,
    subjects: int | None,
    brainweb: Path | None,
    labels: tuple[Path, ...],
    label_map: Path | None,
    sinograms: bool,
    quick: bool,
    out: Path | None,
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

    A label map gives each value of the file a tissue, for example "{1: csf, 2: grey, 3: white}".
    """
    from mfdiff_platform.label_map import read_label_map
    from mfdiff_platform.simulate import SimulationRequest, simulate
    from mfdiff_platform.workspace import open_workspace

    request = SimulationRequest(
        domain, quick, subjects, brainweb, labels, read_label_map(label_map), seed, sinograms
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
    row = (f"{lpet['psnr']:.2f}", f"{lpet['ssim']:.3f}", f"{lpet['nmse']:.3f}")
    text = table(("each image by its own maximum", "PSNR", "SSIM", "NMSE"), [("LPET", *row)])
    facts = f"{manifest.rows} slices of {len(manifest.subjects)} subjects in {folder}"
    if len(manifest.subjects) < 3:
        facts += "\nno split: training needs 3 subjects, to train on, to choose by and to test on"
    print_result(values, f"{text}\n\n{facts}", as_json)
