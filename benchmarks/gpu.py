"""Everything that only a CUDA device can answer, in one run of a few minutes.

    python -m benchmarks.gpu --out FOLDER [--minutes 8] [--preset base paper]

1. ``correctness``: projector, loss, gradients and restoration beside the CPU; a step that is not
   finite, and one that does not fit in memory.
2. ``base``, ``paper``: milliseconds per step at batch 4 in precisions, layouts and compile modes,
   and of the peers that are installed; beside them the share of the device's arithmetic and the
   floor of `benchmarks.roofline`, both by measured ceilings.
3. ``run``: phantoms simulated on the device, a training run in the fastest way found, a checkpoint
   half-way, the rest once more from there, quality on an unseen subject, time per restored slice.
4. ``precision``: the loss after the same steps in each way of computing.

Results are written to ``FOLDER/gpu-<part>.json`` line by line: a run that is cut short, or a way
that fails, loses nothing else. What there is no time for is left out and said so. Needs torch,
numpy, scipy, scikit-image and pyarrow; monai and diffusers may lie on PYTHONPATH.
``--device cpu --preset tiny`` tries the script itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import write_result
from benchmarks.roofline import measure, training_work
from benchmarks.training import (
    PRECISIONS,
    Contender,
    Setting,
    describe,
    fine_tuning,
    systems,
    variants,
)
from mfdiff_core.data.batches import Batch, BatchStream
from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.data.intensity import mr_scale, pet_scale
from mfdiff_core.data.slices import SliceInfo
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.evaluation.validation import evaluate_model, restore_slices
from mfdiff_core.model import MFdiffModel, ModelConfig, build_model, preset
from mfdiff_core.physics.projector import Geometry, Projector
from mfdiff_core.physics.simulate import list_subjects, recipe, simulate_subject
from mfdiff_core.seeding import generator
from mfdiff_core.training.loop import Progress, Snapshot, TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import start_training

CPU = torch.device("cpu")
BATCH = 4
STAGES = 70_000
"""Iterations of both stages in the paper."""


@dataclass(frozen=True)
class Session:
    """One run of this script on a device that is lent for a time."""

    device: torch.device
    out: Path
    ends: float

    @property
    def seconds_left(self) -> float:
        return self.ends - time.perf_counter()

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.on_cuda else "cpu"

    @contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """Figures of a part, written when it ends, however it ends."""
        figures: dict[str, Any] = {"device": self.name}
        started = time.perf_counter()
        try:
            yield figures
        except Exception as fault:  # the parts after it have something to say as well
            figures["failed"] = f"{type(fault).__name__}: {fault}"[:500]
        finally:
            figures["seconds"] = time.perf_counter() - started
            self.write(name, figures)
            print(name, figures, flush=True)

    def write(self, name: str, figures: dict[str, Any]) -> None:
        write_result(self.out / f"gpu-{name}.json", figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="start nothing new after these")
    parser.add_argument("--preset", nargs="+", default=["base", "paper"])
    options = parser.parse_args()
    ends = time.perf_counter() + 60 * options.minutes
    session = Session(torch.device(options.device), options.out, ends)
    with session.part("correctness") as figures:
        correctness(session, figures)
    fastest: dict[str, tuple[str, float]] = {}
    for name in options.preset:
        with session.part(name) as figures:
            speed(session, name, figures)
            rows = {way: row["ms_per_step"] for way, row in usable(figures["variants"]).items()}
            fastest[name] = min(rows.items(), key=lambda item: item[1])
        if name == options.preset[0]:
            with session.part("run") as figures:
                run(session, name, *fastest[name], figures)
    with session.part("precision") as figures:
        precision(session, figures)


# --- correctness ---------------------------------------------------------------------------


def correctness(session: Session, figures: dict[str, Any]) -> None:
    """Largest differences to the CPU in float32, relative to the largest value."""
    config, both = preset("tiny"), (CPU, session.device)
    with exact_products():
        figures["projector"] = relative(*(projected(device) for device in both))
        (loss, gradients), (theirs, others) = (one_step(config, device) for device in both)
        figures["loss"] = abs(theirs / loss - 1)
        figures["gradients"] = max(relative(gradients[name], others[name]) for name in gradients)
        figures["restoration"] = relative(*(restored(config, device) for device in both))
    figures["step_that_is_not_finite_changes_nothing"] = survives_nan(config, session.device)
    if session.on_cuda:
        figures["slices_at_a_time_when_memory_is_short"] = short_of_memory(session.device)


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def projected(device: torch.device) -> Tensor:
    geometry = Geometry(image_px=96, voxel_mm=4.0, num_bins=96, bin_mm=4.0, num_views=84)
    image = torch.rand(geometry.image_px**2, 3, generator=generator(0, "image"))
    sinogram: Tensor = Projector(geometry, 3, device=str(device)).forward(0, image.to(device)).cpu()
    return sinogram


def awake(config: ModelConfig) -> MFdiffModel:
    """A model none of whose layers is zero."""
    model, source = build_model(config, seed=0), generator(0, "awake")
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=source)
    return model


def one_step(config: ModelConfig, device: torch.device) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one batch."""
    model, batch = awake(config).to(device), disks(config, CPU)(0)
    drawn = model.draw(batch.x_s.shape, 0.0, generator(0, "noise"))
    loss = model(*(values.to(device) for values in (*batch.images, *drawn)))
    loss.backward()
    found = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def restored(config: ModelConfig, device: torch.device) -> Tensor:
    model, batch = awake(config).to(device).eval(), disks(config, device)(0)
    return model.restore(batch.x_p, batch.x_m, [str(row) for row in range(BATCH)]).x_s.cpu()


def survives_nan(config: ModelConfig, device: torch.device) -> bool:
    state, batches = fresh(config, device, OptimConfig()), disks(config, device)
    list(train(state, batches, TrainConfig(iterations=1)))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}

    def damaged(step: int) -> Batch:
        x_p, x_m, x_s = batches(step).images
        return Batch(x_p, x_m, x_s * float("nan"))

    list(train(state, damaged, TrainConfig(iterations=2)))
    return all(torch.equal(value, before[n]) for n, value in state.model.state_dict().items())


class Noted(nn.Module):
    """A model that notes how many slices it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, list[int]()

    def forward(self, x_p: Tensor, *rest: Any, **given: Any) -> Any:
        self.seen.append(len(x_p))
        return self.model(x_p, *rest, **given)


def short_of_memory(device: torch.device) -> list[int]:
    """Slices that the model was given at a time with room for three quarters of a batch of 64."""
    config, needs = preset("small"), []
    for rows in (32, 64):
        torch.cuda.reset_peak_memory_stats(device)
        list(train(fresh(config, device, OptimConfig()), disks(config, device, rows), ONE))
        needs.append(torch.cuda.max_memory_allocated(device))
        torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(device)[1]
    state = fresh(config, device, OptimConfig())
    noted = Noted(state.model)
    torch.cuda.set_per_process_memory_fraction(sum(needs) / 2 / total, device)
    try:
        list(train(state, disks(config, device, 64), ONE, wrap=lambda _: noted))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return noted.seen


# --- speed ---------------------------------------------------------------------------------


def speed(session: Session, name: str, figures: dict[str, Any]) -> None:
    """Rows of `benchmarks.training`, one way after the other, the most telling first."""
    config = preset(name)
    precision: Precision = "bf16" if session.on_cuda else "fp32"
    steps = 20 if session.on_cuda else 1
    setting = Setting(session.device, BATCH, config.network.image_size, steps, precision, 5)
    ceilings = {kind: measure(session.device, kind) for kind in PRECISIONS}
    figures["floors"] = {
        kind: describe(training_work(config.network, BATCH, kind), ceilings[kind])
        for kind in ceilings
    }
    peers = {way: make for way, make in systems(config, setting).items() if way != "ours"}
    tables = {"variants": variants, "systems": lambda *_: peers, "fine-tuning": fine_tuning}
    for table, contenders in tables.items():
        rows = figures.setdefault(table, {})
        for way, make in contenders(config, setting).items():
            rows[way] = timed(session, make, setting)
            session.write(name, figures)
    for way, row in usable(figures["variants"]).items():
        kind = PRECISIONS[way.startswith("bf16")]
        work, seconds = training_work(config.network, BATCH, kind), row["ms_per_step"] / 1e3
        row |= {
            "utilisation": work.utilisation(seconds, ceilings[kind]),
            "over_floor": seconds / work.floor_s(ceilings[kind]),
            "minutes_for_both_stages": seconds * STAGES / 60,
        }
    compare_with_peers(figures)


def timed(session: Session, make: Contender, setting: Setting) -> dict[str, Any]:
    """One row; what it takes to start, compilation included, is told apart."""
    if session.seconds_left < 60:
        return {"failed": "no time left"}
    torch.compiler.reset()
    if session.on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(session.device)
    started = time.perf_counter()
    try:
        block, parameters = make()
        seconds = [block_seconds(session, block) for _ in range(setting.rounds + 2)]
    except Exception as fault:  # one way that fails is a finding, not the end
        return {"failed": f"{type(fault).__name__}: {fault}"[:500]}
    of_a_step = median(seconds[2:]) / setting.steps
    return {
        "parameters": parameters,
        "ms_per_step": 1e3 * of_a_step,
        "seconds_to_start": time.perf_counter() - started - sum(seconds[1:]),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if session.on_cuda else None,
    }


def block_seconds(session: Session, block: Callable[[], None]) -> float:
    started = time.perf_counter()
    block()
    if session.on_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare_with_peers(figures: dict[str, Any]) -> None:
    """Note of each peer's row how many times as long it takes as the fastest of ours."""
    ours = min(row["ms_per_step"] for row in usable(figures["variants"]).values())
    for row in usable(figures["systems"]).values():
        row["over_ours"] = row["ms_per_step"] / ours


def usable(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {way: row for way, row in rows.items() if "failed" not in row}


# --- a training run ------------------------------------------------------------------------


def run(session: Session, name: str, way: str, ms: float, figures: dict[str, Any]) -> None:
    """Train on phantoms for a minute, go on once more from the middle, and look at the result."""
    config, optim = preset(name), OptimConfig(lr=2e-4, warmup=50, ema=0.999)
    started = time.perf_counter()
    slices = phantoms(session, config.image_size)
    figures["seconds_to_simulate"] = time.perf_counter() - started
    unseen = slices.infos[-1].subject
    training = slices.select(lambda info: info.subject != unseen)
    held_out = slices.select(lambda info: info.subject == unseen)
    kind, layout, mode = way.split()
    half = max(1, int(min(60.0, session.seconds_left / 4) / 2 / (ms / 1e3)))
    settings = TrainConfig(
        iterations=2 * half,
        optim=optim,
        precision=kind,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        compile=mode.removeprefix("compile="),  # type: ignore[arg-type]
        snapshot_every=half,
    )
    figures |= {"preset": name, "way": way, "iterations": 2 * half, "slices": len(training)}
    batches = BatchStream(training.to(session.device), BATCH, 0, "flip")
    whole, resumed = (fresh(config, session.device, optim, layout) for _ in range(2))
    losses = []
    started = time.perf_counter()
    for event in train(whole, batches, settings):
        if isinstance(event, Progress):
            losses.append(event.loss)
        elif event == Snapshot(half):
            whole.save(session.out / "checkpoint")
    figures["steps_per_s"] = 2 * half / (time.perf_counter() - started)
    figures["loss"] = {"first": losses[0], "last": losses[-1]}
    resumed.load(session.out / "checkpoint")
    list(train(resumed, batches, settings))
    pairs = zip(whole.weights().values(), resumed.weights().values(), strict=True)
    figures["resumed_differs_by"] = max(relative(a.float(), b.float()) for a, b in pairs)
    quality(session, whole, held_out, figures)


def quality(session: Session, state: TrainState, slices: SliceSet, figures: dict[str, Any]) -> None:
    """Metrics on slices of a subject never seen, and milliseconds per restored slice."""
    low = evaluate_slices(slices.x_p[:, 0], slices.x_s[:, 0]).mean()
    figures["lpet"] = low._asdict()
    samplers: dict[str, SamplerConfig | None] = {"own sampler": None}
    steps = 1000 if session.on_cuda else 20
    samplers[f"{steps} ancestral steps"] = SamplerConfig(name="ddpm", num_evaluations=steps)
    with state.averaged() as model:
        figures["restored"] = evaluate_model(model, slices).mean()._asdict()
        for label, sampler in samplers.items():
            started = time.perf_counter()
            restore_slices(model, slices, sampler=sampler)
            took = time.perf_counter() - started  # results have come back to the host by now
            figures[f"ms_per_slice, {label}"] = 1e3 * took / len(slices)


def phantoms(session: Session, size: int) -> SliceSet:
    """Ten slices each of three simulated heads."""
    config = recipe("phantom")
    config = replace(config, slices=replace(config.slices, num_rotations=1))
    infos, images = [], []
    for subject in list_subjects(config, num_subjects=3):
        for drawn in simulate_subject(config, subject, 0, str(session.device)):
            scale, scale_m = pet_scale(drawn.x_p), mr_scale(drawn.x_m)
            pair = (drawn.x_p / scale, drawn.x_m / scale_m, drawn.x_s / scale)
            images.append(torch.stack([torch.from_numpy(image).float() for image in pair]))
            infos.append(
                SliceInfo(
                    "phantom", drawn.setting, drawn.subject, drawn.slice_index,
                    drawn.rotation_index, drawn.voxel_mm, scale, scale_m, drawn.num_counts,
                )
            )  # fmt: skip
    x_p, x_m, x_s = F.interpolate(torch.stack(images), (size, size), mode="area").unbind(1)
    maps = torch.zeros(len(infos), size, size, dtype=torch.uint8)
    return SliceSet(tuple(infos), x_p[:, None], x_m[:, None], x_s[:, None], maps, maps)


# --- precision -----------------------------------------------------------------------------


def precision(session: Session, figures: dict[str, Any]) -> None:
    """Mean loss of the last ten of 100 steps, each way of computing beside fp32."""
    ways: list[dict[str, Any]] = [{}, {"precision": "bf16"}]
    if session.on_cuda:
        ways += [{"precision": "bf16", "compile": "default"}]
    config, optim = preset("tiny"), OptimConfig(lr=1e-3)
    for way in ways:
        settings = TrainConfig(iterations=100, optim=optim, log_every=10, **way)
        state = fresh(config, session.device, optim)
        events = train(state, disks(config, session.device), settings)
        *_, last = (event.loss for event in events if isinstance(event, Progress))
        label = " ".join(way.values()) or "fp32"
        figures[label] = {"loss": last, "over_fp32": last / figures["fp32"]["loss"] if way else 1.0}


# --- shared --------------------------------------------------------------------------------

ONE = TrainConfig(iterations=1)


def fresh(
    config: ModelConfig, device: torch.device, optim: OptimConfig, layout: Any = "channels_last"
) -> TrainState:
    model = build_model(config, seed=0).to(device)
    model.set_layout(layout)
    return start_training(model, optim)


def disks(config: ModelConfig, device: torch.device, rows: int = BATCH) -> Callable[[int], Batch]:
    """Batches of noisy disks."""
    grid = torch.linspace(-1, 1, config.image_size)
    radius = (grid[:, None] ** 2 + grid[None] ** 2).sqrt()

    def batch(step: int) -> Batch:
        source = generator(0, "disks", step)
        edge = 0.3 + 0.5 * torch.rand(rows, 1, 1, 1, generator=source)
        x_s = torch.sigmoid((edge - radius) * 20)
        x_p = (x_s + 0.2 * torch.randn(x_s.shape, generator=source)).clamp_min(0)
        return Batch(x_p.to(device), (1 - x_s).to(device), x_s.to(device))

    return batch


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


if __name__ == "__main__":
    main()
