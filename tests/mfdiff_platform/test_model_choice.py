"""`--model`: any system is pretrained, adapted and told apart."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mfdiff_core.bundle import Bundle, load_bundle, save_bundle
from mfdiff_core.config import one_of, to_dict
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.errors import ConfigError
from mfdiff_core.evaluation.validation import restore_slices
from mfdiff_core.model import AnyModelConfig, build_model, preset
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.plan import StudyPlan, newest_pretraining, plan_study
from mfdiff_platform.preflight import check_augmentation, check_image_size
from mfdiff_platform.trial import TrialSetting, run_trial
from mfdiff_platform.trial_data import PackedSlices, TrialData
from mfdiff_platform.workspace import Workspace
from tests.comparison.toy_systems import TOY, thin_config

MakeDataset = Callable[..., Path]


@pytest.fixture
def regression(tmp_path: Path, pretrained: Bundle) -> Bundle:
    """An M-UNet that calls itself pretrained."""
    config = one_of(AnyModelConfig, to_dict(thin_config("m-unet")))
    weights = build_model(config, 0).state_dict()
    return save_bundle(tmp_path / "m-unet", config, weights, pretrained.provenance)


@pytest.fixture
def workspace(
    tmp_path: Path, dataset_folder: Path, pretrained: Bundle, regression: Bundle
) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(dataset_folder, workspace.dataset("toy"))
    shutil.copytree(pretrained.folder, workspace.pretraining("first") / "bundle")
    shutil.copytree(regression.folder, workspace.pretraining("later") / "bundle")
    return workspace


def test_each_model_finds_its_own_pretraining(workspace: Workspace) -> None:
    assert newest_pretraining(workspace).config.system == "mfdiff"
    assert newest_pretraining(workspace, "m-unet").config.system == "m-unet"
    with pytest.raises(ConfigError, match="run `mfdiff-platform pretrain --model cncl` first"):
        newest_pretraining(workspace, "cncl")


def test_study_adapts_the_model_that_was_asked_for(workspace: Workspace) -> None:
    plan = StudyPlan(domain="toy", phantom=workspace.dataset("toy"), system="m-unet")
    request = plan_study(workspace, plan)
    assert load_bundle(Path(request.pretrained)).config.system == "m-unet"


def test_pretrained_bundle_of_another_model_is_refused(
    workspace: Workspace, regression: Bundle
) -> None:
    phantom = workspace.dataset("toy")
    plan = StudyPlan(domain="toy", phantom=phantom, pretrained=regression.folder, system="csrd")
    with pytest.raises(ConfigError, match="is a m-unet model, --model says csrd"):
        plan_study(workspace, plan)
    assert plan_study(workspace, dataclasses.replace(plan, system=None)).pretrained == str(
        regression.folder
    )


def test_trial_adapts_a_comparison_system(
    tmp_path: Path, dataset: Dataset, regression: Bundle
) -> None:
    part = PackedSlices.pack(dataset.part("validation"))
    data = TrialData(train=PackedSlices.pack(dataset.part("train")), validation=part, phantom=None)
    setting = TrialSetting(
        study="s",
        domain="toy",
        folder=tmp_path,
        pretrained=regression.folder,
        data="fingerprint",
        seed=0,
        validations=1,
    )
    bundle = run_trial(0, Recipe(iterations=2, lr=1e-3), setting, data, lambda metrics: None)
    assert bundle.config.system == "m-unet"
    assert bundle.provenance.parent == regression.provenance.sha256


def test_fb_sem_is_refused_with_the_reason(
    dataset: Dataset, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    config = preset("tiny", "fb-sem")
    with pytest.raises(ConfigError, match="measured sinograms, which images do not carry"):
        check_image_size(dataset, config)
    other = open_dataset(make_dataset(tmp_path / "measured", sinograms=TOY))
    with pytest.raises(ConfigError, match=r"the model takes .*'num_views': 252"):
        check_image_size(other, config)
    check_image_size(other, one_of(AnyModelConfig, to_dict(thin_config("fb-sem"))))
    with pytest.raises(ConfigError, match="takes augmentation flip or none"):
        check_augmentation(config, "affine")
    part = dataset.part("test")
    with pytest.raises(ConfigError, match="measured sinograms, which images do not carry"):
        restore_slices(build_model(config, 0), part)
