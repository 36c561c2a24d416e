"""A group of Ray Train workers, run to its end: restarted when one dies, stopped when asked.

Ray's own restarts count failures over a run's whole life and repeat faults that no repetition
mends. Here a run gives up after three deaths in a row without a new checkpoint, and at once when
a worker says in words of ours what is wrong.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from mfdiff_core.errors import MfdiffError, TrainingError
from mfdiff_platform.checkpoints import Checkpoints
from mfdiff_platform.interrupt import StopRequest
from mfdiff_platform.progress import say
from mfdiff_platform.workers import Workers

RAY = "ray"
"""Folder of Ray's own notes about a run."""
MOST_DEATHS = 3
"""Deaths in a row, with no checkpoint between them, after which a run gives up."""
STOP_S = 25.0
"""How long workers may take to stop at a checkpoint; schedulers kill after 30 s."""

_CUT_OFF = ("connection reset by peer", "connection closed by peer", "remote process exited")
"""What gloo and NCCL say to a worker whose neighbour is gone."""

Loop = Callable[[dict[str, Any]], bool]


def run_group(
    folder: Path,
    loop: Loop,
    config: dict[str, Any],
    workers: Workers,
    before_restart: Callable[[], None],
    name: str,
) -> None:
    """Run ``loop`` on every worker until it says that the run is finished.

    Args:
        folder: the run's folder, with its checkpoints and its stop file.
        loop: a worker; returns False when it was stopped.
        config: its argument.
        workers: how many, and on what.
        before_restart: sees that the cluster still has what the group needs.
        name: of the workers on the dashboard.

    Raises:
        KeyboardInterrupt: it was stopped, with a checkpoint if there was time for one.
        TrainingError: workers die without getting anywhere.
        MfdiffError: what a worker raised.
    """
    checkpoints, deaths = Checkpoints(folder), 0
    stop = StopRequest(folder)
    with stop.on_signals():
        while True:
            reached = checkpoints.newest()
            try:
                if not watch(
                    lambda: fit_group(folder, loop, config, workers, name),
                    lambda: _lose_patience(stop),
                ):
                    raise stop.fault()
                shutil.rmtree(folder / RAY, ignore_errors=True)
                return
            except GroupDied as death:
                if stop.seconds:  # a signal to the whole process group, say
                    say(f"No checkpoint of the last step ({death}); the one before stays.")
                    raise stop.fault() from None
                deaths = 1 if checkpoints.newest() > reached else deaths + 1
                if deaths > MOST_DEATHS:
                    raise TrainingError(
                        f"workers died {deaths} times without a new checkpoint, last: {death}"
                    ) from None
                where = f"step {checkpoints.newest()}" if checkpoints.newest() else "the start"
                say(f"A worker died ({death}); going on from {where}.", mark="[yellow]![/] ")
            before_restart()


class GroupDied(Exception):
    """A worker, its node or Ray's controller died; the same again may go well."""


def watch(work: Callable[[], bool], look: Callable[[], None]) -> bool:
    """Result of ``work()``, which runs in a thread: signals are the main thread's.

    Off the main thread Ray Train leaves the signal handlers alone, too.

    Args:
        work: what takes long.
        look: called a few times a second meanwhile; what it raises ends the wait.
    """
    results: list[bool] = []
    faults: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as fault:
            faults.append(fault)

    thread = Thread(target=attempt, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        look()
    if faults:
        raise faults[0]
    return results[0]


def _lose_patience(stop: StopRequest) -> None:
    """Raise where a stop was asked for and takes too long."""
    if stop.seconds > STOP_S:
        say(f"No checkpoint within {STOP_S:g} s; going back to the one before.")
        raise stop.fault()


def fit_group(
    folder: Path, loop: Loop, config: dict[str, Any], workers: Workers, name: str
) -> bool:
    """One group of workers, until it ends in one way or another.

    Args:
        folder: where Ray keeps its notes.
        loop, config, workers: see `run_group`.
        name: of the workers on the dashboard.

    Raises:
        GroupDied: a worker, its node or Ray's controller died.
        MfdiffError: what a worker raised.
    """
    import ray.train
    import torch
    from ray.train.torch import TorchConfig, TorchTrainer

    from mfdiff_platform.worker_names import WorkerNames

    # Logical GPUs of a machine without CUDA, as in tests, still train over gloo.
    on_cuda = workers.on_gpu and torch.cuda.is_available()
    trainer = TorchTrainer(
        loop,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if on_cuda else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.on_gpu,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if workers.on_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            # Checkpoints are ours, so no group has anything to take over from an earlier one.
            name=f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 1000:03d}",
            storage_path=str(folder / RAY),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=ray.train.LoggingConfig("ERROR"),
            callbacks=[WorkerNames(name)],
        ),
    )
    try:
        return bool(trainer.fit().return_value)
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as failure:
        causes = [_cause(fault) for fault in _failures(failure)]
        for cause in causes:
            if isinstance(cause, MfdiffError):
                raise cause from None
        raise GroupDied(_words(causes)) from None


def _failures(failure: Exception) -> list[Exception]:
    """What the workers raised, or the failure itself."""
    return list((getattr(failure, "worker_failures", None) or {}).values()) or [failure]


def _cause(fault: Exception) -> Exception:
    """The worker's own exception rather than Ray's wrapping."""
    own: Exception = getattr(fault, "_base_exc", None) or getattr(fault, "cause", None) or fault
    return own


def _words(causes: list[Exception]) -> str:
    """The most telling of the causes in one line: a death explains its neighbours' faults.

    Ray may hear of a neighbour's broken connection before it hears of the death itself.
    """
    import ray

    if any(isinstance(cause, ray.exceptions.RayActorError) or _cut_off(cause) for cause in causes):
        return "its process or its node is gone"
    told = (str(causes[0]).strip() or type(causes[0]).__name__).splitlines()
    return told[-1].strip()


def _cut_off(cause: Exception) -> bool:
    """Whether gloo or NCCL says that another worker went away."""
    text = str(cause).lower()
    return isinstance(cause, RuntimeError) and any(words in text for words in _CUT_OFF)
