"""Which trials of a study are stopped early."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from mfdiff_platform.study import SchedulerName
from mfdiff_platform.suggestion import FINAL

REDUCTION = 3


class RecipeHalving(AsyncHyperBandScheduler):
    """ASHA on validation PSNR at matched iterations; reference recipes are never stopped."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or continue a trial that has reported."""
        if trial.config["reference"] or result.get(FINAL):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing to learn: what a trial reached at its end is no bar for trials half way."""


def build_scheduler(name: SchedulerName, iterations: int) -> TrialScheduler:
    """The scheduler of a study.

    Args:
        name: ``asha``, or ``none`` to run every trial to its end.
        iterations: of a full trial; the first rung stands at a ninth of it.
    """
    if name == "none":
        return FIFOScheduler()
    return RecipeHalving(
        time_attr="iterations",
        grace_period=max(1, iterations // REDUCTION**2),
        # Beyond any trial: a trial that reaches max_t is stopped before its last words.
        max_t=100 * max(1, iterations),
        reduction_factor=REDUCTION,
    )
