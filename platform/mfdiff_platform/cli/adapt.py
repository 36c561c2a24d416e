"""`mfdiff-platform adapt`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mfdiff_platform.cli.common import MODEL_NAMES, common, open_store, print_result, seed_option


@click.command("adapt")
@click.option("--domain", required=True, help="ood1, ood2, ood3 or your site's own name.")
@click.option(
    "--trials",
    default="50",
    show_default=True,
    metavar="N|+N",
    help="Trials in all, the reference recipes included; +N adds N to a finished study.",
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
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Train the one recipe of this file instead of searching.",
)
@click.option("--warm-start", default="", metavar="STUDY", help="Try another study's best first.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="psnr, ssim, nmse, bias, slice_seconds or SETTING/psnr; several give a Pareto table, the"
    " first one decides.  [default: psnr]",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(["max", "min"]),
    help="One per metric.  [default: as the metric is better]",
)
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random", "grid"]),
    default="tpe",
    show_default=True,
    help="grid takes every strategy and freeze plan in turn.",
)
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
    type=click.FloatRange(min=0),
    help="GPU share of a trial, or how many GPUs share it; 0 trains on the CPU.",
)
@click.option(
    "--concurrent", type=click.IntRange(min=1), help="Trials at a time.  [default: as many as fit]"
)
@click.option(
    "--trial-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest time of a trial.  [default: 5 times the slowest reference]",
)
@click.option(
    "--max-failures",
    default=10,
    show_default=True,
    type=click.IntRange(min=0),
    help="Stop when more trials than this have failed.",
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Train each finalist with as many seeds.",
)
@click.option(
    "--finalists",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Best trials that are tested beside the references.",
)
@click.option(
    "--validation-slices",
    type=click.IntRange(min=1),
    help="At most so many validation slices of each setting, evenly spread.  [default: all]",
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@seed_option
@common
def command(
    domain: str,
    trials: str,
    name: str | None,
    data: Path | None,
    pretrained: Path | None,
    system: str | None,
    space: Path | None,
    setting: str,
    recipe: Path | None,
    warm_start: str,
    metrics: tuple[str, ...],
    modes: tuple[str, ...],
    sampler: str,
    scheduler: str,
    with_single_stage: bool,
    gpus_per_trial: float,
    concurrent: int | None,
    trial_timeout: float | None,
    max_failures: int,
    seeds: int,
    finalists: int,
    validation_slices: int | None,
    precision: str,
    seed: int,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Search for the recipe that adapts the pretrained model best to a site.

    The paper's own recipes run first, so the result says what the search has won; then, unless
    --sampler or --warm-start says otherwise, the two-stage one at higher rates. The best trial
    becomes candidate of the site model mfdiff-DOMAIN. The same command again resumes.

    \b
    Examples:
      mfdiff-platform adapt --domain ood3 --trials 50
      mfdiff-platform adapt --domain ood3 --setting bolus --name bolus --trials 20
      mfdiff-platform adapt --domain ood3 --trials +20
      mfdiff-platform adapt --domain ood3 --metric psnr --metric bias --name both
      mfdiff-platform adapt --domain leeds --data slices/leeds --gpus-per-trial 0.5
    """
    from mfdiff_platform.adapt import adapt
    from mfdiff_platform.cli.results import adapted_json, adapted_text
    from mfdiff_platform.plan import StudyPlan, plan_study
    from mfdiff_platform.session import SearchScale
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    number = trials.removeprefix("+")
    if not number.isdecimal() or int(number) < 1:
        raise click.UsageError(f"--trials takes a number such as 50 or +20, got {trials!r}")
    if gpus_per_trial > 1 and not gpus_per_trial.is_integer():
        raise click.UsageError(
            f"--gpus-per-trial takes a share such as 0.25, or whole GPUs, got {gpus_per_trial:g}"
        )
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
        validation_slices=validation_slices,
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
        recipe_file=recipe,
        warm_start=warm_start,
        metrics=metrics or ("psnr",),
        modes=modes,
    )
    scale = SearchScale(
        trials=int(number),
        grow=trials.startswith("+"),
        gpus_per_trial=gpus_per_trial,
        concurrent=concurrent,
        trial_timeout_s=trial_timeout,
        max_failures=max_failures,
        seeds=seeds,
        finalists=finalists,
    )
    request = plan_study(place, plan)
    if recipe is not None:
        scale = replace(scale, trials=len(request.references()) + 1, grow=False)
    adapted = adapt(place, open_store(place), request, scale)
    print_result(adapted_json(adapted), adapted_text(adapted), as_json)
