"""`mfdiff-platform pretrain`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from mfdiff_platform.cli.common import (
    MODEL_NAMES,
    common,
    open_store,
    parse_settings,
    print_result,
    seed_option,
    settings_option,
)


@click.command("pretrain")
@click.option(
    "--model",
    "system",
    type=click.Choice(MODEL_NAMES),
    default="mfdiff",
    show_default=True,
    help="What to train.",
)
@click.option("--gpus", type=click.IntRange(min=1), help="Workers, one GPU each.")
@click.option("--cpus", type=click.IntRange(min=1), help="Workers, one CPU each.  [default: 1]")
@click.option(
    "--preset", default="base", show_default=True, help="tiny, quick, small, base or paper."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Dataset folder.  [default: WORKSPACE/data/phantom]",
)
@click.option("--iterations", default=50_000, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Slices per step over all workers.  [default: 4, or the next multiple of the workers]",
)
@click.option("--name", help="Name of the run; the same name resumes.  [default: [MODEL-]PRESET]")
@settings_option
@seed_option
@common
def command(
    system: str,
    gpus: int | None,
    cpus: int | None,
    preset: str,
    data: Path | None,
    iterations: int,
    batch_size: int | None,
    name: str | None,
    settings: tuple[str, ...],
    seed: int,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Train on phantoms: the external stage. The same command again resumes.

    Settings are those of the request, for example train.optim.lr, train.precision,
    model.sampler.num_evaluations, model.network.unet.channels or augment.

    \b
    Examples:
      mfdiff-platform pretrain --gpus 8
      mfdiff-platform pretrain --cpus 2 --preset quick --iterations 500 --batch-size 8
      mfdiff-platform pretrain --gpus 1 --model m-unet
      mfdiff-platform pretrain --gpus 1 --set train.precision=bf16 --set train.optim.lr=2e-4
    """
    if gpus and cpus:
        raise click.UsageError("give either --gpus or --cpus: a worker runs on one or the other")
    from mfdiff_core.config import override
    from mfdiff_core.model import preset as model_preset
    from mfdiff_core.training.loop import TrainConfig
    from mfdiff_platform.pretrain import PretrainRequest, Workers, pretrain
    from mfdiff_platform.workspace import open_workspace

    workers = Workers(count=gpus or cpus or 1, on_gpu=gpus is not None)
    space = open_workspace(workspace)
    every = max(1, min(1000, iterations // 5))
    request = PretrainRequest(
        name=name or (preset if system == "mfdiff" else f"{system}-{preset}"),
        data=str((data or space.dataset("phantom")).absolute()),
        model=model_preset(preset, system),
        train=TrainConfig(
            iterations=iterations, seed=seed, validate_every=every, snapshot_every=every
        ),
        batch_size=batch_size or math.ceil(4 / workers.count) * workers.count,
    )
    request = override(request, parse_settings(settings))
    bundle = pretrain(space, open_store(space), request, workers)
    psnr = bundle.provenance.metrics["psnr"]
    values = {"bundle": str(bundle.folder), "psnr": psnr, "iterations": request.train.iterations}
    print_result(values, f"{bundle.folder}\nbest validation PSNR {psnr:.2f} dB", as_json)
