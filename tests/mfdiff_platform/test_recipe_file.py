from __future__ import annotations

from pathlib import Path

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_platform.recipe_file import read_recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1e-4", "not a recipe file"),
        ("recipe: {lr: 5}", "lr must lie between"),
        ("recipe: {lrr: 5}", "lrr"),
        ("recipe: {strategy: external, iterations: 0}", "nothing to train"),
        ("recipe: {lr: 1e-4}\nspeed: 3", "speed"),
    ],
)
def test_wrong_recipe_file_is_refused_and_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as fault:
        read_recipe(path)
    assert "recipe.yaml" in str(fault.value)


def test_missing_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read"):
        read_recipe(tmp_path / "nothing.yaml")
