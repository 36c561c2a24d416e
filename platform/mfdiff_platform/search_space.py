"""Search spaces: a user's YAML file becomes a conditional Optuna space over recipes.

    parameters:
      strategy: {choices: [two_stage, internal]}
      lr: {low: 1e-5, high: 1e-3, log: true}
      freeze: {choices: [none, fusion], when: {strategy: two_stage}}
      iterations: {value: 2000}
    references:
      - {name: gentle, strategy: two_stage, lr: 2e-5}

Parameters are drawn in the order of the file. A parameter whose ``when`` does not hold is left
out, and the recipe's own default applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiff_core.errors import ConfigError
from mfdiff_platform.names import check_name
from mfdiff_platform.search_parameter import Parameter, Range, Value, complete, draw
from mfdiff_platform.yaml_file import parse_yaml

if TYPE_CHECKING:
    import optuna

    from mfdiff_core.training.strategies import Recipe

_FOLDER = "search_spaces"
_DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A checked search space; calling it with an Optuna trial draws a recipe.

    Attributes:
        text: the YAML it was made from; `parse` makes the same space of it.
        description: what it is for.
        parameters: in the order in which they are drawn.
        own_references: recipes of the file that every study runs first, by name.
    """

    text: str
    description: str
    parameters: tuple[Parameter, ...]
    own_references: tuple[tuple[str, dict[str, Value]], ...]

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw the fields of a recipe."""
        return draw(self.parameters, lambda p: p.values.suggest(trial, p.name))

    @property
    def iterations(self) -> int:
        """Most iterations that a trial may take; references take as many."""
        return int(max(self._values("iterations")))

    @property
    def batch_size(self) -> int:
        """Smallest batch of a trial; references use it."""
        return int(min(self._values("batch_size")))

    @property
    def largest_batch_size(self) -> int:
        """Largest batch of a trial."""
        return int(max(self._values("batch_size")))

    @property
    def batch_sizes(self) -> set[int]:
        """Every batch size that a trial may take."""
        for parameter in self.parameters:
            if parameter.name == "batch_size" and isinstance(parameter.values, Range):
                low, high, step = parameter.values.low, parameter.values.high, parameter.values.step
                return set(range(int(low), int(high) + 1, int(step or 1)))
        return {int(size) for size in self._values("batch_size")}

    def references(self, *, single_stage: bool = False) -> dict[str, Recipe]:
        """Recipes to run before the search: the paper's arms, then those of the file."""
        from mfdiff_core.config import from_dict
        from mfdiff_core.training.strategies import Recipe, reference_recipes

        recipes = reference_recipes(self.iterations, self.batch_size, single_stage=single_stage)
        common = {"iterations": self.iterations, "batch_size": self.batch_size}
        for name, fields in self.own_references:
            recipes[name] = from_dict(Recipe, complete(common | fields), name)
        return recipes

    def show(self) -> str:
        """The space as text for the terminal."""
        rows = [parameter.row() for parameter in self.parameters]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{self.description}\n"] if self.description else []
        for name, values, condition in rows:
            line = f"{name:{widths[0]}}  {values:{widths[1]}}"
            lines.append(f"{line}  if {condition}" if condition else line.rstrip())
        return "\n".join([*lines, f"\nreferences: {', '.join(self.references())}"])

    def _values(self, name: str) -> tuple[Any, ...]:
        """Values of a parameter, or the recipe's default when the space does not have it."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter.values.examples
        from mfdiff_core.training.strategies import Recipe

        return (getattr(Recipe(), name),)


def resolve(domain: str, file: Path | None = None) -> Path:
    """The space file for ``domain``: ``file``, else the domain's own, else the default.

    Raises:
        ConfigError: ``file`` is not there, or ``domain`` is not an allowed name.
    """
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"{file}: no such search space file")
        return file
    folder = spaces_folder()
    own = folder / f"{check_name('domain', domain)}.yaml"
    return own if own.is_file() else folder / f"{_DEFAULT}.yaml"


def spaces_folder() -> Path:
    """Folder of the shipped spaces: in the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / _FOLDER
    return installed if installed.is_dir() else package.parents[1] / _FOLDER


def load(path: Path) -> SearchSpace:
    """Read and check a space file.

    Raises:
        ConfigError: every fault of the file, each with its dotted path.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read ({fault})") from None
    return parse(text, path.name)


def parse(text: str, where: str = "search space") -> SearchSpace:
    """Check the text of a space.

    Raises:
        ConfigError: every fault, each with its dotted path.
    """
    from mfdiff_platform.search_space_reader import read_content

    content = read_content(parse_yaml(text, where), where)
    return SearchSpace(
        text=text,
        description=content.description,
        parameters=content.parameters,
        own_references=content.references,
    )
