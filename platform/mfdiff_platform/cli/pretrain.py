"""`mfdiff-platform pretrain`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mfdiff_platform.cli.common import (
    MODEL_NAMES,
    cluster_option,
    common,
    open_store,
    parse_settings,
    print_result,
    seed_option,
    settings_option,
)

if TYPE_CHECKING:
    from mfdiff_platform.pretrain import PretrainPlan, PretrainRequest
    from mfdiff_platform.workers import Workers
    from mfdiff_platform.workspace import Workspace

MB = 1e6
ITERATIONS = 50_000


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
@click.option(
    "--original-settings",
    "as_published",
    is_flag=True,
    help="Learning rate, schedule, batch and epochs of the --model's authors instead of the"
    " paper's.",
)
@click.option("--iterations", type=click.IntRange(min=1), help="Steps.  [default: 50000]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Slices per step over all workers.  [default: that of the run, else 4 or the next"
    " multiple of the workers]",
)
@click.option("--name", help="Name of the run; the same name resumes.  [default: [MODEL-]PRESET]")
@click.option("--restart", is_flag=True, help="Start over, as NAME-2, NAME-3, ...")
@click.option("--wait", is_flag=True, help="Wait for a cluster's resources instead of ending.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would happen, and end.")
@cluster_option
@settings_option
@seed_option
@common
def command(
    system: str,
    gpus: int | None,
    cpus: int | None,
    preset: str,
    data: Path | None,
    as_published: bool,
    iterations: int | None,
    batch_size: int | None,
    name: str | None,
    restart: bool,
    wait: bool,
    dry_run: bool,
    cluster: Path | None,
    settings: tuple[str, ...],
    seed: int,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Train on phantoms: the external stage. The same command again resumes.

    The batch is that of all workers together and stays the same on any number of them; the
    learning rate belongs to it and follows neither. Ctrl-C, SIGTERM and a file named `stop` in the
    run's folder end a run at a checkpoint; it can go on with another number of workers.

    Settings are those of the request, for example train.optim.lr, train.precision, micro_batch
    (most slices that a worker takes at once), model.sampler.num_evaluations or augment.

    \b
    Examples:
      mfdiff-platform pretrain --gpus 8
      mfdiff-platform pretrain --cpus 2 --preset quick --iterations 500 --batch-size 8
      mfdiff-platform pretrain --gpus 1 --model m-unet
      mfdiff-platform pretrain --gpus 1 --model ea-gan --original-settings
      mfdiff-platform pretrain --gpus 1 --set train.precision=bf16 --set train.optim.lr=2e-4
    """
    if gpus and cpus:
        raise click.UsageError("give either --gpus or --cpus: a worker runs on one or the other")
    parsed = parse_settings(settings)
    from mfdiff_platform.tracking import TrackingStore
    from mfdiff_platform.workers import Workers, check_machine
    from mfdiff_platform.workspace import open_workspace

    # What cannot be is refused before torch is imported, which takes seconds.
    workers = Workers(count=gpus or cpus or 1, on_gpu=gpus is not None)
    check_machine(workers)
    space = open_workspace(workspace)
    TrackingStore(space.root).knock()
    from mfdiff_core.config import override
    from mfdiff_core.data.dataset import open_dataset
    from mfdiff_core.model import preset as model_preset
    from mfdiff_core.training.loop import TrainConfig
    from mfdiff_core.training.optim import OptimConfig
    from mfdiff_core.training.originals import original
    from mfdiff_platform.pretrain import PretrainRequest, begun, pretrain, unused_name

    folder = (data or space.dataset("phantom")).absolute()
    optim = OptimConfig()
    if as_published:
        published = original(system)
        optim, batch_size = published.optim, batch_size or published.batch_size
        iterations = iterations or published.iterations(len(open_dataset(folder).part("train")))
    iterations = iterations or ITERATIONS
    every = max(1, min(1000, iterations // 5))
    size = f"{preset}-original" if as_published else preset
    name = name or (size if system == "mfdiff" else f"{system}-{size}")
    earlier = None if restart else begun(space, name)
    request = PretrainRequest(
        name=unused_name(space, name) if restart else name,
        data=str(folder),
        model=model_preset(preset, system),
        train=TrainConfig(
            iterations=iterations,
            optim=optim,
            seed=seed,
            validate_every=every,
            snapshot_every=every,
        ),
        batch_size=batch_size
        or (earlier.batch_size if earlier else math.ceil(4 / workers.count) * workers.count),
    )
    request = override(request, parsed)
    if dry_run:
        _rehearse(space, request, workers, as_json)
        return
    bundle = pretrain(space, open_store(space), request, workers, wait=wait)
    psnr = bundle.provenance.metrics["psnr"]
    values = {"bundle": str(bundle.folder), "psnr": psnr, "iterations": request.train.iterations}
    print_result(values, f"{bundle.folder}\nbest validation PSNR {psnr:.2f} dB", as_json)


def _rehearse(space: Workspace, request: PretrainRequest, workers: Workers, as_json: bool) -> None:
    """Every check that `pretrain` would make, and what it would do."""
    from dataclasses import asdict

    from mfdiff_platform.cluster import connect, is_addressed
    from mfdiff_platform.nodes import check_shared
    from mfdiff_platform.preflight import check_cluster
    from mfdiff_platform.pretrain import plan_pretraining

    plan = plan_pretraining(space, request, workers)
    open_store(space)
    if is_addressed():
        with connect(purpose="pretrain --dry-run") as cluster:
            check_cluster(cluster, workers, wait=False)
            check_shared(space.root, Path(request.data))
    values = {"name": request.name, "folder": str(space.pretraining(request.name)), **asdict(plan)}
    print_result(values, _told(space, request, plan), as_json)


def _told(space: Workspace, request: PretrainRequest, plan: PretrainPlan) -> str:
    doing = {
        "new": "starts",
        "begun": f"goes on from step {plan.step}",
        "finished": "is finished; nothing would be done",
    }
    train, held_out = plan.slices
    rows = {
        "run": f"{request.name} {doing[plan.state]} ({space.pretraining(request.name)})",
        "workers": f"{plan.asked}",
        "batch": f"{plan.batch} slices, the same on any number of workers",
        "learning rate": f"{request.train.optim.lr:g}, follows neither workers nor batch",
        "steps": f"{request.train.iterations}, a checkpoint every {request.train.snapshot_every}",
        "data": f"{request.data}: {train} slices to train on, {held_out} held out",
        "weights": f"{plan.weights_bytes / MB:.1f} MB; a checkpoint has five times as many",
    }
    return "\n".join(f"{name:14} {text}" for name, text in rows.items())
