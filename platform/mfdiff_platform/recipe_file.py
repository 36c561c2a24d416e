"""A recipe as a file: what to train, and all else that decides what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.study import Study, StudyRequest
from mfdiff_platform.yaml_file import parse_yaml

RECIPE = "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A winning recipe as it travels.

    Attributes:
        recipe: what to do.
        seed, validations, validation_slices, precision, metrics, modes, setting: of the study
            that found it; with the same data and weights they give the same model again.
        data_fingerprint, pretrained_sha256: what it was found on.
    """

    recipe: Recipe
    seed: int = 0
    validations: int = 9
    validation_slices: int | None = None
    precision: Precision = "fp32"
    metrics: tuple[str, ...] = ("psnr",)
    modes: tuple[str, ...] = ()
    setting: str = ""
    data_fingerprint: str = ""
    pretrained_sha256: str = ""

    def space(self) -> str:
        """A search space of this one recipe."""
        fixed = {name: {"value": value} for name, value in to_dict(self.recipe).items()}
        space = {"description": "One recipe from a file", "parameters": fixed}
        return str(yaml.safe_dump(space, sort_keys=False))

    def differences(self, request: StudyRequest) -> list[str]:
        """What is not as it was when the recipe was found."""
        told = {
            "the dataset": (self.data_fingerprint, request.data_fingerprint),
            "the pretrained weights": (self.pretrained_sha256, request.pretrained_sha256),
        }
        return [what for what, (then, now) in told.items() if then and then != now]


def recipe_text(study: Study, number: int) -> str:
    """Trial ``number`` of a study as the text of a recipe file."""
    request = study.request
    file = RecipeFile(
        recipe=from_dict(Recipe, study.ledger[number].config["recipe"]),
        **{
            name: getattr(request, name)
            for name in RecipeFile.__dataclass_fields__
            if name != "recipe"
        },
    )
    return (
        f"# Trial {number} of study {request.name}. The same model again:\n"
        f"#   mfdiff-platform adapt --domain {request.domain} --recipe {RECIPE} --name again\n"
        f"{yaml.safe_dump(to_dict(file), sort_keys=False)}"
    )


def read_recipe(path: Path) -> RecipeFile:
    """Read and check a recipe file.

    Raises:
        ConfigError: it is missing or wrong; names each fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read ({fault})") from None
    values: Any = parse_yaml(text, path.name)
    if not isinstance(values, dict) or "recipe" not in values:
        raise ConfigError(f"{path}: not a recipe file (no `recipe`); `adapt` writes one per study")
    file = from_dict(RecipeFile, values, path.name)
    if file.recipe.strategy == "external":
        raise ConfigError(f"{path}: the pretrained model as it is; there is nothing to train")
    return file
