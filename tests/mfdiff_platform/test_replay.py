"""Searches replayed on the recorded table: no training, so what they cost is exact."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from benchmarks.search import POLICIES, WITHIN_DB, Table, cost
from mfdiff_platform.ledger import config_key

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "search_table.json"
SEEDS = range(8)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.load(TABLE)


def test_table_holds_every_recipe_of_its_space(table: Table) -> None:
    assert len(table.curves) == 48
    assert all(curve[-1][0] == table.iterations for curve in table.curves.values())
    drawn = {"strategy": "internal", "lr": 1e-4, "schedule": "cosine"}
    fixed = {"iterations": table.iterations, "batch_size": 2, "ema": 0.9}
    assert config_key(drawn | fixed) in table.curves


def test_search_of_adapt_costs_at_most_an_eighth_of_the_table(table: Table) -> None:
    found = [cost(table, *POLICIES["tpe+asha"], seed) for seed in SEEDS]
    assert mean(spent for spent, _ in found) < table.whole / 8
    assert all(regret <= WITHIN_DB for _, regret in found)


def test_same_seed_costs_the_same(table: Table) -> None:
    assert cost(table, *POLICIES["adapt"], 3) == cost(table, *POLICIES["adapt"], 3)


def test_points_that_a_study_is_given_halve_what_a_search_costs(table: Table) -> None:
    found = {
        policy: mean(cost(table, *POLICIES[policy], seed)[0] for seed in SEEDS)
        for policy in ("tpe+asha", "adapt")
    }
    assert found["adapt"] < found["tpe+asha"] / 2
