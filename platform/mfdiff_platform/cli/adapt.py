"""`mfdiff-platform adapt`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import MODEL_NAMES, common, open_store, print_result, seed_option


@click.command("adapt")
@click.option("--domain", required=True, help="ood1, ood2, ood3 or your site's own name.")
@click.option(
    "--trials",
    default=50,
    show_default=True,
    type=click.IntRange(min=1),
    help="Trials in all, the reference recipes included; more trials extend a study.",
)
@click.option("--name", help="Name of the study; the same name resumes.  [default: DOMAIN[-MODEL]]")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Dataset folder.  [default: WORKSPACE/data/DOMAIN]",
)
@click.option(
    "--pretrained",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Bundle of the external stage.  [default: the newest in the workspace]",
)
@click.option(
    "--model",
    "system",
    type=click.Choice(MODEL_NAMES),
    help="What to adapt.  [default: mfdiff, or what --pretrained is]",
)
@click.option(
    "--space",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Search space file.  [default: the domain's]",
)
@click.option("--setting", default="", help="Only slices of this setting, such as bolus.")
@click.option("--sampler", type=click.Choice(["tpe", "random"]), default="tpe", show_default=True)
@click.option(
    "--scheduler",
    type=click.Choice(["asha", "none"]),
    default="asha",
    show_default=True,
    help="asha stops poor trials early; none runs all to the end.",
)
@click.option("--with-single-stage", is_flag=True, help="Run Table 7's mixed training too.")
@click.option(
    "--gpus-per-trial",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="GPU share of a trial; 0 trains on the CPU.",
)
@click.option(
    "--concurrent", type=click.IntRange(min=1), help="Trials at a time.  [default: as many as fit]"
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@seed_option
@common
def command(
    domain: str,
    trials: int,
    name: str | None,
    data: Path | None,
    pretrained: Path | None,
    system: str | None,
    space: Path | None,
    setting: str,
    sampler: str,
    scheduler: str,
    with_single_stage: bool,
    gpus_per_trial: float,
    concurrent: int | None,
    precision: str,
    seed: int,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Search for the recipe that adapts the pretrained model best to a site.

    The paper's own recipes run first, so the result says what the search has won. The best trial
    becomes candidate of the site model mfdiff-DOMAIN. The same command again resumes.

    \b
    Examples:
      mfdiff-platform adapt --domain ood3 --trials 50
      mfdiff-platform adapt --domain ood3 --setting bolus --name bolus --trials 20
      mfdiff-platform adapt --domain leeds --data slices/leeds --gpus-per-trial 0.5
    """
    from mfdiff_platform.adapt import SearchScale, adapt
    from mfdiff_platform.cli.results import rows_json, rows_text
    from mfdiff_platform.plan import StudyPlan, plan_study
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    plan = StudyPlan(
        domain=domain,
        name=name or (domain if system in (None, "mfdiff") else f"{domain}-{system}"),
        data=data,
        pretrained=pretrained,
        system=system,
        space_file=space,
        setting=setting,
        with_single_stage=with_single_stage,
        sampler=sampler,  # type: ignore[arg-type]
        scheduler=scheduler,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
    )
    scale = SearchScale(trials=trials, gpus_per_trial=gpus_per_trial, concurrent=concurrent)
    adapted = adapt(place, open_store(place), plan_study(place, plan), scale)
    values = {
        "rows": rows_json(adapted.outcome),
        "model": adapted.model,
        "report": str(adapted.report),
    }
    where = f"model   {adapted.model} (candidate)\nreport  {adapted.report}"
    print_result(values, f"{rows_text(adapted.outcome)}\n\n{where}", as_json)
