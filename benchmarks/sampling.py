"""Quality and time of samplers, targets and K from models trained alike, beside a regression.

    mfdiff-platform simulate --domain phantom --quick
    python -m benchmarks.sampling --data mfdiff-workspace/data/phantom \\
        [--iterations 1500] [--models FOLDER] [--json benchmarks/results/sampling.json]

One network shape is trained once per target (x_0 as the presets have it, x_0, v, eps), and once
as a regression: the same network at one t, without noise at its input. Every sampler then restores
the same held-out slices. Trained models are kept in ``--models``, finished rows in ``--json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_result
from mfdiff_core.data.batches import BatchStream
from mfdiff_core.data.dataset import SliceSet, open_dataset
from mfdiff_core.diffusion.process import DiffusionConfig, from_diffusion, to_diffusion
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.evaluation.validation import restore_slices
from mfdiff_core.model import MFdiffModel, ModelConfig, Restored, build_model, preset
from mfdiff_core.tensors import load_tensors, save_tensors
from mfdiff_core.training.loop import Progress, TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.strategies import start_training

PRESET = preset("quick")
BY_SQUARES = replace(
    PRESET.diffusion,
    clip_in_loss=False,
    ssim_weight=0.0,
    noise_aware=False,
    activity_scaled=False,
)
"""As the presets have it, with the loss of the other targets, without the noise level and with one
unit of correction everywhere."""
TARGETS = {
    "x0 residual (presets)": BY_SQUARES,
    "x0": DiffusionConfig(target="x0"),
    "v": DiffusionConfig(target="v"),
    "eps (paper)": DiffusionConfig(target="eps"),
}
REGRESSION = "regression"
FEW = [
    SamplerConfig(name="ddpm", num_evaluations=n) for n in (250, 50, 20, 10, 5, 2)
] + [
    SamplerConfig(name="ddim", num_evaluations=n) for n in (50, 10, 5, 3, 2, 1)
] + [
    SamplerConfig(name="dpmpp2m", num_evaluations=n) for n in (20, 10, 5, 3)
] + [
    SamplerConfig(name="ddim", num_evaluations=n, start="lpet", start_step=s)
    for n, s in ((5, 400), (1, 600), (1, 100))
]  # fmt: skip
AVERAGED = [
    SamplerConfig(name="ddpm", num_evaluations=n, num_samples=k)
    for n, k in ((50, 4), (10, 4), (10, 16), (5, 16))
]
ANCESTRAL = SamplerConfig(name="ddpm", num_evaluations=1000)


@dataclass(frozen=True)
class Row:
    """One sampler with one model; ``spread_over_error`` is 1 for samples of the true posterior."""

    target: str
    sampler: str
    evaluations: int
    num_samples: int
    psnr: float
    ssim: float
    nmse: float
    ms_per_slice: float
    spread_over_error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--slices", type=int, default=16, help="held-out slices")
    parser.add_argument("--models", type=Path, default=Path("benchmarks/models"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    # Nothing is chosen on the validation slices here, so they are as unseen as the test's.
    train_set, test = dataset.part("train"), _evenly(dataset.part("validation"), options.slices)
    rows = [lpet_row(test)]
    for name in (REGRESSION, *TARGETS):
        model = trained(name, train_set, options)
        plans = [SamplerConfig(num_evaluations=1)]
        for sampler in plans if name == REGRESSION else [ANCESTRAL, *FEW, *AVERAGED]:
            rows.append(evaluate(name, model, test, sampler))
            print(line(rows[-1]), flush=True)
        if options.json:
            report = {"rows": [asdict(row) for row in rows], "preset": "quick"}
            settings = {"iterations": options.iterations, "batch": options.batch}
            write_result(options.json, report | settings | {"slices": len(test)})


class Regression(MFdiffModel):
    """The same network as a regression: one t, no noise, no diffusion."""

    def forward(self, x_p: Any, x_m: Any, x_s: Any, *drawn: Any, f: Any = None) -> Any:
        t, eps = drawn
        p, x_0 = to_diffusion(x_p), to_diffusion(x_s)
        output = self.network(torch.zeros_like(p), torch.zeros_like(t), p, self.fuse(x_p, x_m))
        return self.process.loss(output, x_0, t, eps, p)

    @torch.no_grad()
    def restore(self, x_p: Any, x_m: Any, keys: Sequence[str], **_: Any) -> Restored:
        p, zero = to_diffusion(x_p), torch.zeros(len(x_p), dtype=torch.int64)
        output = self.network(torch.zeros_like(p), zero, p, self.fuse(x_p, x_m))
        x_0 = self.process.predict_x0(output, torch.zeros_like(p), zero, p)
        return Restored(from_diffusion(x_0).clamp_min(0), torch.zeros_like(p))


def trained(name: str, slices: SliceSet, options: argparse.Namespace) -> MFdiffModel:
    """The model of a target, from ``--models`` if it has been trained before."""
    diffusion = TARGETS.get(name, BY_SQUARES)
    config = ModelConfig(network=PRESET.network, diffusion=diffusion)
    model = Regression(config) if name == REGRESSION else MFdiffModel(config)
    model.load_state_dict(build_model(config, seed=0).state_dict())
    kept = options.models / f"{name.split()[0]}-{len(name)}-{options.iterations}.safetensors"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(kept, _train(name, model, slices, options))
    model.load_state_dict(load_tensors(kept))
    return model.eval()


def _train(
    name: str, model: MFdiffModel, slices: SliceSet, options: argparse.Namespace
) -> dict[str, torch.Tensor]:
    optim = OptimConfig(lr=2e-3, warmup=50, schedule="cosine", ema=0.999)
    config = TrainConfig(iterations=options.iterations, optim=optim, log_every=100)
    state = start_training(model, optim)
    for event in train(state, BatchStream(slices, options.batch, 0, "flip"), config):
        if isinstance(event, Progress):
            print(f"{name}: {event.step} {event.loss:.4f}", flush=True)
    return state.weights()


def evaluate(name: str, model: MFdiffModel, test: SliceSet, sampler: SamplerConfig) -> Row:
    started = time.process_time()
    restored = restore_slices(model, test, sampler=sampler)
    seconds = time.process_time() - started
    x, s = restored.x_s[:, 0], test.x_s[:, 0]
    mean = evaluate_slices(x, s).mean()
    inside = s > 0.05 * s.amax()
    error = (x - s)[inside].pow(2).mean().sqrt()
    # The mean of K has the error of one sample less the spread that K averages away.
    spread = restored.spread[:, 0][inside].pow(2).mean().sqrt()
    start = "" if sampler.start == "noise" else f" from LPET at {sampler.start_step}"
    return Row(
        target=name,
        sampler="one pass" if name == REGRESSION else sampler.name + start,
        evaluations=sampler.num_evaluations * sampler.num_samples,
        num_samples=sampler.num_samples,
        psnr=mean.psnr,
        ssim=mean.ssim,
        nmse=mean.nmse,
        ms_per_slice=1e3 * seconds / len(test),
        spread_over_error=float(spread / error),
    )


def lpet_row(test: SliceSet) -> Row:
    mean = evaluate_slices(test.x_p[:, 0], test.x_s[:, 0]).mean()
    return Row("LPET", "", 0, 0, mean.psnr, mean.ssim, mean.nmse, 0.0, 0.0)


def line(row: Row) -> str:
    return (
        f"{row.target:22} {row.sampler:20} {row.evaluations:5} {row.num_samples:3}"
        f" {row.psnr:6.2f} {row.ssim:.4f} {row.nmse:.4f} {row.ms_per_slice:9.1f}"
        f" {row.spread_over_error:6.2f}"
    )


def _evenly(slices: SliceSet, count: int) -> SliceSet:
    chosen = {len(slices) * place // count for place in range(count)}
    keep = {slices.infos[row].key for row in chosen}
    return slices.select(lambda info: info.key in keep)


if __name__ == "__main__":
    main()
