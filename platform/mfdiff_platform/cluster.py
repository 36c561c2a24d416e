"""Connecting to Ray and asking, before anything starts, whether a request can be met."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mfdiff_core
import mfdiff_platform
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.interrupt import keeping_sigterm
from mfdiff_platform.progress import say

KNOCK_S = 5.0
JUST_ENDING_S, LOOK_S, TELL_S = 5.0, 0.5, 30.0
WAIT_S = 1.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Train's controller drains reports once per interval: its default of 2 s is a step's cost.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Eight workers that import torch from a network disk take longer than the default of 60 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    # A stopped trial may still be writing its bundle when the next one wants its actor.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    # A task that Ray ends for want of memory is begun again without limit unless told.
    "RAY_task_oom_retries": "2",
    # Fractional GPUs are assigned by us; without this Ray warns about its own future default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Resources:
    """Logical CPUs and GPUs."""

    cpus: float = 0
    gpus: float = 0

    def holds(self, need: Resources) -> bool:
        """Whether ``need`` fits."""
        return need.cpus <= self.cpus and need.gpus <= self.gpus

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' * (self.gpus != 1)}" if self.gpus else ""
        return f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}{gpus}"


@dataclass(frozen=True)
class Cluster:
    """A connected Ray cluster."""

    dashboard: str

    @property
    def total(self) -> Resources:
        """What the whole cluster has."""
        import ray

        have = ray.cluster_resources()
        return Resources(cpus=have.get("CPU", 0), gpus=have.get("GPU", 0))

    @property
    def free(self) -> Resources:
        """What nobody uses."""
        import ray

        free = ray.available_resources()
        return Resources(cpus=free.get("CPU", 0), gpus=free.get("GPU", 0))

    def require(self, need: Resources, purpose: str, instead: str) -> None:
        """Fail at once where Ray would wait for ever.

        Raises:
            ResourceError: the cluster is too small; says what it has and what to type instead.
        """
        have = self.total
        if not have.holds(need):
            raise ResourceError(f"{purpose} needs {need}, this cluster has {have}; {instead}")

    def obtain(self, need: Resources, purpose: str, instead: str, *, wait: bool) -> None:
        """See that ``need`` is there and free, or wait for it.

        With ``wait`` a cluster that can grow is asked to; without, only work that is just ending
        is waited for.

        Raises:
            ResourceError: the cluster is too small, or others use it.
        """
        if not wait:
            self.require(need, purpose, instead)
        elif not self.total.holds(need):
            _ask_to_grow(need)
        until, told = time.monotonic() + JUST_ENDING_S, 0.0
        while not self.free.holds(need):
            if not wait and time.monotonic() > until:
                raise ResourceError(
                    f"{purpose} needs {need}, of {self.total} only {self.free} are free; wait for"
                    f" them with --wait, or {instead}"
                )
            if wait and time.monotonic() >= told:
                told = time.monotonic() + TELL_S
                say(f"Waiting: {purpose} needs {need}, {self.free} of {self.total} are free.")
            time.sleep(LOOK_S)


def prepare_environment(*, joining: bool) -> None:
    """Set what Ray reads when it is imported; what the user has set stays.

    Args:
        joining: whether a running cluster is going to be used.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if joining and token_file().is_file():
        # Clients of a running cluster leave the token unused unless they are told.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def is_connected() -> bool:
    """Whether this process uses a cluster already; imports no Ray to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def is_addressed() -> bool:
    """Whether commands use a cluster that already runs, rather than this machine."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def machine() -> Resources:
    """What a cluster started on this machine would have, counted without starting one.

    Asks torch for what it can use only where Ray sees a GPU at all: it takes seconds to import.
    """
    from ray._private.utils import get_num_cpus

    gpus = _gpus_in_sight()
    if gpus:
        import torch

        gpus = torch.cuda.device_count()
    return Resources(cpus=int(get_num_cpus()), gpus=gpus)


def _gpus_in_sight() -> int:
    """GPUs that Ray finds and that the environment does not hide from it."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    if manager is None:
        return 0
    visible = manager.get_current_process_visible_accelerator_ids()
    found = int(manager.get_current_node_num_accelerators())
    return found if visible is None else min(found, len(visible))


def _ask_to_grow(need: Resources) -> None:
    """Ask the autoscaler, where there is one, for nodes that ``need`` fits on."""
    from ray.autoscaler.sdk import request_resources

    gpus = int(need.gpus)
    one = {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
    request_resources(bundles=[one] * (gpus or int(need.cpus)))


def package_roots() -> list[str]:
    """Folders from which workers import both packages, installed or in a checkout."""
    roots = (Path(p.__file__ or "").resolve().parents[1] for p in (mfdiff_core, mfdiff_platform))
    return list(dict.fromkeys(map(str, roots)))


@contextmanager
def connect(
    *, cpus: int | None = None, gpus: int | None = None, purpose: str = ""
) -> Iterator[Cluster]:
    """Join the cluster of ``RAY_ADDRESS``, or start one on this machine for the block.

    A block inside another shares its cluster.

    Args:
        cpus, gpus: logical resources of a cluster started here; None counts the machine's.
        purpose: what the dashboard's list of jobs says this is.

    Raises:
        ResourceError: the cluster of ``RAY_ADDRESS`` does not answer, or none can be started here.
    """
    prepare_environment(joining=is_addressed())
    import ray

    if ray.is_initialized():
        yield Cluster(_dashboard_url())
        return
    with keeping_sigterm():
        _start(cpus, gpus, purpose)
    try:
        yield Cluster(_dashboard_url())
    finally:
        ray.shutdown()


def _start(cpus: int | None, gpus: int | None, purpose: str) -> None:
    import ray
    from ray.job_config import JobConfig

    quiet = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "job_config": JobConfig(metadata={"purpose": purpose} if purpose else {}),
    }
    if is_addressed():
        address = os.environ["RAY_ADDRESS"]
        try:
            knock(address)
            ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ray.exceptions.RayError) as fault:
            raise ResourceError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({fault}); start it, or unset"
                " RAY_ADDRESS to use this machine"
            ) from None
        return
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*package_roots(), *inherited]))
    _keep_token_private()
    try:
        ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=True, **quiet)
    except Exception as fault:  # Ray raises plain ones where its own processes do not come up
        ray.shutdown()
        raise ResourceError(
            f"Ray did not start on this machine ({_first_line(fault)}); it may be too busy or out"
            " of memory: try again when it has less to do"
        ) from fault


def knock(address: str) -> None:
    """Raise OSError within seconds where nobody listens; Ray would try for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def token_file() -> Path:
    """Where Ray's authentication token lies, if there is one."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _keep_token_private() -> None:
    """Close the folder of Ray's authentication token, which Ray itself writes for all to read.

    A umask would do as well, but workers inherit it, and a site's colleagues share their files.
    """
    folder = Path.home() / ".ray"
    with suppress(OSError):  # no home to write to: then Ray finds no place for a token either
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)


def as_completed(
    tasks: list[Any], while_waiting: Callable[[], None] = lambda: None
) -> Generator[Any, None, None]:
    """Results of Ray tasks as they come; a task's fault is raised in its own words.

    Whatever ends the iteration early, such as that fault or Ctrl-C, ends the other tasks too.

    Args:
        tasks: what runs.
        while_waiting: called about once a second, and after each result.

    Raises:
        ResourceError: Ray itself gave up: a worker or its machine died, or ran out of memory.
    """
    import ray

    try:
        while tasks:
            ready, tasks = ray.wait(tasks, num_returns=1, timeout=WAIT_S)
            if ready:
                yield ray.get(ready[0])
            while_waiting()
    except ray.exceptions.RayTaskError as failure:
        raise failure.cause from None
    except ray.exceptions.RayError as failure:
        raise ResourceError(
            f"Ray lost a task ({_first_line(failure)}); see that the machine has memory and"
            " time to spare, then give the same command again: it goes on from what is finished"
        ) from None
    finally:
        for left in tasks:
            # By force: a worker of a command begun with `nohup` or `&` is deaf to an interrupt.
            ray.cancel(left, force=True)


def _first_line(fault: Exception) -> str:
    return str(fault).strip().partition("\n")[0]


def _dashboard_url() -> str:
    import ray

    url = ray.get_runtime_context().gcs_address and ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else ""


def versions() -> dict[str, str]:
    """Versions that matter, for provenance and `--version`."""
    from importlib.metadata import version

    names = ("mfdiff-platform", "torch", "ray", "mlflow", "optuna")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}
