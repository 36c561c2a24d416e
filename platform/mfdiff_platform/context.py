"""What a training loop needs from its launcher, so that it knows neither Ray nor its absence."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Share
from mfdiff_platform.checkpoints import Checkpoints
from mfdiff_platform.interrupt import StopFile


@dataclass(frozen=True)
class WorkerCard:
    """Who a worker is and where: what connects a process on the dashboard with its rank.

    Attributes:
        rank: its number in the group.
        host, pid: its process.
        device: where it trains.
        gpus: ids of the GPUs that Ray gave it, logical ones included.
        node: Ray's id of its node.
    """

    rank: int
    host: str
    pid: int
    device: str
    gpus: tuple[str, ...] = ()
    node: str = ""


class TrainContext(Protocol):
    """Launcher of a training loop; every worker calls each method at the same steps."""

    share: Share
    device: torch.device

    def card(self) -> WorkerCard:
        """Who this worker is."""
        ...

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model, made to average gradients over the workers."""
        ...

    def checkpoint(self, state: TrainState) -> None:
        """Keep ``state``, which is the same on every worker."""
        ...

    def resume(self, state: TrainState) -> None:
        """Load the newest sound checkpoint into ``state``, if there is one."""
        ...

    def stopping(self) -> bool:
        """Whether to stop before the next step; the answer is the same on every worker."""
        ...


class Stopped(Exception):
    """A stop was asked for; the state is that of a whole step."""


class LocalContext:
    """One process; on the GPU if there is one, unless it is told a device."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self.share = Share()
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._checkpoints, self._asked = Checkpoints(folder), StopFile(folder)

    def card(self) -> WorkerCard:
        """This process."""
        return WorkerCard(0, socket.gethostname(), os.getpid(), str(self.device))

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model itself."""
        return model

    def checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint."""
        self._checkpoints.save(state)

    def resume(self, state: TrainState) -> None:
        """Load the newest sound checkpoint, if there is one."""
        self._checkpoints.load(state)

    def stopping(self) -> bool:
        """Whether the stop file is there."""
        return self._asked()


class GroupContext:
    """One of several processes that torch.distributed connects.

    What the workers tell each other beside gradients goes over a gloo group of its own: it lives
    in main memory, so nothing here makes a GPU wait.
    """

    def __init__(self, folder: Path, share: Share, device: torch.device) -> None:
        self.share, self.device = share, device
        self._checkpoints, self._asked = Checkpoints(folder), StopFile(folder)
        self._group = dist.new_group(backend="gloo") if share.world_size > 1 else None
        self._vote: tuple[Any, torch.Tensor] | None = None

    def card(self) -> WorkerCard:
        """This worker."""
        return WorkerCard(self.share.rank, socket.gethostname(), os.getpid(), str(self.device))

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model under DistributedDataParallel."""
        parallel = torch.nn.parallel.DistributedDataParallel
        return parallel(model) if self.share.world_size > 1 else model

    def checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint, on rank 0; the others go on to their next exchange with it."""
        if self.share.rank == 0:
            self._checkpoints.save(state)

    def resume(self, state: TrainState) -> None:
        """Load what rank 0 finds newest and sound: folders may look different from afar."""
        step = torch.zeros(1, dtype=torch.int64)
        if self.share.rank == 0:
            step[0] = self._checkpoints.load(state)
        if self._group is not None:
            dist.broadcast(step, 0, group=self._group)
        if self.share.rank != 0 and step.item():
            self._checkpoints.load_step(state, int(step.item()))

    def stopping(self) -> bool:
        """Whether a worker had seen the stop file one step ago.

        The vote of a step is counted at the next one, so nobody waits for it.
        """
        if self._group is None:
            return self._asked()
        decided = False
        if self._vote is not None:
            counting, votes = self._vote
            counting.wait()
            decided = bool(votes.item())
        votes = torch.tensor([int(self._asked())])
        self._vote = dist.all_reduce(votes, group=self._group, async_op=True), votes
        return decided


class RayTrainContext(GroupContext):
    """A worker of a Ray Train group."""

    def __init__(self, folder: Path) -> None:
        import ray
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self._gpus = tuple(map(str, ray.get_gpu_ids()))
        self._node = str(ray.get_runtime_context().get_node_id())
        # Ray names a CUDA device even where torch has none, or the worker was given none.
        on_gpu = torch.cuda.is_available() and bool(self._gpus)
        device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
        share = Share(context.get_world_rank(), context.get_world_size())
        super().__init__(folder, share, device)

    def card(self) -> WorkerCard:
        """This worker, with the node and GPU that Ray gave it."""
        return replace(super().card(), gpus=self._gpus, node=self._node)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model under DistributedDataParallel, on this worker's device."""
        import ray.train.torch

        wrapped: torch.nn.Module = ray.train.torch.prepare_model(
            model, move_to_device=self.device.type == "cuda"
        )
        return wrapped
