from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_platform.workspace import DEFAULT, ENVIRONMENT, Workspace, open_workspace

PLACES: tuple[Callable[[Workspace, str], Path], ...] = (
    Workspace.dataset,
    Workspace.pretraining,
    Workspace.study,
)


def test_option_wins_over_environment_and_environment_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert open_workspace(None).root == tmp_path / DEFAULT
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "site"))
    assert open_workspace(None).root == tmp_path / "site"
    assert open_workspace(Path("mine")).root == tmp_path / "mine"


def test_workspace_is_made_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = open_workspace(Path("a/b")).root
    assert root.is_absolute()
    assert root.is_dir()


def test_tilde_is_the_user_s_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_workspace(Path("~/site")).root == tmp_path / "site"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden", "-rf", "a b", "x" * 65])
def test_no_name_leads_out_of_its_folder(
    tmp_path: Path, place: Callable[[Workspace, str], Path], name: str
) -> None:
    with pytest.raises(ConfigError, match="name"):
        place(Workspace(tmp_path), name)


def test_equal_names_of_different_things_do_not_meet(tmp_path: Path) -> None:
    places = [place(Workspace(tmp_path), "leeds") for place in PLACES]
    assert len(set(places)) == len(PLACES)
    assert all(tmp_path in place.parents for place in places)
