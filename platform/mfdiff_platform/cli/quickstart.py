"""`mfdiff-platform quickstart`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import (
    common,
    open_store,
    print_result,
    seed_option,
    this_program,
)


@click.command("quickstart")
@seed_option
@common
def command(seed: int, workspace: Path | None, as_json: bool) -> None:
    """The whole chain on simulated data: a few minutes on two CPU cores.

    Simulates small phantoms and three stand-in domains, pretrains with two workers, adapts to
    ood3, registers the best trial, restores a held-out scan, and says where everything is.

    \b
    Example:
      mfdiff-platform quickstart
    """
    from mfdiff_platform.cli.results import rows_json, rows_text
    from mfdiff_platform.quickstart import quickstart
    from mfdiff_platform.study_record import EXPERIMENT
    from mfdiff_platform.tracking import ui_link
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    store = open_store(place)
    result = quickstart(place, store, seed)
    adapted = result.adapted
    values = {
        "rows": rows_json(adapted.outcome),
        "model": adapted.model,
        "report": str(adapted.report),
        "seconds": round(result.seconds, 1),
    }
    program = this_program()
    link, scan = ui_link(store.get_or_create_experiment(EXPERIMENT)), result.scan
    text = f"""{rows_text(adapted.outcome)}

site model     {adapted.model} (candidate)
report         {adapted.report}
picture        {result.picture}
restored scan  {scan / "restored.nii.gz"}

MLflow         {program} ui --workspace {place.root}
               then {link}
Ray dashboard  {result.dashboard or "not available"} while a command runs;
               its token: {program.with_name("ray")} get-auth-token
Next           {program} restore --model mfdiff-ood3@candidate \\
                   --pet {scan / "lpet.nii.gz"} --mr {scan / "t1.nii.gz"} \\
                   --workspace {place.root} --out spet.nii.gz

{result.seconds:.0f} s. ood1, ood2 and ood3 are simulated stand-ins.
Research use only; not a medical device."""
    print_result(values, text, as_json)
