"""The finalists of a study trained again with other seeds: how much of a gain is luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfdiff_core.bundle import load_bundle
from mfdiff_core.config import from_dict
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import BundleError, MfdiffError
from mfdiff_core.seeding import derive_seed
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.cluster import as_completed, connect
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.progress import say, task
from mfdiff_platform.search import trial_data, trial_resources, trial_setting
from mfdiff_platform.session import SearchScale
from mfdiff_platform.study import Study
from mfdiff_platform.trial import BUNDLE, TrialSetting, carry_out
from mfdiff_platform.trial_data import SharedData, TrialData

REPEATS = "repeats"


def repeat_finalists(
    study: Study, scale: SearchScale, dataset: Dataset
) -> dict[int, tuple[Path, ...]]:
    """Train references and best trials ``scale.seeds`` times in all; what is there is kept.

    Returns:
        Bundles by trial number, the trial's own first. One that fails again is left out, and said.

    Raises:
        ResourceError: a trial does not fit on the cluster.
    """
    tested = study.finalists(scale.finalists).values()
    finalists = [record for record in tested if record.iterations > 0]
    wanted = [
        (record, repeat_folder(study, repeat))
        for repeat in range(1, scale.seeds)
        for record in {record.number: record for record in finalists}.values()
    ]
    _train([(r, folder) for r, folder in wanted if not _is_there(folder, r)], study, scale, dataset)
    found = {record.number: [study.bundle_of(record)] for record in finalists}
    for record, folder in wanted:
        if _is_there(folder, record):
            found[record.number].append(_bundle(folder, record))
    return {number: tuple(folders) for number, folders in found.items()}


def repeat_folder(study: Study, repeat: int) -> Path:
    """Where the trainings with the ``repeat``-th further seed lie."""
    return study.folder / REPEATS / f"seed-{repeat}"


def _bundle(folder: Path, record: TrialRecord) -> Path:
    return folder / "trials" / f"{record.number:04d}" / BUNDLE


def _is_there(folder: Path, record: TrialRecord) -> bool:
    try:
        load_bundle(_bundle(folder, record))
    except BundleError:
        return False
    return True


def _train(
    missing: Sequence[tuple[TrialRecord, Path]], study: Study, scale: SearchScale, dataset: Dataset
) -> None:
    if not missing:
        return
    import ray

    with connect() as cluster, task("Training the finalists again", len(missing)) as shown:
        need = trial_resources(cluster, scale)
        setting = trial_setting(study, dataset.manifest.facts, need.gpus)
        data = ray.put(trial_data(study, dataset))
        own, shared = {"num_cpus": need.cpus, "num_gpus": need.gpus}, setting.workers > 1
        # Workers of Ray Train have places of their own.
        options = {"num_cpus": 0} if shared else own
        remote = ray.remote(**options, max_retries=1)(_train_again)
        tasks = [
            remote.remote(
                record.number,
                record.config["recipe"],
                replace(setting, folder=folder, seed=_seed(study, folder)),
                SharedData(data) if shared else data,
            )
            for record, folder in missing
        ]
        for done, (number, fault) in enumerate(as_completed(tasks), start=1):
            if fault:
                say(f"trial {number} failed with another seed: {fault}", mark="[red]✗[/] ")
            shown.update(done)


def _seed(study: Study, folder: Path) -> int:
    return derive_seed(study.request.seed, folder.name) % 2**31


def _train_again(
    number: int, recipe: dict[str, Any], setting: TrialSetting, data: TrialData | SharedData
) -> tuple[int, str]:
    """Number, and why it failed or nothing."""
    try:
        carry_out(number, from_dict(Recipe, recipe), setting, data, lambda metrics: None)
    except MfdiffError as fault:
        return number, str(fault)
    return number, ""
