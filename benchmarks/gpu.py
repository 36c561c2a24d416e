"""Everything that only a CUDA device can answer, in one run.

    python -m benchmarks.gpu --out FOLDER [--preset base paper]

1. Correctness: projector, fusion, U-Net loss and gradients, restoration on CUDA beside the CPU.
2. bf16 and compiled training beside fp32: losses over the same steps.
3. Milliseconds per step of `base` and `paper` in precisions, layouts and compile modes.
4. A training run on simulated phantoms with a checkpoint half-way, resumed from it, and its
   validation; sampling time per slice.

Each part writes ``FOLDER/<part>.json`` when it is done, so that a run cut short keeps what it has.
Needs torch, numpy, scipy, scikit-image, pyarrow and safetensors. ``--device cpu --preset tiny``
tries the script itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.record import write_result
from benchmarks.training import Setting, compare, forward_flop, show, systems, variants
from mfdiff_core.data.batches import Batch
from mfdiff_core.model import ModelConfig, build_model, preset
from mfdiff_core.physics.projector import Geometry, Projector
from mfdiff_core.seeding import generator
from mfdiff_core.training.loop import Compile, Progress, TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import start_training

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", nargs="+", default=["base", "paper"])
    parser.add_argument("--iterations", type=int, default=2000, help="of the training run")
    options = parser.parse_args()
    device = torch.device(options.device)
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "correctness": lambda: correctness(device),
        "precision": lambda: precision(device),
        **{name: lambda name=name: speed(name, device) for name in options.preset},  # type: ignore[misc]
        "run": lambda: run(options.preset[0], device, options.iterations, options.out),
    }
    for name, part in parts.items():
        started = time.perf_counter()
        result = part() | {"seconds": time.perf_counter() - started}
        write_result(options.out / f"gpu-{name}.json", result)
        print(name, result, flush=True)


def correctness(device: torch.device) -> dict[str, object]:
    """Largest relative difference to the CPU in float32, by part."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    geometry = Geometry(image_px=96, voxel_mm=4.0, num_bins=96, bin_mm=4.0, num_views=84)
    image = torch.rand(geometry.image_px**2, 3, generator=generator(0, "image"))
    projected = [
        Projector(geometry, 3, device=where).forward(0, image.to(where)).cpu()
        for where in (str(CPU), str(device))
    ]
    config = preset("small")
    on = {where: losses(config, torch.device(where), "fp32", "off", 1) for where in ("cpu", device)}
    restored = [restore(config, where) for where in (CPU, device)]
    return {
        "projector": relative(*projected),
        "loss": abs(on["cpu"][0] - on[device][0]) / on["cpu"][0],
        "restoration": relative(*restored),
    }


def precision(device: torch.device) -> dict[str, object]:
    """Mean loss of the last ten of 100 steps, each way of computing beside fp32."""
    ways: list[tuple[Precision, Compile]] = [("fp32", "off"), ("bf16", "off")]
    if device.type == "cuda":
        ways += [("fp32", "default"), ("bf16", "default"), ("bf16", "reduce-overhead")]
    means = {
        f"{kind} compile={mode}": sum(losses(preset("small"), device, kind, mode, 100)[-10:]) / 10
        for kind, mode in ways
    }
    first = next(iter(means.values()))
    return {name: {"loss": mean, "over_fp32": mean / first} for name, mean in means.items()}


def speed(name: str, device: torch.device) -> dict[str, object]:
    """Milliseconds per step at batch 4, peers and variants, and what 70 000 steps would take."""
    config = preset(name)
    size = config.network.image_size
    kind: Precision = "bf16" if device.type == "cuda" else "fp32"
    setting = Setting(device, 4, size, 10 if device.type == "cuda" else 1, kind)
    rows = {
        "systems": compare(systems(config, setting), setting),
        "variants": compare(variants(config, setting), setting),
    }
    show(rows)  # type: ignore[arg-type]
    best = min(row["ms_per_step"] for row in rows["variants"].values())
    return {
        **rows,
        "forward_tflop": forward_flop(config, setting) / 1e12,
        "minutes_for_70000_steps": best * 70_000 / 60_000,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if kind == "bf16" else None,
    }


def run(name: str, device: torch.device, iterations: int, out: Path) -> dict[str, object]:
    """Train, resume from the middle, and compare; both on ``device``."""
    config, optim = preset(name), OptimConfig(lr=2e-4, ema=0.999)
    settings = TrainConfig(iterations=iterations, optim=optim, snapshot_every=iterations // 2)
    whole, started = fresh(config, optim, device), time.perf_counter()
    batches = disks(config, device)
    for event in train(whole, batches, settings):
        if event.step == iterations // 2 and not isinstance(event, Progress):
            whole.save(out / "checkpoint")
    seconds = time.perf_counter() - started
    resumed = fresh(config, optim, device)
    resumed.load(out / "checkpoint")
    list(train(resumed, batches, settings))
    pairs = zip(whole.weights().values(), resumed.weights().values(), strict=True)
    started = time.perf_counter()
    restore(config, device)
    return {
        "preset": name,
        "iterations": iterations,
        "steps_per_s": iterations / seconds,
        "resumed_differs_by": max(relative(a.float(), b.float()) for a, b in pairs),
        "seconds_to_restore_8_slices": time.perf_counter() - started,
    }


def fresh(config: ModelConfig, optim: OptimConfig, device: torch.device) -> TrainState:
    return start_training(build_model(config, seed=0).to(device), optim)


def losses(
    config: ModelConfig, device: torch.device, kind: Precision, mode: Compile, steps: int
) -> list[float]:
    optim = OptimConfig(lr=1e-3)
    settings = TrainConfig(iterations=steps, optim=optim, precision=kind, compile=mode, log_every=1)
    events = train(fresh(config, optim, device), disks(config, device), settings)
    return [event.loss for event in events if isinstance(event, Progress)]


def disks(config: ModelConfig, device: torch.device) -> Callable[[int], Batch]:
    """Batches of four noisy disks: data enough to train on, without files."""
    size = config.network.image_size
    grid = torch.linspace(-1, 1, size)
    radius = (grid[:, None] ** 2 + grid[None] ** 2).sqrt()

    def batch(step: int) -> Batch:
        source = generator(0, "disks", step)
        edge = 0.3 + 0.5 * torch.rand(4, 1, 1, 1, generator=source)
        x_s = torch.sigmoid((edge - radius) * 20)
        x_p = (x_s + 0.2 * torch.randn(x_s.shape, generator=source)).clamp_min(0)
        return Batch(x_p.to(device), (1 - x_s).to(device), x_s.to(device))

    return batch


def restore(config: ModelConfig, device: torch.device) -> torch.Tensor:
    """Eight slices, on the CPU again."""
    model = build_model(config, seed=0).to(device).eval()
    first, second = disks(config, device)(0), disks(config, device)(1)
    x_p, x_m = torch.cat((first.x_p, second.x_p)), torch.cat((first.x_m, second.x_m))
    return model.restore(x_p, x_m, [str(row) for row in range(8)]).x_s.cpu()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


if __name__ == "__main__":
    main()
