"""A trial on several GPUs: Ray Train inside Ray Tune, one worker per GPU.

To the search it is a trial like any other. Its first worker writes each validation to a file; the
trial's own process, which trains nothing, passes them on to Tune and asks the workers to stop
where Tune stops the trial. A worker that dies fails the trial.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.files import write_json
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.context import RayTrainContext, Stopped
from mfdiff_platform.events import EVENT_KEYS, EventLog, EventReader
from mfdiff_platform.interrupt import STOP
from mfdiff_platform.train_group import RAY, STOP_S, fit_group, watch
from mfdiff_platform.trial import BUNDLE, Report, TrialSetting, keep_trial, train_trial
from mfdiff_platform.trial_data import SharedData
from mfdiff_platform.workers import Workers

REPORTS, WORKERS = "reports.jsonl", "workers"


@dataclass(frozen=True)
class _Task:
    """What the workers of a trial are told."""

    number: int
    recipe: Recipe
    setting: TrialSetting
    data: SharedData


def run_trial_together(
    number: int, recipe: Recipe, setting: TrialSetting, data: SharedData, report: Report
) -> Bundle:
    """`run_trial` with ``setting.workers`` workers, which share each batch and each validation.

    Raises:
        GroupDied: a worker died.
        MfdiffError: what a worker raised.
    """
    folder = setting.place(number)
    for left in (folder / REPORTS, folder / STOP):
        left.unlink(missing_ok=True)
    reports, ended = EventReader(folder / REPORTS), Event()
    told = {"task": _Task(number, recipe, setting, data)}
    workers = Workers(setting.workers, on_gpu=setting.on_gpu)

    name = f"adapt {setting.domain} {setting.study} trial {number}"

    def work() -> bool:
        try:
            return fit_group(folder, _worker, told, workers, name)
        finally:
            ended.set()

    def pass_on() -> None:
        for event in reports.new():
            report({name: value for name, value in event.items() if name not in EVENT_KEYS})

    try:
        watch(work, pass_on)
        pass_on()
    except BaseException:  # Tune ends a trial by SystemExit from within its report
        (folder / STOP).touch()
        ended.wait(STOP_S)
        raise
    finally:
        shutil.rmtree(folder / RAY, ignore_errors=True)
    return load_bundle(folder / BUNDLE)


def _worker(config: dict[str, Any]) -> bool:
    """A worker of Ray Train; says whether the trial came to its end rather than being stopped."""
    import ray

    torch.use_deterministic_algorithms(True, warn_only=True)
    task: _Task = config["task"]
    folder: Path = task.setting.place(task.number)
    context = RayTrainContext(folder)
    card = context.card()
    write_json(folder / WORKERS / f"{card.rank}.json", asdict(card))
    data = ray.get(task.data.ref)
    log = EventLog(folder / REPORTS) if context.share.rank == 0 else None

    def report(metrics: dict[str, float]) -> None:
        if log is not None:
            log.append("validated", int(metrics["iterations"]), metrics)

    try:
        done = train_trial(task.number, task.recipe, task.setting, data, report, context)
    except Stopped:
        return False
    if log is not None:
        keep_trial(task.number, task.recipe, task.setting, data, done)
    return True
