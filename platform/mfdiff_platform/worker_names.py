"""Names for Ray Train's workers, which on the dashboard are all alike otherwise.

Built on what Ray 2.60 has inside; `pyproject.toml` pins it, and a test looks the name up.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup


class WorkerNames(ControllerCallback):
    """Makes the actors of a group, and their processes, go by ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def after_controller_start(self, train_run_context: Any) -> None:
        """Runs in the controller's process, which serves this one run."""
        WorkerGroup._worker_cls = type(self._name, (RayTrainWorker,), {})
