"""What stands where: folders, sizes, search spaces, command line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mfdiff_core.model import MODELS
from mfdiff_platform.cli import VERBS, cli
from mfdiff_platform.cli.common import MODEL_NAMES
from mfdiff_platform.search_space import load, spaces_folder

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("mfdiff_core/**/*.py"), *ROOT.glob("platform/**/*.py")])
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

WHERE, HOW = ["--workspace", "--json"], ["--seed", "--workspace", "--json"]
RESTORE = ["--model", "--samples", "--no-register", "--strict", "--overwrite"]
INGEST = ["--domain", "--planes", "--no-register", "--out", "--set"]
DYNAMIC = ["--window", "--lpet", "--without-dose"]
FLAGS = {
    "quickstart": HOW,
    "simulate": [
        *["--domain", "--subjects", "--brainweb", "--labels", "--label-map"],
        *["--sinograms", "--view", "--intensity", "--quick", "--out", "--set"],
        *HOW,
    ],
    "data check": ["folder", "--json"],
    "data show": ["folder", "--picture", *WHERE],
    "pretrain": [
        "--model",
        *["--gpus", "--cpus", "--preset", "--data", "--original-settings"],
        *["--iterations", "--batch-size", "--name"],
        *["--restart", "--wait", "--dry-run", "--cluster", "--set", *HOW],
    ],
    "adapt": [
        *["--domain", "--trials", "--name", "--data", "--pretrained", "--model"],
        *["--space", "--setting"],
        *["--recipe", "--warm-start", "--metric", "--mode", "--sampler", "--scheduler"],
        *["--with-single-stage", "--gpus-per-trial", "--concurrent", "--trial-timeout"],
        *["--max-failures", "--seeds", "--finalists", "--validation-slices", "--precision"],
        *HOW,
    ],
    "compare": [
        *["table", "--models", "--domain", "--data", "--phantom", "--preset", "--iterations"],
        *[
            "--adapt-iterations",
            "--batch-size",
            "--samples",
            "--test-slices",
            "--precision",
            "--concurrent",
        ],
        *["--set", *HOW],
    ],
    "restore nifti": ["--pet", "--mr", "--out", *RESTORE, *HOW],
    "restore bids": [
        *["bids_dir", "out_dir", "level", "--participant-label", "--participant_label"],
        *["--pet-filter", "--window", *RESTORE, *HOW],
    ],
    "restore dicom": ["--pet", "--mr", "--out", *RESTORE, *HOW],
    "ingest bids": [
        *["bids_dir", "--participant-label", "--participant_label", "--pet-filter", "--preset"],
        *[*DYNAMIC, *INGEST, *HOW],
    ],
    "ingest nifti": ["table", *INGEST, *HOW],
    "ingest dicom": ["dicom_dir", *DYNAMIC, *INGEST, *HOW],
    "model list": WHERE,
    "model show": ["reference", *WHERE],
    "model promote": ["--domain", "--version", "--gates", "--override", "--data", *WHERE],
    "model rollback": ["--domain", "--reason", *WHERE],
    "model log": ["--domain", *WHERE],
    "model compare": ["first", "second", "--data", "--out", *WHERE],
    "model export": ["reference", "--out", *WHERE],
    "model import": ["archive", *WHERE],
    "study list": WHERE,
    "study show": ["name", *WHERE],
    "study resume": ["name", "--trials", "--concurrent", "--max-failures", *WHERE],
    "study export": ["name", "--out", *WHERE],
    "study import": ["archive", *WHERE],
    "study gc": ["--quota-gb", "--dry-run", "--yes", *WHERE],
    "search-space show": ["domain", "--space", "--json"],
    "ui": ["--port", "--workspace"],
    "cluster check": ["--cluster", "--json"],
    "dashboard": ["--cluster", "--open", "--json"],
}
"""Every argument of every verb. Flags name the run; hyperparameters go into --set and spaces."""


def commands(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """All commands below ``group`` with their full names."""
    context = click.Context(group)
    for verb in group.list_commands(context):
        command = group.get_command(context, verb)
        assert command is not None
        full = f"{name} {verb}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, full)
        else:
            yield full, command


def test_platform_folder_is_no_package() -> None:
    assert (ROOT / "platform" / "mfdiff_platform" / "__init__.py").is_file()
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_no_module_takes_the_name_of_a_library() -> None:
    import sys

    taken = {"ray", "mlflow", "optuna", "torch", "click", "yaml", "numpy", "rich"}
    tops = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.glob("*/")}
    assert not tops & taken
    assert tops & set(sys.stdlib_module_names) <= {"platform"}


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Functions of a source text and the lines of their bodies, docstrings not counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            ends = [statement.end_lineno or 0 for statement in body]
            yield node.name, max(ends) - body[0].lineno + 1 if body else 0


def test_files_and_functions_fit_on_a_few_screens() -> None:
    assert len(SOURCES) > 60
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= LONGEST_FILE, path
        long = {name: lines for name, lines in functions(text) if lines > LONGEST_FUNCTION}
        assert not long, path


def test_every_shipped_search_space_loads_and_none_is_missing() -> None:
    spaces = {path.stem: load(path) for path in spaces_folder().iterdir()}
    assert set(spaces) == {"default", "ood1", "ood2", "ood3", "smoke", "quickstart"}
    assert all(space.references() for space in spaces.values())


def test_flags_of_every_verb_are_the_agreed_ones() -> None:
    found = {
        name: [flag for parameter in command.params for flag in parameter.opts]
        for name, command in commands(cli)
    }
    assert found == FLAGS


def test_overview_lists_every_verb_in_the_order_of_the_chain() -> None:
    page = cli.get_help(click.Context(cli))
    places = [page.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", FLAGS)
def test_help_of_every_verb_has_an_example_and_explains_every_option(name: str) -> None:
    command = dict(commands(cli))[name]
    page = command.get_help(click.Context(command))
    example = page.partition("Example")[2]
    assert f"mfdiff-platform {name}" in example
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.show_default, parameter.name


def test_models_on_the_command_line_are_all_there_are() -> None:
    assert MODEL_NAMES == MODELS


@pytest.mark.parametrize("verb", ["model", "data", "search-space", "cluster", "ingest", "restore"])
def test_help_of_every_group_has_an_example(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert f"mfdiff-platform {verb} " in command.get_help(click.Context(command))
