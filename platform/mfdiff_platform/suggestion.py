"""What passes between a study's ledger, its searcher and its trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FINAL = "final"
"""Key of the last report of a trial that ran to its end."""


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
    """A finished search point of an earlier session: its suggestion, outcome and value."""

    suggestion: Suggestion
    outcome: str
    value: float | None
