"""Training speed: our loop beside the diffusion U-Nets of MONAI and diffusers, in one process.

    python -m benchmarks.training [--preset small] [--json benchmarks/results/training.json]
    python -m benchmarks.training --device cuda --preset paper --batch 4 --variants

Peers take (x_t, x_P, x_M) as channels and train in the plain loop of their tutorials: AdamW,
gradient clipping, MSE of the noise, and on CUDA bf16 autocast. First table: our loop with our U-Net
alone, and peers of the same shape and number of parameters. Second: the whole of MFdiff at a
preset, and peers at full resolution with as many parameters as their widths allow. Third:
fine-tuning with the fusion frozen, its features computed anew each step or kept.

Variants are timed in turn, round after round; a figure is the median over rounds, on the CPU of
process time, so that other load counts little. The project needs neither peer:
`pip install monai einops diffusers`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import write_result
from mfdiff_core.data.batches import Batch
from mfdiff_core.model import Layout, MFdiffModel, ModelConfig, build_model, preset
from mfdiff_core.networks.unet import UNet
from mfdiff_core.networks.unet_blocks import UNetConfig
from mfdiff_core.training.freezing import apply_plan
from mfdiff_core.training.loop import Compile, TrainConfig, train
from mfdiff_core.training.optim import OptimConfig
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import start_training

Block = Callable[[], None]
"""Runs a fixed number of training steps."""

ROUNDS = 7
SHAPE = UNetConfig(channels=32, multipliers=(1, 2, 4, 8), attention_resolutions=(8,))
SHAPE_PX = 64
PEAK_BF16_FLOPS = 790e12  # H200, dense, measured


@dataclass(frozen=True)
class Setting:
    """What all variants share."""

    device: torch.device
    batch: int
    size: int
    steps: int
    precision: Precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--variants", action="store_true", help="precision, layout, compilation")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    precision: Precision = "bf16" if device.type == "cuda" else "fp32"
    config = preset(options.preset)
    size = config.network.image_size
    setting = Setting(device, options.batch, size, options.steps, precision)
    result = {
        "preset": options.preset,
        "batch": options.batch,
        "size": size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "unets": compare(unets(setting), setting),
        "systems": compare(systems(config, setting), setting),
        "fine-tuning": compare(fine_tuning(config, setting), setting),
    }
    if options.variants:
        result["variants"] = compare(variants(config, setting), setting)
        result["forward_tflop"] = forward_flop(config, setting) / 1e12
        result["bf16_utilisation"] = utilisation(result)
    show(result)
    if options.json:
        write_result(options.json, result)


def unets(setting: Setting) -> dict[str, tuple[Block, int]]:
    """Our loop with a U-Net, and plain loops with peers of that shape."""
    small = Setting(setting.device, setting.batch, SHAPE_PX, setting.steps, setting.precision)
    ours = UNetAlone()
    found = {"ours": (our_loop(ours, small), num_parameters(ours))}
    for name, make in PEERS.items():
        peer = make(SHAPE.channels, len(SHAPE.multipliers), SHAPE.norm_groups)
        found[name] = (plain_loop(peer, small), num_parameters(peer))
    return found


def systems(config: ModelConfig, setting: Setting) -> dict[str, tuple[Block, int]]:
    """Our loop with our model, and plain loops with peers of about as many parameters."""
    model = build_model(config, seed=0)
    count = num_parameters(model)
    found: dict[str, tuple[Block, int]] = {"ours": (our_loop(model, setting), count)}
    for name, make in PEERS.items():
        peer = as_large_as(make, count, setting.size)
        found[name] = (plain_loop(peer, setting), num_parameters(peer))
    return found


def fine_tuning(config: ModelConfig, setting: Setting) -> dict[str, tuple[Block, int]]:
    """Nothing frozen, the fusion frozen, and its features kept as well."""
    found = {}
    for name, freeze, keep in (
        ("nothing frozen", "none", False),
        ("fusion frozen", "fusion", False),
        ("fusion frozen, F kept", "fusion", True),
    ):
        model = build_model(config, seed=0)
        apply_plan(model.network, freeze, model.network.parameter_groups(), [])
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found[name] = (our_loop(model, setting, keep_features=keep), trainable)
    return found


def variants(config: ModelConfig, setting: Setting) -> dict[str, tuple[Block, int]]:
    """Our loop in other precisions and layouts, and compiled."""
    layouts: tuple[Layout, ...] = ("channels_last", "contiguous", "mixed")
    chosen: list[tuple[Precision, Layout, Compile]] = [("fp32", "channels_last", "off")]
    chosen += [("bf16", layout, "off") for layout in layouts]
    if setting.device.type == "cuda":
        chosen += [("bf16", layout, "default") for layout in layouts]
        chosen += [("bf16", "channels_last", "reduce-overhead")]
    found = {}
    for precision, layout, mode in chosen:
        model = build_model(config, seed=0)
        block = our_loop(model, setting, precision, layout, mode)
        found[f"{precision} {layout} compile={mode}"] = (block, num_parameters(model))
    return found


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


def monai_unet(channels: int, levels: int, groups: int) -> nn.Module:
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    return Called(
        DiffusionModelUNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=1,
            channels=[channels * 2**level for level in range(levels)],
            attention_levels=[level == levels - 1 for level in range(levels)],
            num_res_blocks=2,
            num_head_channels=channels * 2 ** (levels - 1),
            norm_num_groups=groups,
        ),
        lambda network, x, t: network(x, timesteps=t),
    )


def diffusers_unet(channels: int, levels: int, groups: int) -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    last = levels - 1
    return Called(
        UNet2DModel(
            in_channels=3,
            out_channels=1,
            block_out_channels=[channels * 2**level for level in range(levels)],
            down_block_types=[
                "AttnDownBlock2D" if level == last else "DownBlock2D" for level in range(levels)
            ],
            up_block_types=[
                "AttnUpBlock2D" if level == 0 else "UpBlock2D" for level in range(levels)
            ],
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


PEERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "monai": monai_unet,
    "diffusers": diffusers_unet,
}


class Called(nn.Module):
    """A peer's network behind one way of calling."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor]):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(self.network, x, t)


def as_large_as(make: Callable[[int, int, int], nn.Module], count: int, size: int) -> nn.Module:
    """The peer whose number of parameters is nearest to ``count``, attention on a 1/8 grid."""
    groups, levels = 4, 4

    def parameters(width: int) -> int:
        with torch.device("meta"):
            return num_parameters(make(width, levels, groups))

    widths = range(groups, 513, groups)
    return make(min(widths, key=lambda w: abs(parameters(w) - count)), levels, groups)


def compare(blocks: dict[str, tuple[Block, int]], setting: Setting) -> dict[str, dict[str, float]]:
    """Median milliseconds per step of each, and its ratio to the first, round by round."""
    clock = time.perf_counter if setting.device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for round_ in range(-2 if setting.device.type == "cuda" else -1, ROUNDS):
        for name, (block, _) in blocks.items():
            started = clock()
            block()
            if setting.device.type == "cuda":
                torch.cuda.synchronize()
            if round_ >= 0:
                times[name].append((clock() - started) / setting.steps)
    first = times[next(iter(times))]
    return {
        name: {
            "parameters": blocks[name][1],
            "ms_per_step": 1e3 * median(values),
            "over_first": median(v / f for v, f in zip(values, first, strict=True)),
        }
        for name, values in times.items()
    }


def forward_flop(config: ModelConfig, setting: Setting) -> float:
    """Floating-point operations of one forward pass (grouped backward passes are miscounted)."""
    model = build_model(config, seed=0)
    images = torch.rand(4, setting.batch, 1, setting.size, setting.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*images[:3], torch.zeros(setting.batch, dtype=torch.int64), images[3])
    return float(counter.get_total_flops())


def utilisation(result: dict[str, object]) -> dict[str, float]:
    """Share of an H200's bf16 peak that each bf16 variant reaches, at three forward passes."""
    flop, rows = result["forward_tflop"], result["variants"]
    assert isinstance(flop, float)
    assert isinstance(rows, dict)
    return {
        name: 3e12 * flop / (row["ms_per_step"] / 1e3) / PEAK_BF16_FLOPS
        for name, row in rows.items()
        if name.startswith("bf16")
    }


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def void(_: object) -> None:
    return None


def lines(result: dict[str, object]) -> Iterator[str]:
    for table in ("unets", "systems", "fine-tuning", "variants"):
        rows = result.get(table)
        if not isinstance(rows, dict):
            continue
        yield f"{table:42} {'parameters':>12} {'ms/step':>10} {'over first':>10}"
        for name, row in rows.items():
            yield (
                f"  {name:40} {row['parameters']:12,} {row['ms_per_step']:10.1f}"
                f" {row['over_first']:10.2f}"
            )


def show(result: dict[str, object]) -> None:
    print("\n".join(lines(result)))


if __name__ == "__main__":
    main()
