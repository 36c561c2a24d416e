"""`mfdiff-platform model`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import common, open_store, print_result, table


@click.group("model")
def command() -> None:
    """Registered site models.

    \b
    Examples:
      mfdiff-platform model list
      mfdiff-platform model show mfdiff-ood3@candidate
    """


@command.command("list")
@common
def list_models(workspace: Path | None, as_json: bool) -> None:
    """All versions of all site models.

    \b
    Example:
      mfdiff-platform model list
    """
    from mfdiff_platform.registry import SiteModels
    from mfdiff_platform.workspace import open_workspace

    models = SiteModels(open_store(open_workspace(workspace))).list()
    values = {
        "models": [{"model": str(m.id), "aliases": list(m.aliases), "tags": m.tags} for m in models]
    }
    rows = [
        (str(m.id), ", ".join(m.aliases), m.tags.get("strategy", ""), m.tags.get("study", ""))
        for m in models
    ]
    text = table(("model", "alias", "strategy", "study"), rows) if rows else "no site models yet"
    print_result(values, text, as_json)


@command.command("show")
@click.argument("reference")
@common
def show(reference: str, workspace: Path | None, as_json: bool) -> None:
    """The model card of one version.

    \b
    Example:
      mfdiff-platform model show mfdiff-ood3@candidate
    """
    from mfdiff_platform.registry import SiteModels
    from mfdiff_platform.workspace import open_workspace

    model = SiteModels(open_store(open_workspace(workspace))).show(reference)
    values = {
        "model": str(model.id),
        "aliases": list(model.aliases),
        "tags": model.tags,
        "description": model.description,
        "run_id": model.run_id,
    }
    tags = "\n".join(f"{name}: {value}" for name, value in sorted(model.tags.items()))
    text = f"{model.id}  [{', '.join(model.aliases)}]\n\n{model.description}\n\n{tags}"
    print_result(values, text, as_json)
