"""`mfdiff-platform search-space`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import print_result


@click.group("search-space")
def command() -> None:
    """Search spaces: which recipes a study tries.

    \b
    Example:
      mfdiff-platform search-space show ood3
    """


@command.command("show")
@click.argument("domain")
@click.option(
    "--space",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of your own instead of the domain's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def show(domain: str, space: Path | None, as_json: bool) -> None:
    """The space that `adapt` would search for DOMAIN, and the file it comes from.

    \b
    Examples:
      mfdiff-platform search-space show ood3
      mfdiff-platform search-space show leeds --space my-space.yaml
    """
    from mfdiff_platform.search_space import load, resolve

    path = resolve(domain, space)
    loaded = load(path)
    print_result({"file": str(path), "yaml": loaded.text}, f"{path}\n\n{loaded.show()}", as_json)
