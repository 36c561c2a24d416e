from __future__ import annotations

from pathlib import Path

import pytest

from mfdiff_platform.ledger import Ledger
from mfdiff_platform.time_limit import LEAST_S, PATIENCE, UNKNOWN_S, derived_limit_s


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def ended(ledger: Ledger, number: int, reference: str, seconds: float, iterations: int) -> None:
    ledger.add({"recipe": {}, "reference": reference}, number)
    ledger.update(number, state="finished", seconds=seconds, iterations=iterations)


def test_nothing_is_known_until_a_reference_has_trained(ledger: Ledger) -> None:
    ended(ledger, 0, "external", 5000.0, 0)
    ended(ledger, 3, "", 9000.0, 90)
    assert derived_limit_s(ledger) == UNKNOWN_S


def test_slowest_reference_sets_the_limit(ledger: Ledger) -> None:
    ended(ledger, 1, "two-stage (paper)", 400.0, 90)
    ended(ledger, 2, "internal", 500.0, 90)
    assert derived_limit_s(ledger) == PATIENCE * 500
    assert derived_limit_s(ledger, largest_batch=2.0) == PATIENCE * 1000


def test_short_references_leave_room_for_a_busy_cluster(ledger: Ledger) -> None:
    ended(ledger, 1, "internal", 1.0, 90)
    assert derived_limit_s(ledger) == LEAST_S
