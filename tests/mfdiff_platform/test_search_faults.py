"""Trials that raise, diverge, die and hang, in one real search that goes on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune

from mfdiff_core.bundle import Bundle
from mfdiff_platform.adapt import Adapted, adapt
from mfdiff_platform.cli.results import adapted_json, adapted_text
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.errors import PartialError
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.search import search
from mfdiff_platform.session import SearchScale
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.study import PAPER_RECIPE, Study
from mfdiff_platform.study_record import EXPERIMENT
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import TrialSetting, tune_trial
from mfdiff_platform.trial_data import PackedSlices, TrialData
from mfdiff_platform.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPACE = """
parameters:
  iterations: {value: 4}
  batch_size: {value: 2}
  lr: {low: 1e-4, high: 1e-3, log: true}
  ema: {value: 0.0}
"""
RAISES, DIVERGES, DIES, HANGS = 3, 4, 5, 6
TIMEOUT_S = 30.0


def faulty_trial(config: dict[str, Any], *, setting: TrialSetting, data: TrialData) -> None:
    """A trial whose number decides what goes wrong."""
    match config["number"]:
        case n if n == RAISES:
            raise RuntimeError("no room left on the device")
        case n if n == DIVERGES:
            holes = {**data.train.arrays, "x_s": data.train.arrays["x_s"] * np.nan}
            data = replace(data, train=PackedSlices(data.train.infos, holes))
        case n if n == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        case n if n == HANGS:
            tune.report({"psnr": 1.0, "iterations": 1})
            time.sleep(3600)
    tune_trial(config, setting=setting, data=data)


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    dataset_folder: Path,
    pretrained: Bundle,
    ray_cluster: Cluster,
) -> Iterator[Adapted]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "space.yaml").write_text(SPACE)
    shutil.copyfile(empty_database, folder / "mlflow.db")
    plan = StudyPlan(
        domain="toy",
        data=dataset_folder,
        pretrained=pretrained.folder,
        space_file=folder / "space.yaml",
        scheduler="none",
        validations=2,
        metrics=("psnr", "bias"),
    )
    workspace = Workspace(folder)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    scale = SearchScale(trials=8, concurrent=2, trial_timeout_s=TIMEOUT_S, seeds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URI_VARIABLE, raising=False)
        request = plan_study(workspace, plan)
        yield adapt(workspace, TrackingStore(folder), request, scale, faulty_trial)


def test_search_goes_on_to_its_last_trial(adapted: Adapted) -> None:
    states = {record.number: record.state for record in adapted.study.ledger}
    failed = dict.fromkeys([RAISES, DIVERGES, DIES, HANGS], "failed")
    assert states == {**dict.fromkeys(range(8), "finished"), **failed}


def test_search_begins_with_the_papers_recipe_at_ten_times_its_rate(adapted: Adapted) -> None:
    """A third of its five search points may be given, which is one."""
    rates = [record.config["recipe"]["lr"] for record in adapted.study.ledger][3:]
    assert rates[0] == pytest.approx(1e-3)
    assert len(adapted.study.known.points) == 1
    assert len(set(rates)) == 5


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (RAISES, "no room left on the device"),
        (DIVERGES, "not finite"),
        (DIES, "its worker died (out of memory, or killed)"),
        (HANGS, f"took longer than {TIMEOUT_S:.0f} s"),
    ],
)
def test_each_failure_is_recorded_with_its_reason(
    adapted: Adapted, number: int, reason: str
) -> None:
    assert reason in adapted.study.ledger[number].reason


def test_failures_are_named_beside_the_result(adapted: Adapted) -> None:
    assert set(adapted_json(adapted)["failed"]) == {"3", "4", "5", "6"}
    text = adapted_text(adapted)
    assert "best trial" in text
    assert "trial 3 failed: RuntimeError: no room left on the device" in text


def test_best_compromises_of_two_objectives_are_told(adapted: Adapted) -> None:
    front = adapted_json(adapted)["pareto"]
    assert front
    assert set(front[0]) == {"trial", "psnr", "bias"}
    assert all(0 < row["bias"] < 10 for row in front)
    assert "no trial is better in all of these" in adapted_text(adapted)


def test_finalists_were_trained_with_two_seeds(adapted: Adapted) -> None:
    rows = {row.name: row for row in adapted.outcome.rows}
    assert rows["external only"].seed_psnr == ()
    for name in (PAPER_RECIPE, "internal only", "best trial"):
        first, second = rows[name].seed_psnr
        assert first != second
        assert rows[name].psnr == pytest.approx((first + second) / 2)
    assert adapted.outcome.test_evaluations == 1
    assert "Other seeds" in adapted.report.read_text()


def test_too_many_failures_end_the_search_in_one_sentence(
    adapted: Adapted, store: TrackingStore
) -> None:
    study = Study(adapted.study.folder, adapted.study.request)
    run = store.find_or_create(EXPERIMENT, "s")
    scale = SearchScale(trials=9, max_failures=3)
    with pytest.raises(PartialError, match=r"4 trials failed.*--max-failures 3.*larger"):
        search(study, store, run, scale, dataset=None)  # type: ignore[arg-type]
    assert len(study.ledger) == 8
