from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfdiff_core.bundle import Bundle, save_bundle
from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.data.manifest import SHARDS, Manifest, describe_shard, load_manifest
from mfdiff_core.data.slices import SliceRecord, write_shard
from mfdiff_core.errors import BundleError, ConfigError, DataError
from mfdiff_core.files import read_json
from mfdiff_core.model import build_model, preset
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.known import point_of
from mfdiff_platform.plan import StudyPlan, newest_pretraining, plan_study
from mfdiff_platform.search_space import resolve
from mfdiff_platform.study import REQUEST, claim_study
from mfdiff_platform.workspace import Workspace

FIELDS = ("x_p", "x_m", "x_s", "tissue", "lesions")


@pytest.fixture
def workspace(
    tmp_path: Path, dataset_folder: Path, pretrained: Bundle, make_dataset: Callable[..., Path]
) -> Workspace:
    """Holds a dataset of domain toy, phantoms and one finished pretraining."""
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(dataset_folder, workspace.dataset("toy"))
    shutil.copytree(pretrained.folder, workspace.pretraining("first") / "bundle")
    make_dataset(workspace.dataset("phantom"), "phantom")
    return workspace


def test_domain_alone_makes_a_complete_request(workspace: Workspace, pretrained: Bundle) -> None:
    request = plan_study(workspace, StudyPlan(domain="toy"))
    assert (request.name, request.domain, request.setting) == ("toy", "toy", "")
    assert request.data == str(workspace.dataset("toy"))
    assert request.data_fingerprint == open_dataset(workspace.dataset("toy")).manifest.fingerprint
    assert request.pretrained == str(workspace.pretraining("first") / "bundle")
    assert request.pretrained_sha256 == pretrained.provenance.sha256
    assert request.space == resolve("toy").read_text()


def test_request_does_not_depend_on_where_the_command_is_typed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    relative = Path("pretrained/first/bundle")
    plan = StudyPlan(domain="toy", data=Path("data/toy"), pretrained=relative)
    assert plan_study(workspace, plan) == plan_study(workspace, StudyPlan(domain="toy"))


def test_phantoms_are_at_hand_for_replay(workspace: Workspace) -> None:
    request, folder = plan_study(workspace, StudyPlan(domain="toy")), workspace.dataset("phantom")
    assert request.phantom == str(folder)
    assert request.phantom_fingerprint == open_dataset(folder).manifest.fingerprint


@pytest.mark.parametrize(
    ("parameters", "single"),
    [
        ("strategy: {choices: [internal, single_stage]}", False),
        ("replay: {choices: [0.0, 0.5]}", False),
        ("replay: {low: 0.0, high: 0.5}", False),
        ("lr: {value: 1e-3}", True),
    ],
)
def test_recipes_that_need_phantoms_are_refused_without_them(
    workspace: Workspace, tmp_path: Path, parameters: str, single: bool
) -> None:
    shutil.rmtree(workspace.dataset("phantom"))
    space = tmp_path / "space.yaml"
    space.write_text(f"parameters:\n  {parameters}\n")
    plan = StudyPlan(domain="toy", space_file=space, with_single_stage=single)
    with pytest.raises(ConfigError, match=r"no phantom slices.*simulate --domain phantom"):
        plan_study(workspace, plan)


def test_recipe_file_with_replay_is_refused_without_phantoms(
    workspace: Workspace, tmp_path: Path
) -> None:
    shutil.rmtree(workspace.dataset("phantom"))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"recipe": {"iterations": 7, "replay": 0.25}}))
    with pytest.raises(ConfigError, match="no phantom slices"):
        plan_study(workspace, StudyPlan(domain="toy", recipe_file=file))


def test_phantoms_of_another_size_are_refused_where_recipes_mix_them_in(
    workspace: Workspace, make_record: Callable[..., SliceRecord]
) -> None:
    folder, entries = workspace.dataset("phantom"), []
    for subject in ("s0", "s1", "s2", "s3", "s4"):
        whole = make_record(subject, domain="phantom")
        small: dict[str, Any] = {n: getattr(whole, n)[:16, :16].copy() for n in FIELDS}
        path = folder / SHARDS / f"{subject}.arrow"
        path.unlink()
        write_shard(path, [replace(whole, **small)])
        entries.append(describe_shard(folder, path, subject, 1))
    origin = {"kind": "test"}
    Manifest("phantom", 16, ("ld",), 0, origin, tuple(entries), {"psnr": 20.0}).save(folder)
    with pytest.raises(ConfigError, match=r"phantom: slices of 16x16 .* model takes 32x32"):
        plan_study(workspace, StudyPlan(domain="toy"))


def test_space_without_phantoms_needs_none(workspace: Workspace, tmp_path: Path) -> None:
    shutil.rmtree(workspace.dataset("phantom"))
    space = tmp_path / "space.yaml"
    space.write_text("parameters:\n  lr: {value: 1e-3}\n")
    assert plan_study(workspace, StudyPlan(domain="toy", space_file=space)).phantom == ""


def test_model_of_other_voxels_is_refused_with_both_sizes(
    workspace: Workspace, pretrained: Bundle, tmp_path: Path
) -> None:
    coarse = save_bundle(
        tmp_path / "coarse",
        pretrained.config,
        pretrained.weights(),
        replace(pretrained.provenance, voxel_mm=4.0),
    )
    plan = StudyPlan(domain="toy", pretrained=coarse.folder)
    with pytest.raises(ConfigError, match=r"voxels of 2 mm, .* pretrained on 4 mm"):
        plan_study(workspace, plan)


def test_slices_divided_by_something_else_are_refused(
    workspace: Workspace, pretrained: Bundle, tmp_path: Path
) -> None:
    other = replace(pretrained.provenance, data_facts={"intensity": "own_maximum"})
    bundle = save_bundle(tmp_path / "own", pretrained.config, pretrained.weights(), other)
    with pytest.raises(ConfigError, match="intensity lpet, the model was pretrained on own_max"):
        plan_study(workspace, StudyPlan(domain="toy", pretrained=bundle.folder))


def test_person_under_two_names_is_refused_before_anything_is_trained(
    workspace: Workspace, make_record: Callable[..., SliceRecord]
) -> None:
    folder = workspace.dataset("toy")
    manifest = load_manifest(folder)
    twin = make_record("s2")
    path = folder / SHARDS / "s1.arrow"
    path.unlink()
    write_shard(path, [replace(twin, info=replace(twin.info, subject="s1"))])
    entries = list(manifest.shards)
    entries[1] = describe_shard(folder, path, "s1", 1)
    replace(manifest, shards=tuple(entries)).save(folder)
    with pytest.raises(DataError, match="shares targets with s1"):
        plan_study(workspace, StudyPlan(domain="toy"))


@pytest.mark.parametrize("metric", ["spect/psnr", "ld/bias", "dice"])
def test_metric_that_no_validation_gives_is_refused(workspace: Workspace, metric: str) -> None:
    with pytest.raises(ConfigError, match=f"--metric {metric}"):
        plan_study(workspace, StudyPlan(domain="toy", metrics=(metric,)))


def test_metric_of_one_setting_is_accepted(workspace: Workspace) -> None:
    request = plan_study(workspace, StudyPlan(domain="toy", metrics=("uld/psnr", "bias")))
    assert [aim.mode for aim in request.objectives()] == ["max", "min"]


def test_recipe_file_becomes_a_space_of_one_recipe(workspace: Workspace, tmp_path: Path) -> None:
    recipe = Recipe(lr=3e-4, iterations=7, freeze="encoders", unfreeze_at=0.5, l2sp=1e-3)
    made = {"recipe": to_dict(recipe), "seed": 5, "validations": 2, "setting": "uld"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
    request = plan_study(workspace, StudyPlan(domain="toy", recipe_file=tmp_path / "recipe.yaml"))
    assert (request.seed, request.validations, request.setting) == (5, 2, "uld")
    space = request.search_space()
    assert all(len(p.values.examples) == 1 for p in space.parameters)
    point = point_of(space, to_dict(recipe))
    assert point is not None
    assert from_dict(Recipe, point.recipe) == recipe


def test_recipe_found_on_other_data_says_so(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"recipe": {"iterations": 7}, "data_fingerprint": "f" * 64}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
    plan_study(workspace, StudyPlan(domain="toy", recipe_file=tmp_path / "recipe.yaml"))
    assert "the dataset differ" in " ".join(capsys.readouterr().err.split())


def test_study_moves_with_its_workspace(workspace: Workspace, tmp_path: Path) -> None:
    request = plan_study(workspace, StudyPlan(domain="toy"))
    study = claim_study(workspace.study("toy"), request)
    written = read_json(study.folder / REQUEST)
    assert (written["data"], written["phantom"]) == ("data/toy", "data/phantom")
    moved = Workspace(workspace.root.rename(tmp_path / "elsewhere"))
    again = plan_study(moved, StudyPlan(domain="toy"))
    assert claim_study(moved.study("toy"), again).request == again
    assert again.data.startswith(str(moved.root))


def test_newest_finished_pretraining_is_taken(workspace: Workspace, pretrained: Bundle) -> None:
    newer = workspace.pretraining("second") / "bundle"
    shutil.copytree(pretrained.folder, newer)
    os.utime(workspace.pretraining("first") / "bundle", (1e9, 1e9))
    workspace.pretraining("unfinished").mkdir()
    assert newest_pretraining(workspace).folder == newer


def test_workspace_without_pretraining_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run `mfdiff-platform pretrain` first, or.*BUNDLE"):
        newest_pretraining(Workspace(tmp_path))


@pytest.mark.parametrize(
    ("plan", "fault", "message"),
    [
        (StudyPlan(domain="leeds"), DataError, "leeds: no dataset .*`mfdiff-platform simulate`"),
        (StudyPlan(domain="toy", setting="bolus"), DataError, "'bolus'; it has ld, uld"),
        (StudyPlan(domain="toy", space_file=Path("no.yaml")), ConfigError, "no.yaml: no such"),
        (StudyPlan(domain="toy", pretrained=Path("/nowhere")), BundleError, "not a model bundle"),
        (StudyPlan(domain="../toy"), ConfigError, "domain name"),
    ],
)
def test_what_is_missing_is_named(
    workspace: Workspace, plan: StudyPlan, fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=message):
        plan_study(workspace, plan)


def test_model_of_another_image_size_is_refused_with_both_sizes(
    workspace: Workspace, pretrained: Bundle, tmp_path: Path
) -> None:
    config = preset("quick")
    large = save_bundle(
        tmp_path / "large", config, build_model(config, 0).state_dict(), pretrained.provenance
    )
    plan = StudyPlan(domain="toy", pretrained=large.folder)
    with pytest.raises(ConfigError, match=r"32x32 pixels, the model takes 128x128"):
        plan_study(workspace, plan)
