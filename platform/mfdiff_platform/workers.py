"""The workers of a training, and whether this machine has room for them.

Imports no torch: on a laptop, `pretrain --gpus 8` is to be refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from mfdiff_platform.cluster import Resources, is_addressed, is_connected, machine
from mfdiff_platform.errors import ResourceError


@dataclass(frozen=True)
class Workers:
    """How many workers share a run, and whether each has a GPU."""

    count: int
    on_gpu: bool

    @property
    def resources(self) -> Resources:
        """What they occupy."""
        return Resources(cpus=self.count, gpus=self.count if self.on_gpu else 0)

    @property
    def purpose(self) -> str:
        """What the resources are for, in messages."""
        return f"pretraining with {self.count} worker{'s' * (self.count != 1)}"

    def instead(self, have: Resources) -> str:
        """What to type on a machine or cluster with these resources."""
        on_gpu = self.on_gpu and have.gpus > 0
        fitting = min(have.gpus, have.cpus) if on_gpu else have.cpus
        return f"try {'--gpus' if on_gpu else '--cpus'} {fitting:g}"


def check_machine(workers: Workers) -> None:
    """Refuse what this machine does not have, when it is this machine that is asked.

    Raises:
        ResourceError: it is too small; says what it has and what to type instead.
    """
    if is_connected() or is_addressed():
        return
    have = machine()
    if not have.holds(workers.resources):
        raise ResourceError(
            f"{workers.purpose} needs {workers.resources}, this machine has {have};"
            f" {workers.instead(have)}"
        )
