"""`mfdiff-platform compare`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import (
    common,
    open_store,
    parse_settings,
    print_result,
    seed_option,
    settings_option,
)

TABLES = tuple(f"table{number}" for number in range(1, 8))
Folder = click.Path(path_type=Path, file_okay=False)


@click.command("compare")
@click.argument("table", type=click.Choice(TABLES), required=False)
@click.option(
    "--models",
    metavar="A,B",
    help="Models of your choice instead of a table, the last of which is tested against the others:"
    " mfdiff, m-unet, fb-sem, ea-gan, hi-net, cncl, csrd, unet, munet, gmunet, dmunet, cmunet.",
)
@click.option("--domain", help="With --models: where to compare.  [default: phantom]")
@click.option("--data", type=Folder, help="Its dataset folder.  [default: WORKSPACE/data/DOMAIN]")
@click.option(
    "--phantom",
    type=Folder,
    help="Dataset of the external stage.  [default: WORKSPACE/data/phantom]",
)
@click.option(
    "--preset", default="small", show_default=True, help="tiny, quick, small, base or paper."
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    help="Of the external stage.  [default: 400; 50000 at base and paper]",
)
@click.option(
    "--adapt-iterations",
    type=click.IntRange(min=1),
    help="Of the internal stage.  [default: two fifths of --iterations, as in the paper]",
)
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--samples",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Samples of the rows that take a mean; 1 leaves these rows out.",
)
@click.option(
    "--test-slices",
    type=click.IntRange(min=1),
    help="At most so many test slices of each setting, evenly spread.  [default: 64; all at"
    " base and paper]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of all trainings; restoration is fp32.",
)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    help="Models trained at a time, each in a process of its own; 1 stays in this one.  [default:"
    " one per GPU, or per CPU core]",
)
@settings_option
@seed_option
@common
def command(
    table: str | None,
    models: str | None,
    domain: str | None,
    data: Path | None,
    phantom: Path | None,
    preset: str,
    iterations: int | None,
    adapt_iterations: int | None,
    batch_size: int,
    samples: int,
    test_slices: int | None,
    precision: str,
    concurrent: int | None,
    settings: tuple[str, ...],
    seed: int,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Compare models on test subjects: the paper's Tables 1 to 7, or models of your choice.

    Every row is trained with the same data, iterations, learning rate and batch size. What is
    trained or restored already is taken as it is, so the same command again resumes. Written are
    table.md, .csv, .tex and .json and figures. Settings are lr, warmup, schedule, weight_decay,
    layer_decay, ema and augment; below base the stage after the phantoms takes half the lr.

    \b
    Examples:
      mfdiff-platform compare table1 --preset small --iterations 1000
      mfdiff-platform compare table2 --preset base
      mfdiff-platform compare --models m-unet,mfdiff --domain leeds --set lr=5e-4
    """
    if (table is None) == (models is None):
        raise click.UsageError("give either a table, such as table1, or --models A,B")
    if table is not None and domain is not None:
        raise click.UsageError("--domain goes with --models; a table has its own")
    from mfdiff_core.networks.presets import NETWORK_PRESETS
    from mfdiff_platform import compare_plan
    from mfdiff_platform.compare import compare
    from mfdiff_platform.workspace import open_workspace

    if preset not in NETWORK_PRESETS:
        raise click.UsageError(f"--preset must be one of {', '.join(NETWORK_PRESETS)}")
    chosen = (
        compare_plan.own(_names(models or ""), domain or compare_plan.PHANTOM, samples)
        if table is None
        else compare_plan.table(table, samples)
    )
    iterations = iterations or compare_plan.default_iterations(preset)
    recipe = compare_plan.default_recipe(preset, iterations, batch_size)
    scale = compare_plan.CompareScale(
        size=preset,
        recipe=compare_plan.with_settings(recipe, parse_settings(settings)),
        adapt_iterations=adapt_iterations or max(1, 2 * iterations // 5),
        adapt_rate=compare_plan.default_adapt_rate(preset),
        samples=samples,
        test_slices=test_slices or compare_plan.default_test_slices(preset),
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
    )
    place = open_workspace(workspace)
    done = compare(
        place,
        open_store(place),
        chosen,
        scale,
        data=data,
        phantom=phantom,
        concurrent=concurrent,
    )
    values = {"folder": str(done.folder), "table": str(done.folder / "table.json")}
    print_result(values, f"{done.markdown}\n{done.folder}", as_json)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
