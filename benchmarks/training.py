"""Training speed: our loop beside the diffusion U-Nets of MONAI and diffusers, in one process.

    python -m benchmarks.training [--preset small] [--json benchmarks/results/training.json]
    python -m benchmarks.training --only unets --steps 1

`benchmarks.gpu` does the same on CUDA, within a given time.

Peers take (x_t, x_P, x_M) as channels and train in the plain loop of their tutorials: AdamW,
gradient clipping, MSE of the noise, and on CUDA bf16 autocast. First table: our loop with our U-Net
alone, and peers of the same shape and number of parameters. Second: the whole of MFdiff at a
preset, and peers at full resolution of (nearly) as many parameters. Third: fine-tuning with the
fusion frozen, its features computed anew each step or kept. Fourth: precisions and layouts, beside
the floor of `benchmarks.roofline`.

Variants are timed in turn, round after round; a figure is the median over rounds, on the CPU of
process time, so that other load counts little. The project needs neither peer, and a table leaves
out one that is not installed: `pip install monai einops diffusers`.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import write_result
from benchmarks.roofline import Ceilings, Work, measure, training_work
from mfdiff_core.data.batches import Batch
from mfdiff_core.model import Layout, MFdiffModel, ModelConfig, build_model, preset
from mfdiff_core.networks.mfdiff import MFdiff
from mfdiff_core.networks.unet import UNet
from mfdiff_core.networks.unet_blocks import UNetConfig
from mfdiff_core.training.freezing import apply_plan
from mfdiff_core.training.loop import Compile, TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import start_training

Block = Callable[[], None]
"""Runs a fixed number of training steps."""
Contender = Callable[[], tuple[Block, int]]
"""Builds such a block; beside it the number of parameters that are trained."""

ROUNDS = 7
SHAPE = UNetConfig(channels=32, multipliers=(1, 2, 4, 8), attention_resolutions=(8,))
SHAPE_PX = 64
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class Setting:
    """What all variants share."""

    device: torch.device
    batch: int
    size: int
    steps: int
    precision: Precision
    rounds: int = ROUNDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config, cpu = preset(options.preset), torch.device("cpu")
    size = config.network.image_size
    setting = Setting(cpu, options.batch, size, options.steps, "fp32", options.rounds)
    result: dict[str, object] = {
        "preset": options.preset,
        "batch": options.batch,
        "size": size,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
    }
    for name in options.only:
        result[name] = compare(TABLES[name](config, setting), setting)
        print("\n".join(lines(name, result[name])), flush=True)  # type: ignore[arg-type]
        if options.json:
            write_result(options.json, result)
    if "variants" in options.only:
        result["floor"] = floors(config, setting)
        result["utilisation"] = utilisations(result["variants"], config, setting)  # type: ignore[arg-type]
        print(result["floor"], result["utilisation"])
    if options.json:
        write_result(options.json, result)


def unets(config: ModelConfig, setting: Setting) -> dict[str, Contender]:
    """Our loop with a U-Net, and plain loops with peers of that shape."""
    small = replace(setting, size=SHAPE_PX)
    widths = [SHAPE.channels * multiplier for multiplier in SHAPE.multipliers]

    def ours() -> tuple[Block, int]:
        model = UNetAlone()
        return our_loop(model, small), num_parameters(model)

    return {"ours": ours} | {
        name: lambda make=make: plain(make(widths, SHAPE.norm_groups), small)
        for name, make in peers().items()
    }


def systems(config: ModelConfig, setting: Setting) -> dict[str, Contender]:
    """Our loop with our model, and plain loops with peers of about as many parameters."""
    with torch.device("meta"):
        count = num_parameters(MFdiff(config.network))
    return {"ours": lambda: ours(config, setting)} | {
        name: lambda make=make: plain(as_large_as(make, count), setting)
        for name, make in peers().items()
    }


def fine_tuning(config: ModelConfig, setting: Setting) -> dict[str, Contender]:
    """Nothing frozen, the fusion frozen, and its features kept as well."""

    def tuned(freeze: str, keep: bool) -> tuple[Block, int]:
        model = build_model(config, seed=0)
        apply_plan(model.network, freeze, model.network.parameter_groups(), [])
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return our_loop(model, setting, keep_features=keep), trainable

    return {
        "nothing frozen": lambda: tuned("none", False),
        "fusion frozen": lambda: tuned("fusion", False),
        "fusion frozen, F kept": lambda: tuned("fusion", True),
    }


def variants(config: ModelConfig, setting: Setting) -> dict[str, Contender]:
    """Our loop in other precisions and layouts, and on CUDA compiled; the most telling first."""
    chosen: list[tuple[Precision, Layout, Compile]] = [("fp32", "channels_last", "off")]
    chosen += [("bf16", "channels_last", "off")]
    if setting.device.type == "cuda":
        chosen += [("bf16", "channels_last", "default"), ("bf16", "contiguous", "default")]
        chosen += [("bf16", "channels_last", "reduce-overhead")]
    chosen += [("bf16", "contiguous", "off"), ("bf16", "mixed", "off")]
    return {
        f"{precision} {layout} compile={mode}": lambda way=(precision, layout, mode): ours(  # type: ignore[misc]
            config, setting, *way
        )
        for precision, layout, mode in chosen
    }


TABLES: dict[str, Callable[[ModelConfig, Setting], dict[str, Contender]]] = {
    "unets": unets,
    "systems": systems,
    "fine-tuning": fine_tuning,
    "variants": variants,
}


def ours(config: ModelConfig, setting: Setting, *way: Any) -> tuple[Block, int]:
    """Our loop with our model, in a precision, layout and compile mode."""
    model = build_model(config, seed=0)
    return our_loop(model, setting, *way), num_parameters(model)


def plain(network: nn.Module, setting: Setting) -> tuple[Block, int]:
    """A plain loop with a peer."""
    return plain_loop(network, setting), num_parameters(network)


def our_loop(
    model: MFdiffModel,
    setting: Setting,
    precision: Precision | None = None,
    layout: Layout = "channels_last",
    compile_mode: Compile = "off",
    *,
    keep_features: bool = True,
) -> Block:
    """Steps of `mfdiff_core.training`: keyed noise, averaged weights, checks for NaN included."""
    model.to(setting.device).set_layout(layout)
    optim = OptimConfig(lr=1e-4)
    state = start_training(model, optim)
    images = torch.rand(3, setting.batch, 1, setting.size, setting.size, device=setting.device)
    config = TrainConfig(
        iterations=10**9,
        optim=optim,
        precision=precision or setting.precision,
        compile=compile_mode,
        keep_features=keep_features,
        log_every=setting.steps,
    )
    keys = tuple(str(row) for row in range(setting.batch))
    events = train(state, lambda _: Batch(images[0], images[1], images[2], keys), config)
    return lambda: void(next(events))


def plain_loop(network: nn.Module, setting: Setting) -> Block:
    """Steps as the peers' tutorials write them."""
    network.to(setting.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    device, shape = setting.device, (setting.batch, 1, setting.size, setting.size)
    bars = torch.linspace(1e-4, 0.02, 1000, device=device).neg().add(1).cumprod(0)
    x_s, conditions = torch.rand(shape, device=device), torch.rand((2, *shape), device=device)

    def step() -> None:
        t = torch.randint(1000, (setting.batch,), device=device)
        noise = torch.randn(shape, device=device)
        bar = bars[t].view(-1, 1, 1, 1)
        x_t = bar.sqrt() * x_s + (1 - bar).sqrt() * noise
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            loss = F.mse_loss(network(torch.cat((x_t, *conditions), 1), t).float(), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    def block() -> None:
        for _ in range(setting.steps):
            step()

    return block


def monai_unet(widths: list[int], groups: int) -> nn.Module:
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    return Called(
        DiffusionModelUNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=1,
            channels=widths,
            attention_levels=[width == widths[-1] for width in widths],
            num_res_blocks=2,
            num_head_channels=widths[-1],
            norm_num_groups=groups,
        ),
        lambda network, x, t: network(x, timesteps=t),
    )


def diffusers_unet(widths: list[int], groups: int) -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    others = len(widths) - 1
    return Called(
        UNet2DModel(
            in_channels=3,
            out_channels=1,
            block_out_channels=widths,
            down_block_types=[*["DownBlock2D"] * others, "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", *["UpBlock2D"] * others],
            layers_per_block=2,
            attention_head_dim=None,
            norm_num_groups=groups,
        ),
        lambda network, x, t: network(x, t).sample,
    )


class UNetAlone(MFdiffModel):
    """Our U-Net of `SHAPE` on (x_t, x_P, x_M): what is left of MFdiff without its fusion."""

    def __init__(self) -> None:
        super().__init__(preset("tiny"))
        self.network = UNetOfImages()  # type: ignore[assignment]


class UNetOfImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(SHAPE, 3, 1, SHAPE_PX)
        self.fusion = nn.Identity()

    def fuse(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        return x_m

    def forward(self, x_t: Tensor, t: Tensor, x_p: Tensor, x_m: Tensor) -> Tensor:
        image: Tensor = self.unet(torch.cat((x_t, x_p, x_m), 1), t)
        return image

    def parameter_groups(self) -> dict[str, list[str]]:
        return {"up": [name for name, _ in self.named_parameters()]}

    def set_memory_format(self, *, fusion: object, unet: torch.memory_format) -> None:
        self.unet.memory_format = unet
        self.unet.to(memory_format=unet)  # type: ignore[call-overload]


MakePeer = Callable[[list[int], int], nn.Module]
PEERS: dict[str, MakePeer] = {"monai": monai_unet, "diffusers": diffusers_unet}


def peers() -> dict[str, MakePeer]:
    """Those that are installed."""
    return {name: make for name, make in PEERS.items() if find_spec(name)}


class Called(nn.Module):
    """A peer's network behind one way of calling."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor]):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(self.network, x, t)


def as_large_as(make: MakePeer, count: int) -> nn.Module:
    """A peer of (nearly) ``count`` parameters on four levels, attention on the coarsest.

    Widths double from level to level as far as that fits; the last one makes up the rest.
    """
    groups = 8 if count > 5_000_000 else 2

    def parameters(widths: list[int]) -> int:
        with torch.device("meta"):
            return num_parameters(make(widths, groups))

    def doubling(width: int) -> list[int]:
        return [width * 2**level for level in range(4)]

    narrow = range(groups, 1025, groups)
    place = bisect_left(narrow, count, key=lambda width: parameters(doubling(width)))
    *wide, least = doubling(narrow[max(0, place - 1)])
    lasts = range(least, 3 * least, groups)
    place = bisect_left(lasts, count, key=lambda last: parameters([*wide, last]))
    around = lasts[max(0, place - 1) : place + 1]
    return make([*wide, min(around, key=lambda w: abs(parameters([*wide, w]) - count))], groups)


def compare(contenders: dict[str, Contender], setting: Setting) -> dict[str, dict[str, float]]:
    """Median milliseconds per step of each, and its ratio to the first, round by round."""
    built = {name: make() for name, make in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in built}
    for round_ in range(-1, setting.rounds):
        for name, (block, _) in built.items():
            started = time.process_time()
            block()
            if round_ >= 0:
                times[name].append((time.process_time() - started) / setting.steps)
    first = times[next(iter(times))]
    return {
        name: {
            "parameters": built[name][1],
            "ms_per_step": 1e3 * median(values),
            "over_first": median(v / f for v, f in zip(values, first, strict=True)),
        }
        for name, values in times.items()
    }


def floors(config: ModelConfig, setting: Setting) -> dict[str, dict[str, float]]:
    """Arithmetic of a step, what the device reaches, and the time no step can stay below."""
    return {precision: describe(*at_most(config, setting, precision)) for precision in PRECISIONS}


def describe(work: Work, ceilings: Ceilings) -> dict[str, float]:
    return {
        "tflop_per_step": work.flop / 1e12,
        "device_tflop_per_s": ceilings.flop_per_s / 1e12,
        "device_gb_per_s": ceilings.bytes_per_s / 1e9,
        "floor_ms": 1e3 * work.floor_s(ceilings),
    }


def at_most(config: ModelConfig, setting: Setting, precision: Precision) -> tuple[Work, Ceilings]:
    work = training_work(config.network, setting.batch, precision)
    return work, measure(setting.device, precision)


def utilisations(
    rows: dict[str, dict[str, float]], config: ModelConfig, setting: Setting
) -> dict[str, float]:
    """Share of the device's measured arithmetic that each variant turns into training."""
    known = {p: at_most(config, setting, p) for p in PRECISIONS}
    found = {}
    for name, row in rows.items():
        work, ceilings = known["bf16" if name.startswith("bf16") else "fp32"]
        found[name] = work.utilisation(row["ms_per_step"] / 1e3, ceilings)
    return found


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def void(_: object) -> None:
    return None


def lines(name: str, rows: dict[str, dict[str, float]]) -> Iterator[str]:
    yield f"{name:42} {'parameters':>12} {'ms/step':>10} {'over first':>10}"
    for label, row in rows.items():
        yield (
            f"  {label:40} {row['parameters']:12,} {row['ms_per_step']:10.1f}"
            f" {row['over_first']:10.3f}"
        )


if __name__ == "__main__":
    main()
