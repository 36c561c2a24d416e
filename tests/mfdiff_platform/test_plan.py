from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.errors import BundleError, ConfigError, DataError
from mfdiff_core.model import build_model, preset
from mfdiff_platform.plan import StudyPlan, newest_pretraining, plan_study
from mfdiff_platform.search_space import resolve
from mfdiff_platform.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, dataset_folder: Path, pretrained: Bundle) -> Workspace:
    """Holds a dataset of domain toy and one finished pretraining."""
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(dataset_folder, workspace.dataset("toy"))
    shutil.copytree(pretrained.folder, workspace.pretraining("first") / "bundle")
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


def test_phantoms_are_at_hand_for_replay_once_simulated(
    workspace: Workspace, make_dataset: Callable[..., Path]
) -> None:
    assert plan_study(workspace, StudyPlan(domain="toy")).phantom == ""
    folder = make_dataset(workspace.dataset("phantom"), "phantom")
    assert plan_study(workspace, StudyPlan(domain="toy")).phantom == str(folder)


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
    from mfdiff_core.bundle import save_bundle

    config = preset("quick")
    large = save_bundle(
        tmp_path / "large", config, build_model(config, 0).state_dict(), pretrained.provenance
    )
    plan = StudyPlan(domain="toy", pretrained=large.folder)
    with pytest.raises(ConfigError, match=r"32x32 pixels, the model takes 128x128"):
        plan_study(workspace, plan)
