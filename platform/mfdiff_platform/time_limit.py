"""How long a trial may take before it counts as hanging."""

from __future__ import annotations

from mfdiff_platform.ledger import Ledger, TrialRecord

PATIENCE = 5.0
"""A trial may take this many times as long as the slowest reference of the same work."""
LEAST_S = 300.0
"""However short the references are: clusters are busy."""
START_S = 120.0
"""On top of the limit for the first trial of a worker, which has yet to import all it needs."""
UNKNOWN_S = 24 * 3600.0
"""Limit until a reference has ended."""


def derived_limit_s(ledger: Ledger, largest_batch: float = 1.0) -> float:
    """Limit from what the references took.

    Args:
        ledger: trials so far.
        largest_batch: the space's largest batch over that of the references.
    """
    took = [record.seconds for record in ledger.finished() if _is_trained_reference(record)]
    if not took:
        return UNKNOWN_S
    return max(LEAST_S, PATIENCE * max(took) * largest_batch)


def _is_trained_reference(record: TrialRecord) -> bool:
    return bool(record.config["reference"]) and record.iterations > 0
