"""The internal stage as a search: Ray Tune and Optuna look for a site's best recipe.

The reference recipes run first, so a study always says what the search has won over the paper.
The test subjects are opened once, at the end, for the references and the best trial.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_platform.cluster import Cluster, Resources, connect, interruptible
from mfdiff_platform.outcome import Outcome, conclude
from mfdiff_platform.progress import task
from mfdiff_platform.report import write_report
from mfdiff_platform.run import Run
from mfdiff_platform.study import Study, StudyRequest, claim_study
from mfdiff_platform.study_record import log_outcome, open_study_run, register_best
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import PackedSlices, TrialData, TrialSetting, tune_trial
from mfdiff_platform.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class SearchScale:
    """How much of the cluster a search uses; changes nothing but the time.

    Attributes:
        trials: trials in all, the references included.
        gpus_per_trial: GPU share of a trial; 0 trains on the CPU.
        concurrent: trials at a time; None = as many as fit.
    """

    trials: int
    gpus_per_trial: float = 0.0
    concurrent: int | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials=}")


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


def adapt(
    workspace: Workspace, store: TrackingStore, request: StudyRequest, scale: SearchScale
) -> Adapted:
    """Search, test the finalists, register the best trial as the domain's candidate, report.

    The same request resumes; what is finished is not done again.

    Raises:
        ConfigError: a study of this name has other settings, or too few trials are asked for.
        DataError: data or pretrained weights are damaged, or every trial failed.
        ResourceError: a trial does not fit on the cluster.
    """
    first = list(request.references())
    if scale.trials < len(first):
        raise ConfigError(
            f"--trials {scale.trials} leaves no room for the {len(first)} reference recipes that"
            f" every study runs ({', '.join(first)}); give at least {len(first)}"
        )
    study = claim_study(workspace.study(request.name), request)
    dataset = open_dataset(Path(request.data))
    run = open_study_run(study, store, dataset)
    with run.watched():
        search(study, store, run, scale, dataset)
        outcome = conclude(study)
        report = write_report(study, outcome)
        version = register_best(study, outcome, store)
        log_outcome(study, store, run, outcome, report)
    run.finish("finished")
    return Adapted(study, outcome, version, report)


def search(
    study: Study, store: TrackingStore, parent: Run, scale: SearchScale, dataset: Dataset
) -> None:
    """Run what is missing of a study's trials.

    Raises:
        ResourceError: a trial does not fit on the cluster.
        DataError: every trial failed.
        KeyboardInterrupt: Ctrl-C stopped it; Ray Tune itself returns as if all were done.
    """
    if _is_missing(study, scale):
        with connect() as cluster:
            _run_tuner(cluster, study, store, parent, scale, dataset)
        if _is_missing(study, scale):
            raise KeyboardInterrupt
    if not study.ledger.finished():
        reasons = {record.reason for record in study.ledger.in_state("failed")}
        raise DataError(f"study {study.request.name!r}: every trial failed: {'; '.join(reasons)}")


def _is_missing(study: Study, scale: SearchScale) -> bool:
    return bool(study.pending() or study.unasked(scale.trials))


def trial_data(study: Study, dataset: Dataset) -> TrialData:
    """The slices that trials share; test subjects are not among them."""
    request = study.request
    phantom = open_dataset(Path(request.phantom)).part("train") if request.phantom else None
    setting = request.setting or None
    return TrialData(
        train=PackedSlices.pack(dataset.part("train", setting)),
        validation=PackedSlices.pack(dataset.part("validation", setting)),
        phantom=PackedSlices.pack(phantom) if phantom is not None else None,
    )


def _run_tuner(
    cluster: Cluster,
    study: Study,
    store: TrackingStore,
    parent: Run,
    scale: SearchScale,
    dataset: Dataset,
) -> None:
    """Everything Ray Tune is told."""
    from ray import tune

    from mfdiff_platform.scheduler import build_scheduler
    from mfdiff_platform.searcher import RecipeSearcher
    from mfdiff_platform.study_callback import StudyCallback

    request, space = study.request, study.request.search_space()
    need = Resources(cpus=1, gpus=scale.gpus_per_trial)
    cluster.require(need, "a trial", "give --gpus-per-trial 0 to train on CPUs")
    setting = TrialSetting(
        study=request.name,
        domain=request.domain,
        folder=study.folder,
        pretrained=Path(request.pretrained),
        data=request.data_fingerprint,
        seed=request.seed,
        validations=request.validations,
        precision=request.precision,
        on_gpu=need.gpus > 0,
    )
    trainable = tune.with_resources(
        tune.with_parameters(tune_trial, setting=setting, data=trial_data(study, dataset)),
        {"cpu": need.cpus, "gpu": need.gpus},
    )
    searcher = RecipeSearcher(
        space,
        pending=study.pending(),
        history=study.history(),
        numbers=study.unasked(scale.trials),
        seed=request.seed,
        sampler=request.sampler,
        metric="psnr",
        mode="max",
    )
    # Failures are told by the callback, in one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with task(f"Adapting to {request.domain}: {scale.trials} trials", scale.trials) as shown:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="psnr",
                mode="max",
                search_alg=searcher,
                scheduler=build_scheduler(request.scheduler, space.iterations),
                num_samples=-1,
                max_concurrent_trials=scale.concurrent or _fitting(cluster, need),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(study.folder),
                callbacks=[StudyCallback(study, store, parent, shown)],
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        )
        with interruptible():
            tuner.fit()


def _fitting(cluster: Cluster, need: Resources) -> int:
    have = cluster.total
    by_gpu = int(have.gpus / need.gpus) if need.gpus else int(have.cpus)
    return max(1, min(by_gpu, int(have.cpus / need.cpus)))


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']:04d}"
