"""What passes between a study's ledger, its searcher and its trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FINAL = "final"
"""Key of the last report of a trial that ran to its end; its metrics are those of the bundle."""
LAST = "last/"
"""Prefix, in that report, of the metrics of the last validation, which may not be the best one."""


@dataclass(frozen=True)
class Suggestion:
    """What a trial is asked to do; ``reference`` names a fixed recipe, empty for a search point.

    ``distributions`` holds, as JSON, where each parameter was drawn from.
    """

    number: int
    recipe: dict[str, Any]
    reference: str = ""
    distributions: dict[str, str] | None = None


@dataclass(frozen=True)
class Observation:
    """A search point that ended in an earlier session.

    ``value`` is its metric after ``iterations``, None if it failed before the first one; ``others``
    are those of a search with several objectives.
    """

    suggestion: Suggestion
    outcome: str
    value: float | None
    iterations: int
    others: tuple[float, ...] = ()
