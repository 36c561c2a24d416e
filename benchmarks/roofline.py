"""What a training step must cost at least: operations counted, ceilings measured.

Convolutions and matrix products are counted as they are dispatched, forward and backward, on
tensors without memory, so any size can be counted anywhere. (`FlopCounterMode` counts the backward
pass of a grouped convolution as if it were dense.) Each has to do its arithmetic and to read its
inputs and write its outputs once; everything else could be fused into them. The optimiser has to
pass over its state as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mfdiff_core.networks.mfdiff import MFdiff, MFdiffConfig
from mfdiff_core.training.step import Precision

aten = torch.ops.aten
OPTIMISER_BYTES = 28 + 12
"""Per parameter: AdamW reads gradient, weight and moments and writes three; its average moves."""
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches: a large matrix product and a large copy, measured."""

    flop_per_s: float
    bytes_per_s: float


@dataclass
class Work:
    """Operations of a training step: arithmetic and memory traffic of each, and the parameters."""

    parameters: int = 0
    operations: list[tuple[float, float]] = field(default_factory=list)

    @property
    def flop(self) -> float:
        """Floating-point operations, forward and backward; nothing is counted twice."""
        return sum(flop for flop, _ in self.operations)

    def floor_s(self, ceilings: Ceilings) -> float:
        """Seconds that no implementation with these kernels can stay below."""
        spent = sum(
            max(flop / ceilings.flop_per_s, moved / ceilings.bytes_per_s)
            for flop, moved in self.operations
        )
        return spent + OPTIMISER_BYTES * self.parameters / ceilings.bytes_per_s

    def utilisation(self, seconds: float, ceilings: Ceilings) -> float:
        """Model-FLOP utilisation of a step that takes ``seconds``."""
        return self.flop / seconds / ceilings.flop_per_s


def training_work(config: MFdiffConfig, batch: int, precision: Precision) -> Work:
    """What a step of MFdiff with a batch of ``batch`` slices has to do."""
    with torch.device("meta"):
        network = MFdiff(config).to(DTYPES[precision])
        x = torch.empty(batch, 1, config.image_size, config.image_size, dtype=DTYPES[precision])
        t = torch.empty(batch, dtype=torch.int64)
    counter = Counter()
    with counter:
        network(x, t, x, network.fuse(x, x)).sum().backward()
    counter.work.parameters = sum(p.numel() for p in network.parameters())
    return counter.work


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every convolution and matrix product below it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = FLOP.get(func.overloadpacket)
        if count is not None:
            moved = sum(t.nbytes for t in (*_tensors(args), *_tensors(out)))
            self.work.operations.append((count(args, out), moved))
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _convolution(args: Any, out: Tensor) -> float:
    wide = args[0] if args[6] else out  # of a transposed one the input
    return float(2.0 * wide.numel() * args[1][0].numel())


def _convolution_backward(args: Any, out: Any) -> float:
    wide = args[1] if args[7] else args[0]
    gradients = sum(args[10][:2])  # of input and weight, each as much as the way forward
    return float(gradients * 2.0 * wide.numel() * args[2][0].numel())


def _product(args: Any, out: Tensor) -> float:
    return float(2.0 * out.numel() * args[-2].shape[-1])


FLOP: dict[Any, Callable[[Any, Any], float]] = {
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.mm: _product,
    aten.addmm: _product,
    aten.bmm: _product,
    aten.baddbmm: _product,
}


def measure(device: torch.device, precision: Precision) -> Ceilings:
    """Ceilings of ``device``, each the best of several tries."""
    side, megabytes = (8192, 1024) if device.type == "cuda" else (1024, 128)
    a = torch.randn(side, side, device=device, dtype=DTYPES[precision])
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: void(a @ a), device)
    copy = _best(lambda: void(target.copy_(source)), device)
    return Ceilings(2.0 * side**3 / product, 2.0 * source.nbytes / copy)


def _best(task: Callable[[], None], device: torch.device, tries: int = 10) -> float:
    """Seconds of the fastest of ``tries``; on a CPU of process time, as other load takes turns."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(tries + 2):
        started = clock()
        task()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return min(seconds)


def void(_: object) -> None:
    return None
