"""Trials in this process; `test_adapt` runs them on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import ConfigError, TrainingError
from mfdiff_core.evaluation.validation import evaluate_model, summarise
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.objective import read_objectives
from mfdiff_platform.trial import BUNDLE, LATEST, PICTURE, TrialSetting, run_trial
from mfdiff_platform.trial_data import PackedSlices, TrialData
from mfdiff_platform.trial_validation import regional_bias

SHORT: dict[str, Any] = {"iterations": 4, "batch_size": 2, "lr": 1e-3, "ema": 0.0}
RECIPES = {
    "external": Recipe(strategy="external", iterations=0),
    "two-stage": Recipe(**SHORT),
    "replay": Recipe(replay=0.5, augment="affine", **SHORT),
    "internal": Recipe(strategy="internal", **SHORT),
    "single-stage": Recipe(strategy="single_stage", **SHORT),
    "lora": Recipe(freeze="lora-2", **SHORT),
    "thawed": Recipe(freeze="fusion", unfreeze_at=0.5, l2sp=0.1, **SHORT),
}
Weights = dict[str, torch.Tensor]
Reports = list[dict[str, float]]


@pytest.fixture(scope="module")
def data(dataset: Dataset) -> TrialData:
    train, held_out = dataset.part("train"), dataset.part("validation")
    return TrialData(*map(PackedSlices.pack, (train, held_out, train)))


@pytest.fixture
def setting(tmp_path: Path, pretrained: Bundle) -> TrialSetting:
    return TrialSetting(
        study="s",
        domain="toy",
        folder=tmp_path,
        pretrained=pretrained.folder,
        data="fingerprint",
        seed=0,
        validations=2,
    )


def carry_out(name: str, setting: TrialSetting, data: TrialData, number: int = 0) -> Bundle:
    return run_trial(number, RECIPES[name], setting, data, lambda metrics: None)


def equal(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_leaves_a_model_that_loads_and_a_picture(
    name: str, setting: TrialSetting, data: TrialData, pretrained: Bundle
) -> None:
    bundle = carry_out(name, setting, data, 7)
    folder = setting.folder / "trials" / "0007"
    assert bundle.folder == folder / BUNDLE
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert bundle.model().state_dict().keys() == pretrained.model().state_dict().keys()


def test_external_keeps_the_pretrained_weights_bit_for_bit(
    setting: TrialSetting, data: TrialData, pretrained: Bundle
) -> None:
    assert equal(carry_out("external", setting, data).weights(), pretrained.weights())


@pytest.mark.parametrize("name", ["two-stage", "internal", "lora"])
def test_trained_recipes_change_the_weights(
    name: str, setting: TrialSetting, data: TrialData, pretrained: Bundle
) -> None:
    assert not equal(carry_out(name, setting, data).weights(), pretrained.weights())


def test_frozen_part_keeps_the_pretrained_weights(
    setting: TrialSetting, data: TrialData, pretrained: Bundle
) -> None:
    recipe = Recipe(freeze="all-but-up", **SHORT)
    weights = run_trial(0, recipe, setting, data, lambda metrics: None).weights()
    before = pretrained.weights()
    changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    groups = pretrained.model().network.parameter_groups()
    assert changed
    assert changed <= {f"network.{name}" for name in groups["up"]}


@pytest.mark.parametrize("name", ["replay", "internal"])
def test_same_seed_gives_the_same_weights_and_another_seed_others(
    name: str, setting: TrialSetting, data: TrialData
) -> None:
    first, second = (carry_out(name, setting, data, number).weights() for number in (0, 1))
    assert equal(first, second)
    other = TrialSetting(**{**vars(setting), "seed": 1})
    assert not equal(first, carry_out(name, other, data, 2).weights())


def test_bundle_says_where_it_comes_from(
    setting: TrialSetting, data: TrialData, pretrained: Bundle
) -> None:
    told = carry_out("two-stage", setting, data).provenance
    assert (told.domain, told.strategy, told.data) == ("toy", "two_stage", "fingerprint")
    assert told.parent == pretrained.provenance.sha256
    assert carry_out("internal", setting, data).provenance.parent == ""
    assert told.recipe["lr"] == 1e-3
    assert told.voxel_mm == 2.0


def test_bundle_holds_the_best_validation_s_weights_and_metrics(
    setting: TrialSetting, data: TrialData
) -> None:
    reports: Reports = []
    bundle = run_trial(0, RECIPES["two-stage"], setting, data, reports.append)
    best = max(reports, key=lambda report: report["psnr"])
    assert bundle.provenance.metrics["psnr"] == best["psnr"]
    held_out = data.validation.unpack()
    again = summarise(evaluate_model(bundle.model(), held_out), held_out)
    assert again["psnr"] == pytest.approx(best["psnr"], abs=1e-4)


@pytest.mark.parametrize("misled", [False, True])
def test_last_weights_are_kept_beside_the_best_where_they_differ(
    setting: TrialSetting, dataset: Dataset, misled: bool
) -> None:
    """Trained towards no activity at all, validation sees it get worse from step to step."""
    train, held_out = dataset.part("train"), dataset.part("validation")
    train = replace(train, x_s=0 * train.x_s) if misled else train
    data = TrialData(*map(PackedSlices.pack, (train, held_out, train)))
    reports: Reports = []
    run_trial(0, RECIPES["two-stage"], setting, data, reports.append)
    best = max(reports, key=lambda report: report["psnr"])
    folder = setting.place(0) / LATEST
    assert folder.is_dir() == (best is not reports[-1]) == misled
    if folder.is_dir():
        last, held_out = load_bundle(folder), data.validation.unpack()
        again = summarise(evaluate_model(last.model(), held_out), held_out)
        assert again["psnr"] == pytest.approx(reports[-1]["psnr"], abs=1e-4)
        assert last.provenance.metrics["psnr"] == reports[-1]["psnr"]


def test_trial_validates_evenly_and_at_its_end(setting: TrialSetting, data: TrialData) -> None:
    reports: Reports = []
    run_trial(0, RECIPES["internal"], setting, data, reports.append)
    assert [report["iterations"] for report in reports] == [2, 4]
    assert {"psnr", "ssim", "nmse", "loss", "ld/psnr", "uld/psnr"} <= reports[0].keys()


def test_external_reports_once_without_a_loss(setting: TrialSetting, data: TrialData) -> None:
    reports: Reports = []
    run_trial(0, RECIPES["external"], setting, data, reports.append)
    assert [report["iterations"] for report in reports] == [0]
    assert "loss" not in reports[0]


def test_replay_without_phantoms_is_refused(setting: TrialSetting, data: TrialData) -> None:
    alone = TrialData(data.train, data.validation, None)
    with pytest.raises(ConfigError, match="phantom"):
        carry_out("replay", setting, alone)


def test_trial_whose_validation_is_not_a_number_fails(
    setting: TrialSetting, data: TrialData
) -> None:
    broken = {**data.validation.arrays, "x_p": np.full_like(data.validation.arrays["x_p"], np.nan)}
    blind = TrialData(data.train, PackedSlices(data.validation.infos, broken), None)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        carry_out("two-stage", setting, blind)
    assert not (setting.folder / "trials").exists()


def test_packed_slices_come_back_as_they_were_without_a_copy(dataset: Dataset) -> None:
    slices = dataset.part("test")
    packed = PackedSlices.pack(slices)
    for array in packed.arrays.values():
        array.flags.writeable = False
    unpacked = packed.unpack()
    assert unpacked.infos == slices.infos
    assert torch.equal(unpacked.x_s, slices.x_s)
    assert unpacked.x_p.data_ptr() == packed.arrays["x_p"].ctypes.data


def test_deciding_metric_chooses_the_weights_and_all_objectives_are_measured(
    setting: TrialSetting, data: TrialData
) -> None:
    reports: Reports = []
    aims = read_objectives(("uld/nmse", "bias", "slice_seconds"), ())
    setting = replace(setting, objectives=aims, validations=4)
    bundle = run_trial(0, RECIPES["two-stage"], setting, data, reports.append)
    assert bundle.provenance.metrics["uld/nmse"] == min(report["uld/nmse"] for report in reports)
    assert all(report["slice_seconds"] > 0 and report["bias"] > 0 for report in reports)
    assert "score" not in reports[0]
    assert "score" not in bundle.provenance.metrics


def test_image_that_is_a_tenth_too_bright_has_a_bias_of_a_tenth(dataset: Dataset) -> None:
    slices = dataset.part("train")
    bright = 1.1 * slices.x_s[:, 0].numpy()
    assert regional_bias(bright, slices) == pytest.approx(0.1, rel=1e-4)
    without_maps = replace(slices, tissue=torch.zeros_like(slices.tissue))
    assert regional_bias(bright, without_maps) == pytest.approx(0.1, rel=1e-4)
