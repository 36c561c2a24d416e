"""One update of the weights: noise, forward and backward in micro-batches, clipping, AdamW.

All randomness of a step is drawn for the global batch and keyed by (seed, step), so a step can be
shared by workers, cut into micro-batches or done again, and remains the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from mfdiff_core.data.batches import Batch
from mfdiff_core.errors import TrainingError
from mfdiff_core.seeding import derive_seed, generator
from mfdiff_core.training.optim import OptimConfig, averaged_tensors, lr_factor, set_lr
from mfdiff_core.training.state import TrainState

Precision = Literal["fp32", "bf16"]
Features = Callable[[Batch], Tensor | None]
"""F of a batch, or None where the step computes it itself, see `FrozenFeatures`."""


@dataclass(frozen=True)
class Share:
    """This worker's part of each global batch."""

    rank: int = 0
    world_size: int = 1

    def of(self, batch: Batch) -> Batch:
        """Rows of this worker.

        Raises:
            TrainingError: the batch cannot be shared out evenly.
        """
        rows = len(batch.x_s)
        if rows % self.world_size:
            raise TrainingError(
                f"a batch of {rows} cannot be shared by {self.world_size} workers;"
                " choose a multiple"
            )
        return batch.chunk(self.world_size, self.rank)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``values`` over the workers."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values / self.world_size


WHOLE = Share()


class Updated(NamedTuple):
    """Loss and gradient norm of a step, left on the device so that nothing waits for them."""

    loss: Tensor
    grad_norm: Tensor

    @property
    def usable(self) -> Tensor:
        """Whether the weights were updated; the same on every worker, as gradients are shared."""
        return torch.isfinite(self.grad_norm)


@dataclass
class Stepper:
    """Carries out steps.

    Attributes:
        state: what is trained; updated in place.
        module: the model as it is called: itself, compiled, or wrapped for several workers.
        optim: optimiser settings.
        seed: keys noise, diffusion steps and dropout.
        precision: ``bf16`` runs the network under autocast.
        iterations: length of the run, which the learning-rate schedule needs.
        accumulate: micro-batches that this worker's rows are cut into.
        share: which rows are this worker's.
        features: F of images, while the fusion is frozen.
        anchors: weights that L2-SP pulls towards, by parameter name.
    """

    state: TrainState
    module: nn.Module
    optim: OptimConfig
    seed: int
    precision: Precision
    iterations: int
    accumulate: int
    share: Share
    features: Features
    anchors: Mapping[str, Tensor]
    _halved: bool = False

    def __call__(self, batch: Batch) -> Updated:
        """One step; where memory does not suffice, done again in micro-batches half as large.

        Args:
            batch: the global batch, on the model's device.

        Raises:
            TrainingError: out of memory again, or where other workers wait for this one.
        """
        rows = self.share.of(batch)
        before = [(buffer, buffer.clone()) for buffer in self.state.model.statistics()]
        try:
            return self._update(rows, before)
        except (RuntimeError, MemoryError) as fault:
            if not _is_out_of_memory(fault):
                raise
            if self._halved or self.share.world_size > 1 or self._micro_batch(rows) == 1:
                raise TrainingError(self._what_fits(rows)) from None
        # Outside the handler: its traceback would keep the tensors that did not fit.
        for buffer, old in before:
            buffer.copy_(old)
        self._halved, self.accumulate = True, 2 * self.accumulate
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self(batch)

    def _micro_batch(self, rows: Batch) -> int:
        return -(-len(rows.x_s) // self.accumulate)

    def _what_fits(self, rows: Batch) -> str:
        device, size = rows.x_s.device, self._micro_batch(rows)
        smaller = f"train.accumulate={2 * self.accumulate}, " if size > 1 else ""
        return (
            f"out of memory on {device} with {size} slice(s) at a time; try --set {smaller}"
            "train.precision=bf16, model.network.fusion.checkpointing=true or"
            " model.network.unet.checkpointing=true, or a smaller preset"
        )

    def _update(self, rows: Batch, before: list[tuple[Tensor, Tensor]]) -> Updated:
        """Forward, backward and one update of the weights; a non-finite one changes nothing.

        Args:
            rows: this worker's part of the batch.
            before: running statistics and copies of them to go back to.
        """
        optimizer = self.state.optimizer
        factor = lr_factor(self.optim, self.state.step, self.iterations)
        set_lr(optimizer, self.optim.lr * factor)
        torch.manual_seed(derive_seed(self.seed, "dropout", self.state.step, self.share.rank))
        optimizer.zero_grad(set_to_none=True)
        loss = self._backward(rows)
        self._pull()
        updated = Updated(loss, self._clip())
        # A fused optimiser leaves everything as it was where found_inf is 1; asking the device
        # for the norm here would stall it.
        optimizer.found_inf = (~updated.usable).float()  # type: ignore[attr-defined]
        optimizer.step()
        for buffer, old in before:
            buffer.copy_(torch.where(updated.usable, buffer, old))
        if self.state.average is not None:
            self.state.average.update(averaged_tensors(self.state.model), self.state.step)
        return updated

    def _clip(self) -> Tensor:
        """Clip what is trained, an adversary apart from its opponent; returns the norm of all."""
        adversary = self.state.model.adversary
        trained = [p for group in self.state.optimizer.param_groups for p in group["params"]]
        parts = [[p for p in trained if (p in adversary) is apart] for apart in (False, True)]
        norms = [nn.utils.clip_grad_norm_(p, self.optim.max_grad_norm) for p in parts if p]
        return norms[0] if len(norms) == 1 else torch.stack(norms).norm()

    def _backward(self, rows: Batch) -> Tensor:
        """Gradients of the mean loss over ``rows``; returns that loss."""
        drawn = self._draw(rows)
        f = self.features(rows)
        device, count = rows.x_s.device, len(rows.x_s)
        total = torch.zeros((), device=device)
        for piece, last in _pieces(count, self.accumulate):
            given = {} if f is None else {"f": f[piece]}
            inputs = [values[piece] for values in (*rows.images, *self._measured(rows), *drawn)]
            with self._syncing(last=last):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss: Tensor = self.module(*inputs, **given)
                loss = loss * ((piece.stop - piece.start) / count)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().float()
        return total

    def _measured(self, rows: Batch) -> tuple[Tensor, ...]:
        """y and AN of a batch for a system that reconstructs."""
        if not self.state.model.needs_sinograms:
            return ()
        assert rows.sinograms is not None, "preflight refuses datasets without sinograms"
        return rows.sinograms.unbind(1)

    def _syncing(self, *, last: bool) -> AbstractContextManager[None]:
        """Workers average gradients after the last micro-batch only."""
        if last or not isinstance(self.module, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def _draw(self, rows: Batch) -> list[Tensor]:
        """What is random for this worker's rows, cut from the global batch's."""
        source = generator(self.seed, "noise", self.state.step)
        count, rank, device = len(rows.x_s), self.share.rank, rows.x_s.device
        shape = torch.Size((count * self.share.world_size, *rows.x_s.shape[1:]))
        drawn = self.state.model.draw(shape, self.state.step / self.iterations, source)
        mine = slice(rank * count, (rank + 1) * count)
        return [values[mine].to(device, non_blocking=True) for values in drawn]

    def _pull(self) -> None:
        """Add the gradient of l2sp / 2 * |w - w_0|^2 (L2-SP, arXiv 1802.01483)."""
        if self.optim.l2sp == 0:
            return
        for name, parameter in self.state.model.named_parameters():
            if parameter.grad is not None and name in self.anchors:
                anchor = self.anchors[name].to(parameter.device)
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.optim.l2sp)


def _pieces(rows: int, count: int) -> Iterator[tuple[slice, bool]]:
    """At most ``count`` slices of nearly equal length over ``rows``, and which is the last."""
    size = -(-rows // count)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows)), start + size >= rows


def _is_out_of_memory(fault: BaseException) -> bool:
    """CUDA says so by type, the CPU allocator only in words."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(fault) or "not enough memory" in str(fault)
