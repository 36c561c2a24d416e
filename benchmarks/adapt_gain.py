"""What the search wins over the paper's recipe on held-out subjects, domain by domain.

    python -m benchmarks.adapt_gain --workspace W --json benchmarks/results/adapt_gain.json
        [--domains ood1 ood2 ood3] [--seeds 0 1 2] [--trials 30] [--space FILE]

One study per domain and seed, at the paper's recipe's number of iterations. Each study resumes and
each finished one is written down, so the campaign may be stopped and started at will. Gains are
test PSNR of the best trial minus that of the two-stage recipe; intervals are Student's over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.record import write_result
from mfdiff_core.files import read_json
from mfdiff_platform.adapt import Adapted, adapt
from mfdiff_platform.outcome import gain_over_paper
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.search_summary import saving
from mfdiff_platform.session import SearchScale
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import open_workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--domains", nargs="+", default=["ood1", "ood2", "ood3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--space", type=Path)
    parser.add_argument("--gpus-per-trial", type=float, default=0.0)
    parser.add_argument("--concurrent", type=int)
    arguments = parser.parse_args()
    found = read_json(arguments.json)["figures"] if arguments.json.is_file() else {}
    studies: dict[str, Any] = found.get("studies", {})
    for domain in arguments.domains:
        for seed in arguments.seeds:
            name = f"gain-{domain}-{seed}"
            if name not in studies:
                studies[name] = {"domain": domain, **figures(run(arguments, domain, seed, name))}
                write_result(arguments.json, {"studies": studies, **summary(studies)})
    print(json.dumps(summary(studies), indent=2))


def run(arguments: argparse.Namespace, domain: str, seed: int, name: str) -> Adapted:
    """One study, from its start or from where it was stopped."""
    workspace = open_workspace(arguments.workspace)
    plan = StudyPlan(domain=domain, name=name, seed=seed, space_file=arguments.space)
    scale = SearchScale(
        trials=arguments.trials,
        gpus_per_trial=arguments.gpus_per_trial,
        concurrent=arguments.concurrent,
    )
    store = TrackingStore(workspace.root)
    store.prepare()
    return adapt(workspace, store, plan_study(workspace, plan), scale)


def figures(adapted: Adapted) -> dict[str, Any]:
    """What a study shows."""
    study, outcome = adapted.study, adapted.outcome
    space, trials = study.request.search_space(), len(study.ledger)
    saved = saving(study)
    return {
        "gain_db": gain_over_paper(outcome),
        "psnr_db": {row.name: round(row.psnr, 3) for row in outcome.rows},
        "best": study.ledger[outcome.best].config["recipe"],
        "trials": trials,
        "stopped": saved.stopped,
        "failed": len(adapted.failed),
        "iterations": saved.done,
        "share_of_full_trials": saved.done / (trials * space.iterations),
        "subjects": outcome.rows[-1].subjects,
        "test_evaluations": outcome.test_evaluations,
    }


def summary(studies: dict[str, Any]) -> dict[str, Any]:
    """Mean gain and its 95 % interval over seeds, by domain."""
    domains = dict.fromkeys(study["domain"] for study in studies.values())
    return {domain: over_seeds(studies, domain) for domain in domains}


def over_seeds(studies: dict[str, Any], domain: str) -> dict[str, Any]:
    """Gain and cost of one domain's studies."""
    mine = [study for study in studies.values() if study["domain"] == domain]
    gains = np.array([study["gain_db"] for study in mine if study["gain_db"] is not None])
    share = float(np.mean([study["share_of_full_trials"] for study in mine]))
    found: dict[str, Any] = {"seeds": len(gains), "share_of_full_trials": round(share, 3)}
    if len(gains) > 0:
        found["mean_gain_db"] = round(float(gains.mean()), 3)
    if len(gains) > 1:
        half = student.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
        found["interval_db"] = [round(float(gains.mean() + s * half), 3) for s in (-1, 1)]
    return found


if __name__ == "__main__":
    main()
