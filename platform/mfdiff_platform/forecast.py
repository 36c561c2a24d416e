"""What a trial would end with, from what others of its strategy gained from the same point on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


class Forecast:
    """Knows where trials that ran to their ends had stood at the rungs, by strategy.

    Early figures of different strategies cannot be compared: a model from scratch begins as the
    LPET, a fine-tuned one as what the phantoms taught, and their gains to come differ as much.

    Attributes:
        best: the best score that any trial ended with; higher is better.
    """

    def __init__(self) -> None:
        self.best = -math.inf
        self._stood: dict[tuple[str, int], list[tuple[float, float]]] = {}

    def learn(self, strategy: str, stood: Mapping[int, float], end: float) -> None:
        """A trial ran to its end; one that diverged there teaches nothing.

        Args:
            strategy: of the trial.
            stood: its best score when it came to each rung.
            end: its score at the end.
        """
        if not math.isfinite(end):
            return
        self.best = max(end, self.best)
        for rung, score in stood.items():
            gain = max(0.0, end - score)
            self._stood.setdefault((strategy, rung), []).append((score, gain))

    def gain(self, strategy: str, rung: int, score: float) -> float:
        """What a trial that comes to a rung with ``score`` would still gain.

        Interpolated between those that stood above and below it then; ahead of them all, or
        behind, as the nearest did. Nothing where no trial of the strategy has come to its end.
        """
        gains: dict[float, list[float]] = {}
        for stood, gained in sorted(self._stood.get((strategy, rung), ())):
            gains.setdefault(stood, []).append(gained)
        if not gains:
            return 0.0
        means = [sum(equal) / len(equal) for equal in gains.values()]
        return float(np.interp(score, list(gains), means))
