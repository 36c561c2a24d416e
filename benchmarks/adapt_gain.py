"""What the search wins over the paper's recipe on held-out subjects, domain by domain.

    python -m benchmarks.adapt_gain --workspace W --json benchmarks/results/adapt_gain.json
        [--domains ood3 ood1 ood2] [--seeds 0 1 2] [--trials 30] [--iterations N]

One study per domain and seed, all domains with one seed before the next. Each study resumes and
each finished one is written down, so the campaign may be stopped and started at will. Gains are
test PSNR of the best trial minus that of the paper's two-stage recipe at the same number of
iterations; intervals are Student's over seeds. `--iterations` cuts the domains' search spaces to
that length: warm-ups and the memory of averaged weights shrink with it.
"""

from __future__ import annotations

import argparse
import json
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student

from benchmarks.record import write_result
from mfdiff_core.bundle import load_bundle
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.data.splits import Part
from mfdiff_core.files import read_json
from mfdiff_platform.adapt import Adapted, adapt
from mfdiff_platform.outcome import gain_over_paper
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.search_space import SearchSpace, load, resolve
from mfdiff_platform.search_summary import saving
from mfdiff_platform.session import SearchScale
from mfdiff_platform.study import PAPER_RECIPE, Study
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import open_workspace

GOAL_DB = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--domains", nargs="+", default=["ood3", "ood1", "ood2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--iterations", type=int, help="of a full trial; default: the space's")
    parser.add_argument("--validations", type=int, default=StudyPlan.validations)
    parser.add_argument("--validation-slices", type=int, help="of each setting; default: all")
    parser.add_argument("--pretrained", type=Path, help="bundle; default: the workspace's newest")
    parser.add_argument("--gpus-per-trial", type=float, default=0.0)
    parser.add_argument("--concurrent", type=int)
    arguments = parser.parse_args()
    found = read_json(arguments.json)["figures"] if arguments.json.is_file() else {}
    studies: dict[str, Any] = found.get("studies", {})
    for seed, domain in product(arguments.seeds, arguments.domains):
        name = f"gain-{domain}-{seed}"
        if name not in studies:
            studies[name] = {"domain": domain, **figures(run(arguments, domain, seed, name))}
            write_result(arguments.json, {"studies": studies, **summary(studies)})
    print(json.dumps(summary(studies), indent=2))


def run(arguments: argparse.Namespace, domain: str, seed: int, name: str) -> Adapted:
    """One study, from its start or from where it was stopped."""
    workspace = open_workspace(arguments.workspace)
    space = resolve(domain)
    if arguments.iterations:
        space = workspace.root / f"{domain}-{arguments.iterations}.yaml"
        space.write_text(cut(load(resolve(domain)), arguments.iterations))
    plan = StudyPlan(
        domain=domain,
        name=name,
        seed=seed,
        space_file=space,
        pretrained=arguments.pretrained,
        validations=arguments.validations,
        validation_slices=arguments.validation_slices,
    )
    scale = SearchScale(
        trials=arguments.trials,
        gpus_per_trial=arguments.gpus_per_trial,
        concurrent=arguments.concurrent,
    )
    store = TrackingStore(workspace.root)
    store.prepare()
    return adapt(workspace, store, plan_study(workspace, plan), scale)


def cut(space: SearchSpace, iterations: int) -> str:
    """``space`` for shorter trials."""
    values, factor = yaml.safe_load(space.text), iterations / space.iterations
    parameters = values["parameters"]
    parameters["iterations"] = {"value": iterations}
    warmups, memories = parameters["warmup"]["choices"], parameters["ema"]["choices"]
    parameters["warmup"]["choices"] = [round(steps * factor) for steps in warmups]
    parameters["ema"]["choices"] = [round(max(0.0, 1 - (1 - m) / factor), 4) for m in memories]
    return str(yaml.safe_dump(values, sort_keys=False))


def figures(adapted: Adapted) -> dict[str, Any]:
    """What a study shows."""
    study, outcome = adapted.study, adapted.outcome
    space, trials = study.request.search_space(), len(study.ledger)
    saved = saving(study)
    return {
        "gain_db": gain_over_paper(outcome),
        "psnr_db": {row.name: round(row.psnr, 3) for row in outcome.rows},
        "validation_gain_db": validation_gain(study),
        "best": study.ledger[outcome.best].config["recipe"],
        "trials": trials,
        "stopped": saved.stopped,
        "failed": len(adapted.failed),
        "iterations": saved.done,
        "share_of_full_trials": saved.done / (trials * space.iterations),
        "share_until_goal": share_until(study, GOAL_DB),
        "share_until_best": share_until_best(study),
        "subjects": outcome.rows[-1].subjects,
        "test_evaluations": outcome.test_evaluations,
        "setup": setup(study),
    }


def setup(study: Study) -> dict[str, Any]:
    """What the figures depend on: network, pretraining, slices, length of a trial."""
    request = study.request
    pretrained, dataset = load_bundle(Path(request.pretrained)), open_dataset(Path(request.data))
    parts: tuple[Part, ...] = ("train", "validation", "test")
    return {
        "parameters": sum(p.numel() for p in pretrained.model().parameters()),
        "image_size": pretrained.config.image_size,
        "pretraining_iterations": pretrained.provenance.iterations,
        "slices": {part: len(dataset.part(part)) for part in parts},
        "people": {part: len(getattr(dataset.split, part)) for part in parts},
        "iterations": request.search_space().iterations,
        "validations": request.validations,
        "validation_slices": request.validation_slices,
    }


def share_until(study: Study, gain_db: float) -> float | None:
    """Iterations up to the end of the first trial that validates so much above the paper's recipe.

    As a share of those of the study's trials run to their ends; None if there is no such trial.
    Trials ran one at a time, in the order of their numbers.
    """
    paper = study.finalists()[PAPER_RECIPE].metrics["psnr"]
    shares = shares_spent(study)
    return next(
        (
            shares[record.number]
            for record in study.ledger.finished()
            if record.metrics["psnr"] >= paper + gain_db
        ),
        None,
    )


def share_until_best(study: Study) -> float:
    """Iterations up to the end of the winner, as a share of those of all trials run to their ends.

    What comes after it shows that nothing better was near, which nobody knew before.
    """
    return shares_spent(study)[study.best().number]


def shares_spent(study: Study) -> dict[int, float]:
    """Share of the study's full iterations that had been spent when each trial ended."""
    whole = len(study.ledger) * study.request.search_space().iterations
    ended = list(study.ledger.ended())
    spent = accumulate(record.iterations for record in ended)
    return {record.number: done / whole for record, done in zip(ended, spent, strict=True)}


def validation_gain(study: Study) -> float | None:
    """What the winner is ahead on the subjects it was chosen on: more than it will be elsewhere."""
    paper = study.finalists().get(PAPER_RECIPE)
    return study.best().metrics["psnr"] - paper.metrics["psnr"] if paper else None


def summary(studies: dict[str, Any]) -> dict[str, Any]:
    """Mean gain and its 95 % interval over seeds, by domain."""
    domains = dict.fromkeys(study["domain"] for study in studies.values())
    return {domain: over_seeds(studies, domain) for domain in domains}


def over_seeds(studies: dict[str, Any], domain: str) -> dict[str, Any]:
    """Gain and cost of one domain's studies."""
    mine = [study for study in studies.values() if study["domain"] == domain]
    gains = np.array([study["gain_db"] for study in mine if study["gain_db"] is not None])
    found: dict[str, Any] = {"seeds": len(gains)}
    for share in ("share_of_full_trials", "share_until_best"):
        found[share] = round(float(np.mean([study[share] for study in mine])), 3)
    if len(gains) > 0:
        found["mean_gain_db"] = round(float(gains.mean()), 3)
    if len(gains) > 1:
        half = student.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
        found["interval_db"] = [round(float(gains.mean() + s * half), 3) for s in (-1, 1)]
    return found


if __name__ == "__main__":
    main()
