"""Checkpoints of one run: the newest two kept, each whole or absent, each with its hash.

    checkpoints/step_00001000/      one `TrainState`

They lie in the run's folder rather than in Ray's storage, so that what a killed run left can be
read without Ray, and a damaged one gives way to the one before it.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mfdiff_core.errors import DataError
from mfdiff_core.training.state import TrainState
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.progress import say

FOLDER = "checkpoints"
KEPT = 2
_PREFIX = "step_"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COPIES = 5
"""Weights, their average, two moments, and the best ones."""


class Checkpoints:
    """The checkpoints below the run's ``folder``; one process writes at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        names = [path.name for path in self.folder.glob(f"{_PREFIX}*")]
        return sorted(int(name.removeprefix(_PREFIX)) for name in names)

    def newest(self) -> int:
        """Step of the newest checkpoint, 0 without any."""
        return max(self.steps(), default=0)

    def save(self, state: TrainState) -> None:
        """Write ``state`` and drop all but the newest two.

        Raises:
            ResourceError: the disk is full; names the folder and the bytes.
        """
        target = self._of(state.step)
        self._sweep()
        with naming_full_disk(target, checkpoint_bytes(state_bytes(state))):
            state.save(target)
        for step in self.steps()[:-KEPT]:
            shutil.rmtree(self._of(step))

    def load(self, state: TrainState) -> int:
        """Load the newest sound checkpoint; its step, or 0 if there is none."""
        for step in reversed(self.steps()):
            try:
                self.load_step(state, step)
            except DataError as fault:
                say(f"Passing over a damaged checkpoint: {fault}", mark="[yellow]![/] ")
            else:
                return step
        return 0

    def load_step(self, state: TrainState, step: int) -> None:
        """Load one checkpoint.

        Raises:
            DataError: it is not there, damaged, or of another model.
        """
        state.load(self._of(step))

    def _of(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step:08d}"

    def _sweep(self) -> None:
        """Remove what a killed or disk-full save left half written."""
        for path in self.folder.glob(f".{_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def naming_full_disk(target: Path, need: int) -> Iterator[None]:
    """Put a write that fails for lack of space into words.

    Args:
        target: what is written, or the folder it goes to.
        need: bytes of the checkpoint that has to fit.

    Raises:
        ResourceError: the disk is full, or the quota used up.
    """
    try:
        yield
    except (OSError, SafetensorError) as fault:
        full = getattr(fault, "errno", None) in _FULL or any(
            f"os error {n}" in str(fault) for n in _FULL
        )
        if not full:
            raise
        raise ResourceError(no_space(target, need)) from None


def no_space(target: Path, need: int) -> str:
    """What to tell when ``need`` bytes do not fit where ``target`` goes."""
    there = next(path for path in (target, *target.parents) if path.exists())
    return (
        f"{target}: no space for a checkpoint of {need:,} bytes, {shutil.disk_usage(there).free:,}"
        " are free; make room and give the same command again"
    )


def state_bytes(state: TrainState) -> int:
    """Size of one copy of a model's weights."""
    return sum(value.nbytes for value in state.model.state_dict().values())


def checkpoint_bytes(weights: int) -> int:
    """Size of a checkpoint of a model with ``weights`` bytes."""
    return _COPIES * weights
