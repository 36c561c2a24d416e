"""What a training loop needs from its launcher, so that it knows neither Ray nor its absence."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import torch

from mfdiff_core.training.state import TrainState
from mfdiff_core.training.step import Share


class TrainContext(Protocol):
    """Launcher of a training loop."""

    share: Share
    device: torch.device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model, made to average gradients over the workers."""
        ...

    def checkpoint(self, state: TrainState) -> None:
        """Keep ``state``; every worker calls this at the same steps."""
        ...

    def resume(self, state: TrainState) -> None:
        """Load the newest complete checkpoint into ``state``, if there is one."""
        ...


class LocalContext:
    """One process, checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.share = Share()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._folder = folder / "checkpoint"

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model itself."""
        return model

    def checkpoint(self, state: TrainState) -> None:
        """Replace the folder's checkpoint."""
        state.save(self._folder)

    def resume(self, state: TrainState) -> None:
        """Load the folder's checkpoint, if there is one."""
        if self._folder.is_dir():
            state.load(self._folder)


class RayTrainContext:
    """A worker of a Ray Train group; reports are barriers over the workers."""

    def __init__(self) -> None:
        import ray
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.share = Share(context.get_world_rank(), context.get_world_size())
        # Ray names a CUDA device even where torch has none, or the worker was given none.
        on_gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        self.device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model under DistributedDataParallel."""
        import ray.train.torch

        wrapped: torch.nn.Module = ray.train.torch.prepare_model(
            model, move_to_device=self.device.type == "cuda"
        )
        return wrapped

    def checkpoint(self, state: TrainState) -> None:
        """Report rank 0's state as a Ray Train checkpoint."""
        import ray.train

        if self.share.rank != 0:
            ray.train.report({"step": state.step})
            return
        folder = Path(tempfile.mkdtemp(prefix="mfdiff-"))
        try:
            state.save(folder / "state")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": state.step}, checkpoint=checkpoint)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def resume(self, state: TrainState) -> None:
        """Load the newest checkpoint of this run, if there is one."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                state.load(Path(folder) / "state")
