"""What a study leaves in MLflow: its own run, its trials' headlines, its site model.

Tags are columns and notes are descriptions in MLflow's tables, so both say what a person would
otherwise open a run for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mfdiff_core.bundle import load_bundle
from mfdiff_core.config import flatten, from_dict
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import DataError
from mfdiff_core.files import read_json
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.experiment_view import share_views
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.outcome import Outcome, Row, gain_over_paper
from mfdiff_platform.outcome import headline as outcome_headline
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.report import markdown_table, model_card, table_row
from mfdiff_platform.run import Run, State, run_of
from mfdiff_platform.study import PAPER_RECIPE, TRIALS, Study
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import LATEST, PICTURE
from mfdiff_platform.trial_validation import SUBJECTS

EXPERIMENT = "mfdiff-studies"

_PARTS = ("train", "validation", "test")
CONTEXTS = {"train": "training", "validation": "validation", "test": "testing"}


def open_study_run(study: Study, store: TrackingStore, dataset: Dataset) -> Run:
    """The study's parent run in MLflow; which data it uses, but no place where they lie."""
    request = study.request
    tags = {"kind": "study", "domain": request.domain, "setting": request.setting or "all"}
    run = store.find_or_create(EXPERIMENT, request.name, f"{request.domain}: {request.name}", tags)
    elsewhere = ("space", "data", "phantom", "pretrained")
    run.log_config({k: v for k, v in flatten(request).items() if k not in elsewhere})
    run.log_text(request.space, "search_space.yaml")
    for part in _PARTS:
        run.log_dataset(f"{request.domain}-{part}", dataset.manifest.fingerprint, CONTEXTS[part])
    return run


def trial_key(study: Study, number: int) -> str:
    """Key of a trial's run."""
    return f"{study.request.name}/{number:04d}"


def recipe_tags(config: Mapping[str, Any]) -> dict[str, str]:
    """Strategy and freeze plan of a trial, as columns."""
    recipe = from_dict(Recipe, config["recipe"])
    return {
        "strategy": recipe.strategy,
        "freeze": recipe.freeze,
        "reference": config["reference"],
    }


def in_words(config: Mapping[str, Any]) -> str:
    """A trial in a few words."""
    recipe = recipe_tags(config)
    return recipe["reference"] or f"{recipe['strategy']}, freeze {recipe['freeze']}"


def open_trial_run(
    study: Study, store: TrackingStore, parent: Run, number: int, config: Mapping[str, Any]
) -> Run:
    """A trial's run, the same one for ever, set going."""
    request = study.request
    tags = {"kind": "trial", "domain": request.domain, "study": request.name}
    key, name = trial_key(study, number), f"{number:03d} {in_words(config)}"
    experiment = parent.spec.experiment
    return store.find_or_create(experiment, key, name, tags | recipe_tags(config), parent)


def close_trial_run(study: Study, run: Run, record: TrialRecord) -> None:
    """Log what a trial that ended leaves: checkpoints, picture, table, headline, state."""
    folder = study.folder / TRIALS / f"{record.number:04d}"
    if record.state == "finished":
        run.log_dir(study.bundle_of(record), "checkpoints/best")
        if (folder / LATEST).is_dir():
            run.log_dir(folder / LATEST, "checkpoints/last")
        run.log_image((folder / PICTURE).read_bytes(), "validation")
        if (folder / SUBJECTS).is_file():
            run.log_table(read_json(folder / SUBJECTS), "tables/validation_subjects.json")
    run.set_tags(headline(study, record))
    run.finish(cast(State, record.state), record.reason)


def complete_trial_runs(study: Study, store: TrackingStore, parent: Run) -> None:
    """Bring the runs of all trials that ended up to the ledger.

    The paper's recipe may have ended after others did; now every gain is known. And where a kill
    came between the ledger and MLflow, the run knows nothing of its trial's end.
    """
    for record in study.ledger.ended():
        key = trial_key(study, record.number)
        found = store.find(parent.spec.experiment, key)
        if found is not None and found.data.tags.get("state", "").startswith(record.state):
            run_of(store, parent.spec.experiment, key, parent).set_tags(headline(study, record))
        else:
            trial = open_trial_run(study, store, parent, record.number, record.config)
            close_trial_run(study, trial, record)


def headline(study: Study, record: TrialRecord) -> dict[str, str]:
    """Tags of a trial that ended: best PSNR, gain over the paper's recipe, and all in a line.

    A trial that was stopped is not held against one that ran to its end, so it has no gain.
    """
    tags, psnr = recipe_tags(record.config), _best_psnr(study, record)
    what = f"{tags['strategy']}, freeze {tags['freeze']}"
    found, line = {}, ""
    if psnr is not None:
        found["best_psnr"] = f"{psnr:.2f}"
        line = f"{psnr:.2f} dB"
    if record.state != "finished":
        ended = f"{record.state}: {record.reason}" if record.reason else record.state
        line = f"{ended}, {line} until then" if line else ended
    elif (gain := _gain(study, record)) is not None:
        found["gain_over_paper_db"] = f"{gain:+.2f}"
        line += f", {gain:+.2f} dB against the paper's recipe"
    return found | {"mlflow.note.content": f"{line}; {what}; validation subjects"}


def log_outcome(
    study: Study, store: TrackingStore, run: Run, outcome: Outcome, report: Path
) -> None:
    """Table, report and headline of a finished study, on the page a physicist opens first."""
    run.log_table([table_row(row) for row in outcome.rows], "tables/test.json")
    run.log_table(_subject_rows(outcome.rows), "tables/test_subjects.json")
    run.log_file(report, "report")
    best = outcome.rows[-1]
    run.log_metrics({"test/psnr": best.psnr, "test/ssim": best.ssim, "test/nmse": best.nmse}, 0)
    run.set_tags(recipe_tags(study.ledger[outcome.best].config) | _headline(outcome))
    run.note(f"{_sentence(study, outcome)}\n\n{markdown_table(outcome)}")
    share_views(store, EXPERIMENT, study.request.name)
    complete_trial_runs(study, store, run)


def register_best(study: Study, outcome: Outcome, store: TrackingStore) -> str:
    """Register the best trial's bundle as ``candidate``, once; returns ``name/version``.

    Raises:
        DataError: its run is not in MLflow.
        TrackingError: MLflow is out of reach.
    """
    request = study.request
    record = study.ledger[outcome.best]
    bundle = load_bundle(study.bundle_of(record))
    trial_run = store.find(EXPERIMENT, trial_key(study, record.number))
    if trial_run is None:
        raise DataError(f"trial {record.number} of {request.name!r} has no run in MLflow")
    headline_tags = _headline(outcome)
    tags = {
        "study": request.name,
        "trial": str(record.number),
        "setting": request.setting or "all",
        "test_psnr": headline_tags.pop("best_psnr"),
        **headline_tags,
    }
    version = SiteModels(store).register_candidate(
        request.domain, bundle.folder, trial_run.info.run_id, tags, model_card(study, outcome)
    )
    return str(version)


def _sentence(study: Study, outcome: Outcome) -> str:
    """The result in a line, which is what the table of runs has room for."""
    tags = recipe_tags(study.ledger[outcome.best].config)
    what = f"trial {outcome.best}, {tags['strategy']}, freeze {tags['freeze']}"
    return f"{outcome_headline(outcome)}: {what}."


def _headline(outcome: Outcome) -> dict[str, str]:
    """PSNR of the best trial on test subjects and its gain over the paper's recipe there."""
    gain = gain_over_paper(outcome)
    found = {"best_psnr": f"{outcome.rows[-1].psnr:.2f}"}
    return found | ({} if gain is None else {"gain_over_paper_db": f"{gain:+.2f}"})


def _gain(study: Study, record: TrialRecord) -> float | None:
    """Validation PSNR minus that of the paper's recipe, once that has ended."""
    for other in study.ledger.finished():
        if other.config["reference"] == PAPER_RECIPE:
            return record.metrics["psnr"] - other.metrics["psnr"]
    return None


def _best_psnr(study: Study, record: TrialRecord) -> float | None:
    """Validation PSNR of what a trial has kept, or the highest it reached before it was stopped."""
    last = record.metrics.get("psnr", math.nan)
    seen = [last] if math.isfinite(last) else []
    if record.state != "finished" and study.objectives[0].metric == "psnr":
        seen += [value for _, value in record.curve]
    return max(seen, default=None)


def _subject_rows(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    return [
        {"method": row.name, "subject": subject}
        | {metric: round(value, 4) for metric, value in values.items()}
        for row in rows
        for subject, values in row.per_subject.items()
    ]
