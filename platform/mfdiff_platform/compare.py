"""Comparisons: train what is missing, restore the test subjects, write tables and figures.

Trainings and restorations are found again by fingerprint, so a comparison that was stopped goes
on, and tables that share a model train it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mfdiff_core
from mfdiff_core.config import flatten
from mfdiff_core.data.check import open_sound_dataset
from mfdiff_core.data.dataset import Dataset, SliceSet
from mfdiff_core.evaluation.scores import score_slices
from mfdiff_core.evaluation.table_files import to_csv, to_latex, to_values
from mfdiff_core.evaluation.tables import Cost, Table, TableRow, to_markdown
from mfdiff_core.files import write_bytes, write_json
from mfdiff_core.model import build_model
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.compare_figures import write_figures
from mfdiff_platform.compare_plan import (
    PHANTOM,
    CompareScale,
    Comparison,
    Method,
    without_sinograms,
)
from mfdiff_platform.compare_restoration import Restoration, filtered, restored_by
from mfdiff_platform.compare_training import Arm, Trained, trained
from mfdiff_platform.preflight import check_augmentation, check_image_size
from mfdiff_platform.progress import task
from mfdiff_platform.run import Run
from mfdiff_platform.slice_parts import by_setting, evenly
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

EXPERIMENT = "mfdiff-comparisons"
TABLE = "table"


@dataclass(frozen=True)
class Compared:
    """Where a comparison lies, and what it says."""

    folder: Path
    table: Table
    markdown: str


@dataclass(frozen=True)
class Slices:
    """The datasets of a comparison; ``phantom`` is that of the external stage, if there is one."""

    domain: Dataset
    phantom: Dataset | None


def compare(
    workspace: Workspace,
    store: TrackingStore,
    comparison: Comparison,
    scale: CompareScale,
    *,
    data: Path | None = None,
    phantom: Path | None = None,
) -> Compared:
    """Carry out a comparison; what an earlier one has trained or restored is kept.

    Args:
        workspace: holds datasets, and ``comparisons`` with everything that is written.
        store: the table goes there too.
        comparison: rows and domain.
        scale: how much is trained.
        data, phantom: dataset folders instead of the workspace's.

    Raises:
        DataError: a dataset is missing or damaged, or has no such setting.
        ConfigError: slices and networks do not fit, or phantoms are missing.
        TrainingError: a training diverged.
    """
    slices = _open(workspace, comparison, data, phantom)
    if not slices.domain.manifest.sinograms:
        comparison = without_sinograms(comparison)
    arms = {m.label: _arm(m, scale, slices, comparison.domain) for m in comparison.methods}
    for arm in arms.values():
        check_image_size(slices.domain, arm.model)
        check_augmentation(arm.model, arm.recipe.augment)
    setting = comparison.setting or None
    test = evenly(slices.domain.part("test", setting), scale.test_slices)
    folder = workspace.comparison(_name(comparison, scale))
    run = _open_run(store, comparison, scale, folder.name, slices)
    with run.watched():
        restored, notes = filtered(slices.domain, test)
        costs: dict[str, Cost] = {}
        for method in comparison.methods:
            done = trained(arms[method.label], workspace.comparison("models"))
            restored[method.label] = restored_by(
                method, done.bundle, test, slices.domain, scale, workspace.comparison("restored")
            )
            costs[method.label] = _cost(done, restored[method.label])
        with task("Writing table and figures", 1):
            table = _table(comparison, scale, slices, test, restored, costs, notes)
            markdown = _write(folder, table, restored, test)
        _log(run, folder, table, markdown)
    run.finish("finished")
    return Compared(folder, table, markdown)


def _name(comparison: Comparison, scale: CompareScale) -> str:
    seed = f"-seed{scale.seed}" if scale.seed else ""
    return f"{comparison.name}-{scale.size}-{scale.recipe.iterations}{seed}"


def _open(
    workspace: Workspace, comparison: Comparison, data: Path | None, phantom: Path | None
) -> Slices:
    domain = open_sound_dataset(data or workspace.dataset(comparison.domain))
    if comparison.domain == PHANTOM:
        return Slices(domain, domain)
    strategies = {method.strategy for method in comparison.methods}
    if strategies == {"internal"}:
        return Slices(domain, None)
    return Slices(domain, open_sound_dataset(phantom or workspace.dataset(PHANTOM)))


def _arm(method: Method, scale: CompareScale, slices: Slices, domain: str) -> Arm:
    """The training behind a row; rows of one training share it by fingerprint."""
    label = method.label.partition(",")[0]
    scratch = Arm(
        label=label,
        model=method.config(scale.size),
        recipe=replace(scale.recipe, strategy="internal"),
        data=slices.domain,
        precision=scale.precision,
        seed=scale.seed,
    )
    if domain == PHANTOM:
        return scratch
    external = None
    if slices.phantom is not None:
        external = replace(scratch, label=f"{label} on phantoms", data=slices.phantom)
    if method.strategy == "external":
        assert external is not None, "phantoms were opened for this strategy"
        return external
    recipe = _adapting(method, scale)
    return replace(
        scratch,
        label=f"{label} on {domain}",
        recipe=recipe,
        phantom=slices.phantom if method.strategy == "single_stage" else None,
        parent=external if recipe.starts_pretrained else None,
    )


def _adapting(method: Method, scale: CompareScale) -> Recipe:
    """Second stage; a single stage takes the iterations of both, so that all are equal."""
    iterations = scale.adapt_iterations
    if method.strategy == "single_stage":
        iterations += scale.recipe.iterations
    warmup = min(scale.recipe.warmup, iterations // 20)
    return replace(scale.recipe, strategy=method.strategy, iterations=iterations, warmup=warmup)


def _cost(done: Trained, restored: Restoration) -> Cost:
    model = build_model(done.bundle.config, seed=0)
    discriminator = sum(weight.numel() for weight in model.adversary)
    return Cost(
        parameters=sum(weight.numel() for weight in model.parameters()) - discriminator,
        discriminator=discriminator,
        iterations=done.iterations,
        training_s=done.training_s,
        slice_s=restored.slice_s,
        evaluations=restored.evaluations,
    )


def _table(
    comparison: Comparison,
    scale: CompareScale,
    slices: Slices,
    test: SliceSet,
    restored: Mapping[str, Restoration],
    costs: Mapping[str, Cost],
    notes: Mapping[str, str],
) -> Table:
    """Every row in every setting."""
    rows = [
        TableRow(
            method=method,
            setting=setting,
            score=score_slices(done.x_s[places], part, seed=scale.seed),
            cost=costs.get(method),
        )
        for setting, places, part in by_setting(test)
        for method, done in restored.items()
    ]
    return Table(
        name=comparison.name,
        title=comparison.title,
        rows=rows,
        left_out=comparison.left_out,
        facts=_facts(comparison, scale, slices, test) | dict(notes),
        seed=scale.seed,
    )


def _facts(
    comparison: Comparison, scale: CompareScale, slices: Slices, test: SliceSet
) -> dict[str, str]:
    """What was done, in the words of the table's foot."""
    recipe, manifest = scale.recipe, slices.domain.manifest
    people = {info.subject for info in test.infos}
    facts = {
        "data": f"{manifest.domain}, fingerprint {manifest.fingerprint[:16]}",
        "test": f"{len(test)} slices of {len(people)} subject(s) that no training has seen",
        "networks": f"preset {scale.size}",
        "training": (
            f"{recipe.iterations} iterations, batch {recipe.batch_size}, AdamW at {recipe.lr:g}"
            f" ({recipe.schedule}, warm-up {recipe.warmup}), averaged at {recipe.ema:g},"
            f" augmentation {recipe.augment}, {scale.precision}, seed {scale.seed}; the same for"
            " every row"
        ),
        "code": f"mfdiff-platform {mfdiff_core.__version__}",
    }
    if comparison.domain == PHANTOM or slices.phantom is None:
        return facts
    phantom = slices.phantom.manifest.fingerprint[:16]
    second = f"{scale.adapt_iterations} iterations on {manifest.domain}, all its settings together"
    return facts | {"external stage": f"phantoms {phantom}", "internal stage": second}


def _write(folder: Path, table: Table, restored: Mapping[str, Restoration], test: SliceSet) -> str:
    markdown = to_markdown(table)
    texts = {"md": markdown, "csv": to_csv(table), "tex": to_latex(table)}
    for ending, text in texts.items():
        write_bytes(folder / f"{TABLE}.{ending}", text.encode())
    write_json(folder / f"{TABLE}.json", to_values(table))
    write_figures(folder, table, {name: done.x_s for name, done in restored.items()}, test)
    return markdown


def _open_run(
    store: TrackingStore, comparison: Comparison, scale: CompareScale, name: str, slices: Slices
) -> Run:
    tags = {
        "kind": "comparison",
        "domain": comparison.domain,
        "systems": ",".join(dict.fromkeys(method.system for method in comparison.methods)),
    }
    run = store.find_or_create(EXPERIMENT, f"compare/{name}", comparison.title, tags)
    run.log_config(flatten(scale))
    manifest = slices.domain.manifest
    run.log_dataset(manifest.domain, manifest.fingerprint, "testing")
    return run


def _log(run: Run, folder: Path, table: Table, markdown: str) -> None:
    rows = [
        {"setting": row.setting, "method": row.method}
        | {name: found.slice_mean for name, found in row.score.quantitative.items()}
        for row in table.rows
    ]
    run.log_table(rows, "tables/comparison.json")
    run.log_dir(folder, "comparison")
    run.note(markdown)
