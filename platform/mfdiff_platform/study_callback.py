"""What happens in the driver when a trial starts, reports or ends: ledger, MLflow, terminal."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ray.tune import Callback

from mfdiff_core.config import flatten, from_dict
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.objective import MODES
from mfdiff_platform.privacy import without_paths
from mfdiff_platform.progress import Task, say
from mfdiff_platform.run import Run
from mfdiff_platform.strip import strip_file
from mfdiff_platform.study import TRIALS, Study, recorded
from mfdiff_platform.study_record import (
    CONTEXTS,
    close_trial_run,
    in_words,
    open_trial_run,
)
from mfdiff_platform.suggestion import FINAL, LAST
from mfdiff_platform.time_limit import START_S, derived_limit_s
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import BUNDLE

_DEATHS = (
    "ActorDiedError",
    "RayActorError",
    "WorkerCrashedError",
    "worker process has died",
    "its process or its node is gone",
)
_LOGGED = (*MODES, "loss")
_OUR_FAULT = re.compile(r"^mfdiff_\w+\.errors\.\w+: ")
"""Before the words of a fault that explains itself; in a table they have little room."""


class StudyCallback(Callback):
    """The one writer of a study: only the driver touches the ledger and MLflow.

    It also ends trials that hang: ``timeout_s`` after their start, or, when that is None, after a
    time derived from the slowest reference.
    """

    def __init__(
        self,
        study: Study,
        store: TrackingStore,
        parent: Run,
        shown: Task,
        timeout_s: float | None = None,
    ) -> None:
        self._study, self._store, self._parent, self._shown = study, store, parent, shown
        self._timeout_s = timeout_s
        space = study.request.search_space()
        self._batch_ratio = space.largest_batch_size / space.batch_size
        self._limit_s = timeout_s or derived_limit_s(study.ledger, self._batch_ratio)
        self._runs: dict[int, Run] = {}
        self._began_at: dict[int, float] = {}
        self._clock_from: dict[int, float] = {}
        self._overdue: dict[int, str] = {}
        self._workers: dict[Any, int] = {}
        self._reached: dict[int, tuple[str, int, float]] = {}
        self._done = len(study.ledger.ended())
        self._aim = study.objectives[0].metric

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the trial and open its run."""
        number = trial.config["number"]
        if number not in {record.number for record in self._study.ledger}:
            self._study.ledger.add(recorded(trial.config), number)
        elif self._study.ledger[number].curve:
            self._study.ledger.update(number, curve=())  # it begins again
        worker = trial.temporary_state.ray_actor
        is_fresh = worker is not None and self._workers.setdefault(worker, number) == number
        self._began_at[number] = time.monotonic()
        self._clock_from[number] = self._began_at[number] + (START_S if is_fresh else 0)
        self._reached[number] = (in_words(trial.config), 0, math.nan)
        self._show()
        run = self._run(trial)
        run.log_config(flatten(from_dict(Recipe, trial.config["recipe"])))
        request = self._study.request
        for part in ("train", "validation"):
            run.log_dataset(f"{request.domain}-{part}", request.data_fingerprint, CONTEXTS[part])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log one validation; at the end also the metrics of the bundle, the best validation's."""
        run, step, final = self._run(trial), int(result["iterations"]), bool(result.get(FINAL))
        finite = {k: v for k, v in _figures(result).items() if math.isfinite(v)}
        last = {k.removeprefix(LAST): v for k, v in finite.items() if k.startswith(LAST)}
        judged = {k: v for k, v in finite.items() if not k.startswith(LAST)}
        curve = last if final else judged
        run.log_metrics({f"validation/{k}": v for k, v in curve.items()}, step)
        if final:
            run.log_metrics({f"best/{k}": v for k, v in judged.items() if k != "loss"}, step)
        number = trial.config["number"]
        self._log_strip(run, number, step)
        if self._aim in judged and not final:
            curve_so_far = self._study.ledger[number].curve
            self._study.ledger.update(number, curve=(*curve_so_far, (step, judged[self._aim])))
        self._reached[number] = (in_words(trial.config), step, result.get(self._aim, math.nan))
        self._show()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Kill workers of trials that take too long; Tune then reports them as failed."""
        for trial in trials:
            number = trial.config["number"]
            over = time.monotonic() - self._clock_from.get(number, math.inf)
            if over > self._limit_s and trial.status == "RUNNING" and number not in self._overdue:
                self._overdue[number] = (
                    f"took longer than {self._limit_s:.0f} s and was ended (--trial-timeout)"
                )
                _kill(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that ran to its end, or that the scheduler stopped."""
        result = trial.last_result or {}
        state = "finished" if result.get(FINAL) else "pruned"
        reason = (
            "" if state == "finished" else f"stopped at {result.get('iterations', 0)} iterations"
        )
        self._end(trial, state, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that failed, with its reason; the search goes on."""
        number = trial.config["number"]
        reason = self._overdue.get(number) or reason_of(trial.error_file)
        say(f"trial {number} failed: {reason}", mark="[red]✗[/] ")
        self._end(trial, "failed", reason)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Close the runs of trials that Ctrl-C cut short; they stay pending in the ledger."""
        for number in {record.number for record in self._study.ledger.in_state("running")}:
            if number in self._runs:
                self._runs[number].finish("interrupted")

    def _end(self, trial: Any, state: str, reason: str) -> None:
        number, result = trial.config["number"], trial.last_result or {}
        metrics = {k: v for k, v in _figures(result).items() if not k.startswith(LAST)}
        self._study.ledger.update(
            number,
            state=state,
            reason=reason,
            metrics=metrics,
            bundle=f"{TRIALS}/{number:04d}/{BUNDLE}" if state == "finished" else "",
            seconds=time.monotonic() - self._began_at.pop(number, time.monotonic()),
            iterations=int(result.get("iterations", 0)),
        )
        if self._timeout_s is None:
            self._limit_s = derived_limit_s(self._study.ledger, self._batch_ratio)
        close_trial_run(self._study, self._run(trial), self._study.ledger[number])
        self._done += 1
        self._reached.pop(number, None)
        self._show()

    def _log_strip(self, run: Run, number: int, step: int) -> None:
        strip = strip_file(self._study.folder / TRIALS / f"{number:04d}", step)
        if strip.is_file():
            run.log_image(strip.read_bytes(), "validation slice", step)

    def _show(self) -> None:
        """Tell the terminal how the search stands."""
        self._shown.update(self._done, self._note())
        rows = [
            (str(number), what, str(step), "" if math.isnan(value) else f"{value:.2f}")
            for number, (what, step, value) in sorted(self._reached.items())
        ]
        self._shown.show_table(("trial", "recipe", "iterations", self._aim), rows)

    def _note(self) -> str:
        states = Counter(record.state for record in self._study.ledger)
        parts = [f"{states[s]} {s}" for s in ("running", "pruned", "failed") if states[s]]
        if states["finished"]:
            best = self._study.best()
            name = best.config["reference"] or f"trial {best.number}"
            parts.insert(0, f"best {best.metrics[self._aim]:.2f} ({name})")
        return ", ".join(parts)

    def _run(self, trial: Any) -> Run:
        """The trial's MLflow run, the same one for ever."""
        number = trial.config["number"]
        if number not in self._runs:
            self._runs[number] = open_trial_run(
                self._study, self._store, self._parent, number, trial.config
            )
        return self._runs[number]


def _kill(trial: Any) -> None:
    """End the worker of a trial, whatever it is doing."""
    import ray

    worker = trial.temporary_state.ray_actor
    if worker is not None:
        ray.kill(worker)


def _figures(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a report, without what Ray Tune adds to it."""
    return {k: float(v) for k, v in result.items() if k.rsplit("/", 1)[-1] in _LOGGED}


def reason_of(error_file: str | None) -> str:
    """Last line of a trial's traceback: the fault in its own words, without paths."""
    if not error_file or not Path(error_file).is_file():
        return "its worker died without a word (out of memory, or killed)"
    text = Path(error_file).read_text()
    if any(death in text for death in _DEATHS):
        return "its worker died (out of memory, or killed)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return without_paths(_OUR_FAULT.sub("", lines[-1])) if lines else "unknown"
