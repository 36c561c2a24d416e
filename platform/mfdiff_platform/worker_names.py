"""Names for Ray Train's workers, which on the dashboard are all alike otherwise.

Built on what Ray 2.60 has inside; `pyproject.toml` pins it, and a test looks the name up.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup


class WorkerNames(ControllerCallback):
    """Makes the actors of a group, and their processes, go by ``name`` and their GPU."""

    def __init__(self, name: str) -> None:
        self._name = name

    def after_controller_start(self, train_run_context: Any) -> None:
        """Runs in the controller's process, which serves this one run."""
        name = self._name
        WorkerGroup._worker_cls = type(name, (RayTrainWorker,), {"__repr__": lambda _: _told(name)})


def _told(name: str) -> str:
    """``name`` with the worker's GPU, in whose order ranks are given on a node."""
    gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return f"{name} GPU {', '.join(gpus)}" if gpus else name
