"""Comparisons: train what is missing, restore the test subjects, write tables and figures.

Trainings and restorations are found again by fingerprint, so a comparison that was stopped goes
on, and tables that share a model train it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mfdiff_core
from mfdiff_core.config import flatten
from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.evaluation.scores import score_slices
from mfdiff_core.evaluation.table_files import to_csv, to_latex, to_values
from mfdiff_core.evaluation.tables import Cost, Table, TableRow, to_markdown
from mfdiff_core.files import write_bytes, write_json
from mfdiff_core.model import build_model
from mfdiff_platform.compare_bench import Bench, open_bench
from mfdiff_platform.compare_figures import write_figures
from mfdiff_platform.compare_plan import LABELS, PHANTOM, CompareScale, Comparison
from mfdiff_platform.compare_restoration import Restoration, filtered
from mfdiff_platform.compare_training import Trained
from mfdiff_platform.compare_workers import side_by_side
from mfdiff_platform.progress import task
from mfdiff_platform.run import Run
from mfdiff_platform.slice_parts import by_setting
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


def compare(
    workspace: Workspace,
    store: TrackingStore,
    comparison: Comparison,
    scale: CompareScale,
    *,
    data: Path | None = None,
    phantom: Path | None = None,
    concurrent: int | None = 1,
) -> Compared:
    """Carry out a comparison; what an earlier one has trained or restored is kept.

    Args:
        workspace: holds datasets, and ``comparisons`` with everything that is written.
        store: the table goes there too.
        comparison: rows and domain.
        scale: how much is trained.
        data, phantom: dataset folders instead of the workspace's.
        concurrent: chains of trainings at a time, each in a process of its own; 1 stays in this
            one, None takes as many as there are GPUs, or CPU cores.

    Raises:
        DataError: a dataset is missing or damaged, or has no such setting.
        ConfigError: slices and networks do not fit, or phantoms are missing.
        TrainingError: a training diverged.
        ResourceError: Ray does not start, or lost a worker again and again.
    """
    bench = open_bench(workspace, comparison, scale, data, phantom)
    bench.check()
    comparison, test = bench.comparison, bench.test
    folder = workspace.comparison(_name(comparison, scale))
    run = _open_run(store, folder.name, bench)
    with run.watched():
        restored, notes = filtered(bench.domain, test)
        costs: dict[str, Cost] = {}
        side_by_side(bench, concurrent)
        for method in comparison.methods:
            done, restored[method.label] = bench.carry_out(method)
            costs[method.label] = _cost(done, restored[method.label])
        with task("Writing table and figures", 1):
            table = _table(bench, restored, costs, notes)
            markdown = _write(folder, table, restored, test)
        _log(run, folder, table, markdown)
    run.finish("finished")
    return Compared(folder, table, markdown)


def _name(comparison: Comparison, scale: CompareScale) -> str:
    seed = f"-seed{scale.seed}" if scale.seed else ""
    return f"{comparison.name}-{scale.size}-{scale.recipe.iterations}{seed}"


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
    bench: Bench,
    restored: Mapping[str, Restoration],
    costs: Mapping[str, Cost],
    notes: Mapping[str, str],
) -> Table:
    """Every row in every setting."""
    comparison, seed = bench.comparison, bench.scale.seed
    rows = [
        TableRow(
            method=method,
            setting=setting,
            score=score_slices(done.x_s[places], part, seed=seed),
            cost=costs.get(method),
        )
        for setting, places, part in by_setting(bench.test)
        for method, done in restored.items()
    ]
    return Table(
        name=comparison.name,
        title=comparison.title,
        rows=rows,
        left_out=comparison.left_out,
        facts=_facts(bench) | dict(notes),
        seed=seed,
    )


def _facts(bench: Bench) -> dict[str, str]:
    """What was done, in the words of the table's foot."""
    scale, test, manifest = bench.scale, bench.test, bench.domain.manifest
    recipe, people = scale.recipe, {info.subject for info in test.infos}
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
        "losses": _losses(bench.comparison, scale.size),
        "code": f"mfdiff-platform {mfdiff_core.__version__}",
    }
    if bench.comparison.domain == PHANTOM or bench.phantom is None:
        return facts
    phantom = bench.phantom.manifest.fingerprint[:16]
    second = (
        f"{scale.adapt_iterations} iterations on {manifest.domain} at"
        f" {recipe.lr * scale.adapt_rate:g}, all its settings together"
    )
    return facts | {"external stage": f"phantoms {phantom}", "internal stage": second}


def _losses(comparison: Comparison, size: str) -> str:
    """What each system was trained to lower: the one thing that is not the same for all."""
    texts = {
        LABELS[method.system] + " (paper)" * method.as_in_paper: method.config(size).loss_text
        for method in comparison.methods
    }
    return "; ".join(f"{label}: {text}" for label, text in texts.items())


def _write(folder: Path, table: Table, restored: Mapping[str, Restoration], test: SliceSet) -> str:
    markdown = to_markdown(table)
    texts = {"md": markdown, "csv": to_csv(table), "tex": to_latex(table)}
    for ending, text in texts.items():
        write_bytes(folder / f"{TABLE}.{ending}", text.encode())
    write_json(folder / f"{TABLE}.json", to_values(table))
    write_figures(folder, table, {name: done.x_s for name, done in restored.items()}, test)
    return markdown


def _open_run(store: TrackingStore, name: str, bench: Bench) -> Run:
    comparison = bench.comparison
    tags = {
        "kind": "comparison",
        "domain": comparison.domain,
        "systems": ",".join(dict.fromkeys(method.system for method in comparison.methods)),
    }
    run = store.find_or_create(EXPERIMENT, f"compare/{name}", comparison.title, tags)
    run.log_config(flatten(bench.scale))
    manifest = bench.domain.manifest
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
