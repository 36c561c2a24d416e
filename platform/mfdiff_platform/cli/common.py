"""Options that verbs share, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mfdiff_platform.tracking import TrackingStore
    from mfdiff_platform.workspace import Workspace

PROGRAM = "mfdiff-platform"

F = TypeVar("F", bound=Callable[..., Any])


def common(function: F) -> F:
    """Add ``--workspace`` and ``--json``."""
    workspace = click.option(
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="MFDIFF_WORKSPACE",
        help="Folder for all that is written.  [default: ./mfdiff-workspace]",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
    return workspace(as_json(function))


def seed_option(function: F) -> F:
    """Add ``--seed``."""
    return click.option("--seed", default=0, show_default=True, help="Fixes every random choice.")(
        function
    )


def settings_option(function: F) -> F:
    """Add ``--set a.b=value``, as often as needed."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="A.B=VALUE",
        help="Override one setting; may be given several times.",
    )(function)


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """``("a.b=1",)`` as ``{"a.b": 1}``; values are read as YAML.

    Raises:
        click.UsageError: an item without ``=``.
    """
    from mfdiff_platform.yaml_file import parse_yaml

    parsed: dict[str, Any] = {}
    for item in settings:
        path, found, value = item.partition("=")
        if not found or not path:
            raise click.UsageError(f"--set takes a.b=value, got {item!r}")
        parsed[path] = parse_yaml(value, f"--set {path}")
    return parsed


def open_store(workspace: Workspace) -> TrackingStore:
    """The workspace's MLflow store, ready, with what an earlier command left in the spool."""
    from mfdiff_platform.tracking import TrackingStore

    store = TrackingStore(workspace.root)
    store.prepare()
    store.flush()
    return store


def this_program() -> Path:
    """How this program was called, so that a printed command works without the environment."""
    return Path(sys.argv[0]) if Path(sys.argv[0]).name == PROGRAM else Path(PROGRAM)


def print_result(values: dict[str, Any], text: str, as_json: bool) -> None:
    """The result on stdout: ``values`` as JSON, or ``text`` for people."""
    click.echo(json.dumps(values, indent=2) if as_json else text)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> str:
    """Plain aligned columns; the first ``left`` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
