"""The internal stage as a search: Ray Tune and Optuna look for a site's best recipe.

The reference recipes run first, so a study always says what the search has won over the paper.
The test subjects are opened once, at the end, for the references and the best
few trials; the winner among them was chosen on validation subjects before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mfdiff_core.bundle import load_bundle
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.errors import ConfigError
from mfdiff_platform.known import WARM_POINTS, Known, best_points, rate_ladder
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.outcome import Outcome, conclude
from mfdiff_platform.progress import say
from mfdiff_platform.repeats import repeat_finalists
from mfdiff_platform.report import write_report
from mfdiff_platform.search import TUNE_STATE, Trainable, search
from mfdiff_platform.session import SearchScale, last_session, session
from mfdiff_platform.study import (
    PAPER_RECIPE,
    REQUEST,
    Study,
    StudyRequest,
    claim_study,
    load_study,
)
from mfdiff_platform.study_record import log_outcome, open_study_run, register_best
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import tune_trial
from mfdiff_platform.workspace import Workspace


@dataclass(frozen=True)
class Adapted:
    """What a study ends with.

    Attributes:
        study: the study's folder and request.
        outcome: its table on the test subjects.
        model: the registered site model, ``mfdiff-<domain>/<version>``.
        report: the study's page.
    """

    study: Study
    outcome: Outcome
    model: str
    report: Path

    @property
    def failed(self) -> list[TrialRecord]:
        """Trials that failed; each says why."""
        return self.study.ledger.in_state("failed")


def adapt(
    workspace: Workspace,
    store: TrackingStore,
    request: StudyRequest,
    scale: SearchScale,
    trainable: Trainable = tune_trial,
) -> Adapted:
    """Search, test the finalists, register the best trial as the domain's candidate, report.

    The same request resumes; what is finished is not done again. One with another search space
    goes on in a child of the study.

    Raises:
        ConfigError: a study of this name has other settings, too few trials are asked for, or
            another command is at work on it.
        DataError: data or pretrained weights are damaged, or every trial failed.
        ResourceError: a trial does not fit on the cluster.
        PartialError: too many trials failed.
    """
    _check_room(list(request.references()), scale)
    folder = workspace.study(request.name)
    begins = not (folder / REQUEST).is_file()
    study = claim_study(folder, request, _given(workspace, request, scale) if begins else None)
    _tell_origin(study, request)
    return work_on(study, store, scale, trainable)


def work_on(
    study: Study, store: TrackingStore, scale: SearchScale, trainable: Trainable = tune_trial
) -> Adapted:
    """`adapt` for a study that is there."""
    dataset = open_dataset(Path(study.request.data))
    with session(study, scale) as settled:
        _check_room([s.reference or "a point tried first" for s in study.first()], settled)
        return _carry_out(study, store, settled, dataset, trainable)


def resume_study(study: Study, store: TrackingStore, changes: Mapping[str, Any]) -> Adapted:
    """Go on with a study as its last command was told to, but for ``changes`` of the scale.

    Raises:
        ConfigError: it was never begun here, data or weights have changed, or another command is
            at work on it.
    """
    last = last_session(study)
    if last is None:
        raise ConfigError(
            f"study {study.request.name!r} was never worked on here; use `mfdiff-platform adapt`"
        )
    _check_inputs(study)
    return work_on(study, store, replace(last.scale, **changes))


def _check_inputs(study: Study) -> None:
    """Refuse data and weights that are not those the study began with."""
    request = study.request
    found = {
        "data_fingerprint": open_dataset(Path(request.data)).manifest.fingerprint,
        "pretrained_sha256": load_bundle(Path(request.pretrained)).provenance.sha256,
    }
    if request.phantom:
        phantom = open_dataset(Path(request.phantom))
        found["phantom_fingerprint"] = phantom.manifest.fingerprint
    odd = [name for name, value in found.items() if getattr(request, name) != value]
    if odd:
        raise ConfigError(
            f"study {request.name!r} was begun with another {', '.join(odd)}; put the old ones"
            " back, or begin another study"
        )


def _carry_out(
    study: Study, store: TrackingStore, scale: SearchScale, dataset: Dataset, trainable: Trainable
) -> Adapted:
    run = open_study_run(study, store, dataset)
    with run.watched():
        try:
            search(study, store, run, scale, dataset, trainable)
        finally:  # the ledger is all that a resume needs, and Ray's state tells where the data lie
            shutil.rmtree(study.folder / TUNE_STATE, ignore_errors=True)
        outcome = conclude(study, repeat_finalists(study, scale, dataset), scale.finalists)
        report = write_report(study, outcome)
        version = register_best(study, outcome, store)
        log_outcome(study, store, run, outcome, report)
    run.finish("finished")
    return Adapted(study, outcome, version, report)


def _check_room(first: list[str], scale: SearchScale) -> None:
    if not scale.grow and scale.trials < len(first):
        raise ConfigError(
            f"--trials {scale.trials} leaves no room for the {len(first)} reference recipes that"
            f" every study runs ({', '.join(first)}); give at least {len(first)}"
        )


def _given(workspace: Workspace, request: StudyRequest, scale: SearchScale) -> Known:
    """What a study that begins tries first: another one's best points, or what mostly pays."""
    if request.warm_start:
        return _warm_start(workspace, request)
    if request.sampler != "tpe":
        return Known()
    references = request.references()
    points = scale.trials if scale.grow else scale.trials - len(references)
    return Known(
        points=tuple(rate_ladder(request.search_space(), references[PAPER_RECIPE], points))
    )


def _warm_start(workspace: Workspace, request: StudyRequest) -> Known:
    """The best points of the study that ``--warm-start`` names."""
    source = load_study(workspace.study(request.warm_start))
    points = best_points(source, request.search_space(), WARM_POINTS)
    if not points:
        raise ConfigError(
            f"--warm-start {request.warm_start}: none of its trained recipes is in this search"
            " space; widen the space, or start without it"
        )
    return Known(points=tuple(points))


def _tell_origin(study: Study, request: StudyRequest) -> None:
    known = study.known
    if study.request.parent and study.request.name != request.name:
        say(
            f"The search space differs from that of study {request.name!r}: going on in its child"
            f" {study.request.name!r}, which knows {len(known.observations)} results of before"
            f" and tries the best of them again."
        )
