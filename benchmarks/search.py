"""Search quality without training: many searches replayed on a table of recorded trials.

    python -m benchmarks.search --record TABLE --workspace W --domain ood3   (hours; resumes)
    python -m benchmarks.search TABLE [--seeds 100] [--json benchmarks/results/search.json]

`--record` trains every recipe of a small grid to its end and keeps each one's validation curve.
The replay then lets the platform's own searcher and scheduler choose from that table: a trial costs
the iterations it runs before the scheduler stops it, and a search ends when a trial that ran to its
end lies within 0.1 dB of the table's best. A recipe that is suggested again costs nothing, because
a table has few recipes where a real space has none twice. Figures are shares of the iterations that
the whole table takes; ratios to random search have 95 % bootstrap intervals over seeds. The policy
`adapt` begins with the points that a study is given; they are what paid on data like the table's,
so `tpe+asha` says what the search is worth without that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.record import write_result
from mfdiff_core.config import from_dict
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.errors import MfdiffError
from mfdiff_core.files import read_json, write_json
from mfdiff_core.seeding import rng
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.known import rate_ladder
from mfdiff_platform.ledger import config_key
from mfdiff_platform.objective import PSNR
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.scheduler import build_scheduler
from mfdiff_platform.search import trial_data, trial_setting
from mfdiff_platform.search_space import SearchSpace, parse
from mfdiff_platform.searcher import RecipeSearcher
from mfdiff_platform.study import PAPER_RECIPE, Study
from mfdiff_platform.suggestion import FINAL
from mfdiff_platform.trial import run_trial
from mfdiff_platform.workspace import Workspace

GRID: dict[str, list[Any]] = {
    "strategy": ["two_stage", "internal"],
    "lr": [1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3e-2],
    "schedule": ["constant", "cosine"],
    "freeze": ["none", "all-but-up"],
    "ema": [0.5, 0.9, 0.98],
}
WITHIN_DB = 0.1
MOST_SUGGESTIONS = 20
"""Suggestions per recipe of the table after which a search has got stuck."""
POLICIES = {
    "random": ("random", "none", False),
    "grid": ("grid", "none", False),
    "tpe": ("tpe", "none", False),
    "random+asha": ("random", "asha", False),
    "tpe+asha": ("tpe", "asha", False),
    "adapt": ("tpe", "asha", True),
}
"""Policy to sampler, scheduler, and whether the points that `adapt` tries first come first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--workspace", type=Path, default=Path("mfdiff-workspace"))
    parser.add_argument("--domain", default="ood3")
    parser.add_argument("--setting", default="", help="slices of this setting alone")
    parser.add_argument("--data", type=Path, help="default: the workspace's of that domain")
    parser.add_argument("--pretrained", type=Path, help="default: the workspace's newest")
    parser.add_argument("--iterations", type=int, default=72)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--validations", type=int, default=18)
    parser.add_argument("--validation-slices", type=int, help="default: all")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments)
        return
    result = replay(Table.load(arguments.table), arguments.seeds)
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_result(arguments.json, result)


Grid = Mapping[str, list[Any]]


def recipes(grid: Grid, iterations: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """The grid, without freeze plans where there is nothing pretrained."""
    for values in product(*grid.values()):
        recipe = dict(zip(grid, values, strict=True))
        if recipe["strategy"] == "internal" and recipe.pop("freeze") != grid["freeze"][0]:
            continue
        yield {**recipe, "iterations": iterations, "batch_size": batch_size}


def space_text(grid: Grid, iterations: int, batch_size: int) -> str:
    """The grid as a search space."""
    parameters: dict[str, Any] = {name: {"choices": values} for name, values in grid.items()}
    parameters["freeze"]["when"] = {"strategy": "two_stage"}
    fixed = {"iterations": iterations, "batch_size": batch_size}
    parameters |= {name: {"value": value} for name, value in fixed.items()}
    return json.dumps({"parameters": parameters})


def record(arguments: argparse.Namespace) -> None:
    """Train what is not in the table yet; each trial is written when it ends."""
    workspace = Workspace(arguments.workspace.absolute())
    folder = arguments.table.with_suffix(".trials")
    space = folder / "space.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    space.write_text(space_text(GRID, arguments.iterations, arguments.batch_size))
    plan = StudyPlan(
        domain=arguments.domain,
        setting=arguments.setting,
        data=arguments.data,
        pretrained=arguments.pretrained,
        space_file=space,
        validations=arguments.validations,
        validation_slices=arguments.validation_slices,
    )
    study = Study(folder, plan_study(workspace, plan))
    dataset = open_dataset(Path(study.request.data))
    data, setting = trial_data(study, dataset), trial_setting(study, dataset.manifest.facts)
    wanted = list(recipes(GRID, arguments.iterations, arguments.batch_size))
    found = {trial["key"]: trial for trial in _recorded(arguments.table)}
    for number, recipe in enumerate(wanted):
        key = config_key(recipe)
        if key in found:
            continue
        curve: list[tuple[int, float]] = []

        def note(metrics: Mapping[str, float], curve: list[tuple[int, float]] = curve) -> None:
            curve.append((int(metrics["iterations"]), round(metrics["psnr"], 3)))

        try:
            run_trial(number, from_dict(Recipe, recipe), setting, data, note)
        except MfdiffError as fault:
            print(f"{number}: {fault}")
            curve.clear()
        found[key] = {"key": key, "recipe": recipe, "curve": curve}
        table = {
            "grid": list(GRID.items()),
            "iterations": arguments.iterations,
            "batch_size": arguments.batch_size,
            "trials": list(found.values()),
        }
        write_json(arguments.table, table)
        print(f"{len(found)}/{len(wanted)}  {curve[-1:] or 'failed'}  {recipe}", flush=True)


def _recorded(path: Path) -> list[dict[str, Any]]:
    return list(read_json(path)["trials"]) if path.is_file() else []


@dataclass(frozen=True)
class Table:
    """Recorded trials: curve by recipe, and the space they span."""

    space: SearchSpace
    curves: dict[str, list[tuple[int, float]]]
    iterations: int

    @classmethod
    def load(cls, path: Path) -> Table:
        values = read_json(path)
        curves = {trial["key"]: [(s, p) for s, p in trial["curve"]] for trial in values["trials"]}
        space = parse(space_text(dict(values["grid"]), values["iterations"], values["batch_size"]))
        return cls(space, curves, values["iterations"])

    def best(self) -> float:
        """PSNR of the best recipe: a trial keeps its best weights, not its last."""
        return max(_top(curve) for curve in self.curves.values() if curve)

    def good(self) -> set[str]:
        """Recipes within reach of the best."""
        bar = self.best() - WITHIN_DB
        return {key for key, curve in self.curves.items() if curve and _top(curve) >= bar}

    @property
    def whole(self) -> int:
        """Iterations of the full table."""
        return self.iterations * len(self.curves)


def _top(curve: list[tuple[int, float]]) -> float:
    return max(psnr for _, psnr in curve)


def replay(table: Table, seeds: int) -> dict[str, Any]:
    """Every policy with every seed."""
    found = {
        policy: [cost(table, *how, seed) for seed in range(seeds)]
        for policy, how in POLICIES.items()
    }
    shares = {
        policy: np.array([spent for spent, _ in runs]) / table.whole
        for policy, runs in found.items()
    }
    result: dict[str, Any] = {
        "recipes": len(table.curves),
        "best_db": table.best(),
        "seeds": seeds,
        "within_db": WITHIN_DB,
    }
    for policy, share in shares.items():
        ratio, low, high = ratio_to(share, shares["random"])
        result[policy] = {
            "hit_rate": float(np.mean([regret <= WITHIN_DB for _, regret in found[policy]])),
            "worst_regret_db": round(max(regret for _, regret in found[policy]), 3),
            "median_share_of_table": round(float(np.median(share)), 4),
            "p90_share_of_table": round(float(np.quantile(share, 0.9)), 4),
            "mean_share_of_table": round(float(share.mean()), 4),
            "ratio_to_random": round(ratio, 3),
            "ratio_interval": [round(low, 3), round(high, 3)],
        }
    return result


def ratio_to(found: Any, other: Any) -> tuple[float, float, float]:
    """Ratio of means with its 95 % bootstrap interval; seeds are drawn for each on its own."""
    generator = rng(0, "ratio")
    draws = [generator.integers(len(found), size=(2000, len(found))) for _ in range(2)]
    ratios = found[draws[0]].mean(axis=1) / other[draws[1]].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(found.mean() / other.mean()), float(low), float(high)


def cost(table: Table, sampler: str, scheduler: str, given: bool, seed: int) -> tuple[int, float]:
    """Iterations until a full trial is within reach of the table's best, one trial at a time.

    Args:
        table: what is searched.
        sampler, scheduler: as in a study.
        given: begin with the points that `adapt` gives to a study.
        seed: of the sampler.

    Returns:
        Those iterations and the regret in dB; the whole table's iterations if the scheduler
        stopped every such recipe, because whoever searches then needs the rest to be sure.
    """
    paper = table.space.references()[PAPER_RECIPE]
    first = rate_ladder(table.space, paper, len(table.curves)) if given else []
    searcher = RecipeSearcher(
        table.space,
        pending=[replace(point, number=number) for number, point in enumerate(first)],
        history=(),
        numbers=range(len(first), MOST_SUGGESTIONS * len(table.curves)),
        seed=seed,
        sampler=sampler,
        objectives=(PSNR,),
    )
    halving = build_scheduler("asha" if scheduler == "asha" else "none", table.iterations)
    spent, regret = 0, np.inf
    seen: dict[str, dict[str, Any]] = {}
    for number in count():
        config = searcher.suggest(str(number))
        if not isinstance(config, dict) or table.good() <= seen.keys():
            return table.whole, regret
        key = config_key(config["recipe"])
        if key not in seen:
            trial = SimpleNamespace(trial_id=str(number), config=config)
            seen[key] = outcome(table.curves[key], trial, halving, searcher)
            spent += seen[key].get("iterations", 0)
        searcher.on_trial_complete(str(number), seen[key] or None, error=not seen[key])
        if seen[key].get(FINAL):
            regret = min(regret, round(table.best() - seen[key]["psnr"], 6))
        if regret <= WITHIN_DB:
            return spent, regret
    raise AssertionError("count does not end")


def outcome(
    curve: list[tuple[int, float]], trial: Any, halving: Any, searcher: RecipeSearcher
) -> dict[str, Any]:
    """Last report of a replayed trial; nothing if it failed."""
    if not curve:
        return {}
    halving.on_trial_add(None, trial)
    for step, psnr in curve[:-1]:
        result = {"psnr": psnr, "iterations": step}
        searcher.on_trial_result(trial.trial_id, result)
        if halving.on_trial_result(None, trial, result) == "STOP":
            return result
    last = {"psnr": _top(curve), "iterations": curve[-1][0], FINAL: True}
    halving.on_trial_result(None, trial, last)
    return last


if __name__ == "__main__":
    main()
