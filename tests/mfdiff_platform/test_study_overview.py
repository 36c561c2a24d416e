"""`study list` and `study show` on a workspace made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.config import to_dict
from mfdiff_platform.cli import run
from mfdiff_platform.session import SearchScale, session
from mfdiff_platform.study import Study, StudyRequest, claim_study
from mfdiff_platform.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def study(workspace: Workspace) -> Study:
    """One reference finished, one failed, one cut short by Ctrl-C; nine asked for."""
    names = ("data", "data_fingerprint", "phantom", "pretrained", "setting")
    fixed: dict[str, Any] = dict.fromkeys(names, "")
    request = StudyRequest(
        name="leeds",
        domain="toy",
        pretrained_sha256="",
        space="parameters: {iterations: {value: 30}}",
        **fixed,
    )
    study = claim_study(workspace.study("leeds"), request)
    for number, (name, recipe) in enumerate(request.references().items()):
        config = {"recipe": to_dict(recipe), "reference": name, "distributions": None}
        study.ledger.add(config, number)
    study.ledger.update(0, state="finished", metrics={"psnr": 24.5})
    study.ledger.update(1, state="failed", reason="no room left")
    with pytest.raises(KeyboardInterrupt), session(study, SearchScale(trials=9)):
        raise KeyboardInterrupt
    return study


def result(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_tells_how_far_each_study_is(
    workspace: Workspace, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = result(capsys, "study", "list", "--workspace", str(workspace.root))["studies"]
    assert (one["name"], one["state"], one["asked"]) == ("leeds", "interrupted", 9)
    assert one["trials"] == {"finished": 1, "failed": 1, "running": 1}
    assert (one["best_trial"], one["best"], one["gain_db"]) == (0, 24.5, None)


def test_show_names_each_trial_and_why_it_failed(
    workspace: Workspace, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--workspace", str(workspace.root)]
    assert [t["state"] for t in result(capsys, "study", "show", "leeds", *place)["ledger"]] == [
        "finished",
        "failed",
        "running",
    ]
    assert run(["study", "show", "leeds", *place]) == 0
    text = capsys.readouterr().out
    assert "failed: no room left" in text
    assert "two-stage (paper)" in text


def test_list_of_an_empty_workspace_says_what_to_type(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", "list", "--workspace", str(workspace.root)]) == 0
    assert "mfdiff-platform adapt" in capsys.readouterr().out


def test_study_that_was_never_worked_on_here_is_not_resumed(
    workspace: Workspace, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.folder / "session.json").unlink()
    assert run(["study", "resume", "leeds", "--workspace", str(workspace.root)]) == 2
    assert "never worked on here" in capsys.readouterr().err
