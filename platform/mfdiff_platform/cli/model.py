"""`mfdiff-platform model`."""

from __future__ import annotations

from pathlib import Path

import click

from mfdiff_platform.cli.common import common, open_store, print_result, table

Domain = click.option("--domain", required=True, help="Names the site model, mfdiff-DOMAIN.")
Data = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Dataset folder.  [default: found by the model's data fingerprint]",
)


@click.group("model")
def command() -> None:
    """Registered site models: look, compare, promote, go back.

    \b
    Examples:
      mfdiff-platform model list
      mfdiff-platform model promote --domain ood3
      mfdiff-platform model rollback --domain ood3
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
    shown = ("test_psnr", "gain_over_paper_db", "gates", "study")
    rows = [
        (str(m.id), ", ".join(m.aliases), *(m.tags.get(tag, "") for tag in shown)) for m in models
    ]
    head = ("model", "alias", "test PSNR", "over paper", "gates", "study")
    print_result(values, table(head, rows) if rows else "no site models yet", as_json)


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
    from mfdiff_platform.site_model import RESULT_TAG
    from mfdiff_platform.workspace import open_workspace

    model = SiteModels(open_store(open_workspace(workspace))).show(reference)
    values = {
        "model": str(model.id),
        "aliases": list(model.aliases),
        "tags": model.tags,
        "description": model.description,
        "run_id": model.run_id,
    }
    lines = [f"{tag}: {value}" for tag, value in sorted(model.tags.items()) if tag != RESULT_TAG]
    tags = "\n".join(lines)
    text = f"{model.id}  [{', '.join(model.aliases)}]\n\n{model.description}\n\n{tags}"
    print_result(values, text, as_json)


@command.command("promote")
@Domain
@click.option("--version", type=click.IntRange(min=1), help="[default: the candidate]")
@click.option(
    "--gates",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Gates file.  [default: the domain's, else gates/default.yaml]",
)
@click.option(
    "--override", default="", metavar="REASON", help="Promote past failed gates; is recorded."
)
@Data
@common
def promote(
    domain: str,
    version: int | None,
    gates: Path | None,
    override: str,
    data: Path | None,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Make a version champion if it passes all gates on held-out subjects; exit code 6 if not.

    \b
    Examples:
      mfdiff-platform model promote --domain ood3
      mfdiff-platform model promote --domain ood3 --version 2 --override "lesions read by hand"
    """
    from mfdiff_platform.gates import gates_file, load_gates, table_rows
    from mfdiff_platform.promotion import PromotionRequest
    from mfdiff_platform.promotion import promote as run_gates
    from mfdiff_platform.registry import SiteModels
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    asked = PromotionRequest(
        domain=domain,
        limits=load_gates(gates_file(domain, gates)),
        version=version,
        data=data,
        override=override.strip(),
    )
    done = run_gates(place, SiteModels(open_store(place)), asked)
    values = {
        "verdict": done.verdict.to_dict(),
        "before": done.before,
        "champion": done.champion,
        "overridden": done.overridden,
    }
    lines = [table(("gate", "", "figure"), table_rows(done.verdict.results), left=3)]
    lines += [f"note: {note}" for note in done.verdict.notes]
    if done.champion == done.verdict.model:
        lines.append(f"champion  {done.champion}" + (" (overridden)" if done.overridden else ""))
    print_result(values, "\n".join(lines), as_json)
    done.require()


@command.command("compare")
@click.argument("first")
@click.argument("second")
@Data
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Page to write.  [default: WORKSPACE/comparisons/FIRST-SECOND.html]",
)
@common
def compare(
    first: str,
    second: str,
    data: Path | None,
    out: Path | None,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Two versions on the same held-out slices of the first one's dataset: table and pictures.

    \b
    Examples:
      mfdiff-platform model compare mfdiff-ood3@candidate mfdiff-ood3@champion
      mfdiff-platform model compare mfdiff-ood3/2 mfdiff-ood3/1 --out two-and-one.html
    """
    from mfdiff_core.bundle import load_bundle
    from mfdiff_platform.model_comparison import compare_models, table_cells
    from mfdiff_platform.promotion import held_out
    from mfdiff_platform.registry import SiteModels
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    models = SiteModels(open_store(place))
    chosen = [models.show(reference) for reference in (first, second)]
    names = [str(model.id) for model in chosen]
    file = "-".join(name.replace("/", "-") for name in names) + ".html"
    compared = compare_models(
        {name: load_bundle(models.resolve(name)) for name in names},
        held_out(place, chosen[0], data),
        (out or place.root / "comparisons" / file).absolute(),
    )
    scope = f"{compared.slices} slices of {compared.subjects} subject(s); quantitative convention."
    lines = [table(*table_cells(compared)), scope, *compared.notes, "", str(compared.page)]
    print_result(compared.to_dict(), "\n".join(lines), as_json)


@command.command("rollback")
@Domain
@click.option("--reason", default="", help="Why; goes into the promotion log.")
@common
def rollback(domain: str, reason: str, workspace: Path | None, as_json: bool) -> None:
    """Make the previous champion champion again.

    \b
    Example:
      mfdiff-platform model rollback --domain ood3 --reason "streaks in the cerebellum"
    """
    from mfdiff_platform.promotion import rollback as go_back
    from mfdiff_platform.registry import SiteModels
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    done = go_back(place, SiteModels(open_store(place)), domain, reason)
    values = {"before": done.before, "champion": done.champion}
    print_result(values, f"champion  {done.champion} (was {done.before or 'none'})", as_json)


@command.command("export")
@click.argument("reference")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write.",
)
@common
def export(reference: str, out: Path, workspace: Path | None, as_json: bool) -> None:
    """Write one version with its card and lineage to a zip file.

    \b
    Example:
      mfdiff-platform model export mfdiff-ood3@champion --out ood3.zip
    """
    from mfdiff_platform.model_archive import export_model
    from mfdiff_platform.registry import SiteModels
    from mfdiff_platform.workspace import open_workspace

    model = export_model(
        SiteModels(open_store(open_workspace(workspace))), reference, out.absolute()
    )
    print_result({"model": str(model), "archive": str(out)}, f"{out}  ({model})", as_json)


@command.command("import")
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@common
def import_(archive: Path, workspace: Path | None, as_json: bool) -> None:
    """Register an exported version as candidate; it has to pass the gates here.

    \b
    Example:
      mfdiff-platform model import ood3.zip
    """
    from mfdiff_platform.model_archive import import_model
    from mfdiff_platform.workspace import open_workspace

    place = open_workspace(workspace)
    made = import_model(place, open_store(place), archive)
    print_result({"model": str(made)}, f"{made} (candidate)", as_json)


@command.command("log")
@click.option("--domain", default="", help="Only this domain's.")
@common
def log(domain: str, workspace: Path | None, as_json: bool) -> None:
    """Promotions, refusals, overrides and rollbacks, oldest first.

    \b
    Example:
      mfdiff-platform model log --domain ood3
    """
    from dataclasses import asdict

    from mfdiff_platform.promotion_log import PromotionLog
    from mfdiff_platform.workspace import open_workspace

    decisions = PromotionLog(open_workspace(workspace).root).decisions(domain)
    rows = [(d.at, d.by, d.action, d.model, d.reason or d.summary) for d in decisions]
    head = ("at (UTC)", "by", "", "model", "why")
    text = table(head, rows, left=5) if rows else "nothing decided yet"
    print_result({"decisions": [asdict(d) for d in decisions]}, text, as_json)
