"""Ray Tune at work: the trials that a study is missing, run to their ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_platform.cluster import Cluster, Resources, connect
from mfdiff_platform.errors import PartialError
from mfdiff_platform.interrupt import interruptible
from mfdiff_platform.progress import task
from mfdiff_platform.run import Run
from mfdiff_platform.session import SearchScale
from mfdiff_platform.slice_parts import evenly
from mfdiff_platform.study import Study
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import TrialSetting, tune_trial
from mfdiff_platform.trial_data import PackedSlices, SharedData, TrialData

TUNE_STATE = "tune"
"""Folder in a study's for what Ray Tune writes down."""

Trainable = Callable[..., None]
"""Takes Tune's config, a `TrialSetting` and `TrialData`; reports to Tune."""


def search(
    study: Study,
    store: TrackingStore,
    parent: Run,
    scale: SearchScale,
    dataset: Dataset,
    trainable: Trainable = tune_trial,
) -> None:
    """Run what is missing of a study's trials.

    Raises:
        ConfigError: the GPUs of a trial cannot share its batches.
        ResourceError: a trial does not fit on the cluster.
        DataError: every trial failed.
        PartialError: too many trials failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped it; Ray Tune returns as if all were done.
    """
    check_batches(study, scale)
    if is_missing(study, scale) and not _has_failed_too_often(study, scale):
        with connect() as cluster:
            _run_tuner(cluster, study, store, parent, scale, dataset, trainable)
    failed = study.ledger.in_state("failed")
    if is_missing(study, scale):
        if _has_failed_too_often(study, scale):
            raise PartialError(
                f"study {study.request.name!r}: {len(failed)} trials failed, more than"
                f" --max-failures {scale.max_failures}; the last: {failed[-1].reason}; give a"
                " larger --max-failures to go on"
            )
        raise KeyboardInterrupt
    if not study.ledger.finished():
        reasons = {record.reason for record in failed}
        raise DataError(f"study {study.request.name!r}: every trial failed: {'; '.join(reasons)}")


def is_missing(study: Study, scale: SearchScale) -> bool:
    """Whether trials have yet to end."""
    return bool(study.pending() or study.unasked(scale.trials))


def _has_failed_too_often(study: Study, scale: SearchScale) -> bool:
    return failures_left(study, scale) == 0


def failures_left(study: Study, scale: SearchScale) -> int | None:
    """How many more trials may fail before no new one begins; None for any number."""
    if scale.max_failures is None:
        return None
    return max(0, scale.max_failures + 1 - len(study.ledger.in_state("failed")))


def trial_data(study: Study, dataset: Dataset) -> TrialData:
    """The slices that trials share; test subjects are not among them."""
    request = study.request
    phantom = open_dataset(Path(request.phantom)).part("train") if request.phantom else None
    setting = request.setting or None
    held_out = evenly(dataset.part("validation", setting), request.validation_slices)
    return TrialData(
        train=PackedSlices.pack(dataset.part("train", setting)),
        validation=PackedSlices.pack(held_out),
        phantom=PackedSlices.pack(phantom) if phantom is not None else None,
    )


def trial_setting(study: Study, facts: dict[str, Any], gpus: float = 0.0) -> TrialSetting:
    """What every trial of a study is told.

    Args:
        study: its request decides.
        facts: those of its dataset's manifest.
        gpus: what a trial is given; more than one take as many workers.
    """
    request = study.request
    return TrialSetting(
        study=request.name,
        domain=request.domain,
        folder=study.folder,
        pretrained=Path(request.pretrained),
        data=request.data_fingerprint,
        facts=facts,
        seed=request.seed,
        validations=request.validations,
        precision=request.precision,
        on_gpu=gpus > 0,
        workers=max(1, int(gpus)),
        objectives=study.objectives,
    )


def trial_resources(cluster: Cluster, scale: SearchScale) -> Resources:
    """What one trial takes: its share of a GPU and as much of a CPU as lies beside that, or a CPU.

    Several GPUs take a CPU each.

    Raises:
        ResourceError: the cluster does not have it.
    """
    have, gpus = cluster.total, scale.gpus_per_trial
    beside = min(1.0, have.cpus * gpus / have.gpus) if gpus and have.gpus else 1.0
    need = Resources(cpus=max(beside, gpus if gpus > 1 else 0), gpus=gpus)
    cluster.require(need, "a trial", "give --gpus-per-trial 0 to train on CPUs")
    return need


def check_batches(study: Study, scale: SearchScale) -> None:
    """Refuse batches that the GPUs of a trial cannot share evenly.

    Raises:
        ConfigError: there is one; says which.
    """
    gpus = max(1, int(scale.gpus_per_trial))
    recipes = [suggestion.recipe for suggestion in study.first()]
    sizes = {recipe["batch_size"] for recipe in recipes} | study.request.search_space().batch_sizes
    odd = sorted(size for size in sizes if size % gpus)
    if odd:
        raise ConfigError(
            f"--gpus-per-trial {gpus}: batches of {', '.join(map(str, odd))} cannot be shared by"
            f" {gpus} GPUs; let batch_size take multiples of {gpus} only"
        )


def _run_tuner(
    cluster: Cluster,
    study: Study,
    store: TrackingStore,
    parent: Run,
    scale: SearchScale,
    dataset: Dataset,
    trainable: Trainable,
) -> None:
    import ray
    from ray import tune

    from mfdiff_platform.study_callback import StudyCallback

    need = trial_resources(cluster, scale)
    setting = trial_setting(study, dataset.manifest.facts, need.gpus)
    data: TrialData | SharedData = trial_data(study, dataset)
    if setting.workers > 1:
        data = SharedData(ray.put(data))
    wrapped = tune.with_parameters(trainable, setting=setting, data=data)
    wrapped.__name__ = f"adapt {study.request.domain} {study.request.name}"  # on the dashboard
    title = f"Adapting to {study.request.domain}: {scale.trials} trials"
    with task(title, scale.trials) as shown:
        callback = StudyCallback(study, store, parent, shown, scale.trial_timeout_s)
        tuner = build_tuner(study, scale, cluster.total, need, wrapped, [callback])
        with interruptible():
            tuner.fit()


def build_tuner(
    study: Study,
    scale: SearchScale,
    have: Resources,
    need: Resources,
    trainable: Callable[..., None],
    callbacks: Sequence[Any] = (),
    *,
    reuse_actors: bool = True,
) -> Any:
    """Everything Ray Tune is told.

    Args:
        study: what is missing of it is run.
        scale: how many trials, and how many at a time.
        have, need: resources of the cluster and of a trial.
        trainable: takes Tune's config alone.
        callbacks: Tune's.
        reuse_actors: whether a worker goes on with the next trial.
    """
    from ray import tune

    from mfdiff_platform.searcher import RecipeSearcher

    request, space, aim = study.request, study.request.search_space(), study.objectives[0]
    searcher = RecipeSearcher(
        space,
        pending=study.pending(),
        history=study.history(),
        numbers=study.unasked(scale.trials),
        seed=request.seed,
        sampler=request.sampler,
        objectives=study.objectives,
        failures_left=failures_left(study, scale),
    )
    # Failures are told by the callback, in one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    together = need.gpus > 1
    # Workers of Ray Train have places of their own; Tune cannot ask for nothing, so for a MiB.
    own = {"memory": 2**20} if together else {"cpu": need.cpus, "gpu": need.gpus}
    return tune.Tuner(
        tune.with_resources(trainable, own),
        tune_config=tune.TuneConfig(
            metric=aim.metric,
            mode=aim.mode,
            search_alg=searcher,
            scheduler=_scheduler(study, space.iterations),
            num_samples=-1,
            max_concurrent_trials=scale.concurrent or fitting(have, need),
            reuse_actors=reuse_actors and not together,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=TUNE_STATE,
            storage_path=str(study.folder),
            callbacks=list(callbacks),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )


def _scheduler(study: Study, iterations: int) -> Any:
    """The study's scheduler, with the bars that earlier sessions have set."""
    from mfdiff_platform.scheduler import RecipeHalving, build_scheduler, strategy_of

    aim = study.objectives[0]
    scheduler = build_scheduler(study.request.scheduler, iterations, aim)
    if isinstance(scheduler, RecipeHalving):
        for record in study.ledger.ended():
            scores = [(step, aim.score({aim.metric: value})) for step, value in record.curve]
            ended = record.state == "finished"
            final = (record.iterations, aim.score(record.metrics)) if ended else None
            scheduler.recall(record.number, strategy_of(record.config["recipe"]), scores, final)
    return scheduler


def fitting(have: Resources, need: Resources) -> int:
    """How many trials run at a time."""
    by_cpu = int(have.cpus / need.cpus + 1e-9)
    if need.gpus == 0:
        return max(1, by_cpu)
    # A share of a GPU lies on one GPU: four trials at 0.4 take two GPUs, not 1.6.
    per_gpu = int(1 / need.gpus + 1e-9) if need.gpus < 1 else 1 / need.gpus
    return max(1, min(int(have.gpus * per_gpu), by_cpu))


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']:04d}"
