"""`mfdiff-platform data`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import common, print_result, table

Folder = click.Path(path_type=Path, file_okay=False)


@click.group("data")
def command() -> None:
    """Look at a dataset folder and check it.

    \b
    Examples:
      mfdiff-platform data check mfdiff-workspace/data/ood3
      mfdiff-platform data show mfdiff-workspace/data/ood3
    """


@command.command("check")
@click.argument("folder", type=Folder)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def check(folder: Path, as_json: bool) -> None:
    """Verify hashes, schema, values and the split; exit code 4 if anything is wrong.

    \b
    Example:
      mfdiff-platform data check mfdiff-workspace/data/ood3
    """
    from dataclasses import asdict

    from mfdiff_core.data.check import check_dataset
    from mfdiff_core.errors import DataError

    findings = check_dataset(folder)
    errors = sum(finding.severity == "error" for finding in findings)
    lines = [f"{f.severity}  {f.code}  {f.where}: {f.message}" for f in findings]
    summary = f"{errors} error(s), {len(findings) - errors} warning(s) in {folder}"
    values = {"errors": errors, "findings": [asdict(finding) for finding in findings]}
    print_result(values, "\n".join([*lines, summary]), as_json)
    if errors:
        raise DataError(f"{folder} is not fit for use: {errors} error(s); make it again")


@command.command("show")
@click.argument("folder", type=Folder)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Contact sheet to write, the histograms go beside it."
    "  [default: WORKSPACE/pictures/data-DOMAIN.png]",
)
@common
def show(folder: Path, picture: Path | None, workspace: Path | None, as_json: bool) -> None:
    """Summarise a dataset; write a contact sheet (T1, LPET, SPET) and histograms per setting.

    \b
    Example:
      mfdiff-platform data show mfdiff-workspace/data/ood3
    """
    from mfdiff_core.data.dataset import open_contents
    from mfdiff_core.data.manifest import SPLIT
    from mfdiff_core.data.splits import PARTS, load_split
    from mfdiff_platform.dataset_summary import (
        summarise_dataset,
        write_contact_sheet,
        write_histograms,
    )
    from mfdiff_platform.workspace import open_workspace

    dataset = open_contents(folder)
    split = load_split(folder / SPLIT) if (folder / SPLIT).is_file() else None
    domain = dataset.manifest.domain
    out = picture or open_workspace(workspace).picture(f"data-{domain}.png")
    histograms = out.with_name(f"{out.stem}-histograms.png")
    write_contact_sheet(dataset, out)
    write_histograms(dataset, histograms)
    summary = summarise_dataset(dataset)
    contents = table(
        ("setting", "slices", "subjects", "noise %", "grey/white", "LPET/SPET"),
        [
            (
                row.setting,
                str(row.slices),
                str(row.subjects),
                f"{100 * row.noise:.1f}",
                f"{row.grey_white:.2f}",
                f"{row.level:.2f}",
            )
            for row in summary
        ],
    )
    metrics = table(
        ("LPET against SPET", "PSNR", "SSIM", "NMSE", "by own maxima (paper)", "SSIM", "NMSE"),
        [
            (
                row.setting,
                f"{row.psnr:.2f}",
                f"{row.ssim:.3f}",
                f"{row.nmse:.3f}",
                f"{row.paper_psnr:.2f}",
                f"{row.paper_ssim:.3f}",
                f"{row.paper_nmse:.3f}",
            )
            for row in summary
        ],
    )
    values = {
        "domain": domain,
        "fingerprint": dataset.manifest.fingerprint,
        "split": {part: split.subjects(part) for part in PARTS} if split else {},
        "settings": [row._asdict() for row in summary],
        "picture": str(out),
        "histograms": str(histograms),
    }
    parts = [f"{part} {len(split.subjects(part))}" for part in PARTS] if split else ["no split"]
    people = f"{len(dataset.manifest.subjects)} subjects ({', '.join(parts)})"
    text = f"{domain}: {dataset.manifest.rows} slices of {people}"
    pictures = f"{out}\n{histograms}"
    print_result(values, "\n\n".join((text, contents, metrics, pictures)), as_json)
