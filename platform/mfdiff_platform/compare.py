"""Comparisons: train what is missing, restore the test subjects, write tables and figures.

Trainings and restorations are found again by fingerprint, so a comparison that was stopped goes
on, and tables that share a model train it once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mfdiff_core.config import flatten, to_dict
from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.evaluation.scores import score_slices
from mfdiff_core.evaluation.table_files import to_csv, to_latex, to_values
from mfdiff_core.evaluation.tables import Cost, Table, TableRow, to_markdown
from mfdiff_core.files import sha256_text, write_bytes, write_json
from mfdiff_core.model import build_model
from mfdiff_platform.compare_bench import Bench, open_bench
from mfdiff_platform.compare_facts import facts
from mfdiff_platform.compare_figures import write_figures
from mfdiff_platform.compare_plan import CompareScale, Comparison
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
        DataError: a dataset is missing or damaged, has no such setting, or the external stage
            trains on test subjects.
        ConfigError: slices and networks do not fit, or phantoms are missing.
        TrainingError: a training diverged.
        ResourceError: Ray does not start, or lost a worker again and again.
    """
    bench = open_bench(workspace, comparison, scale, data, phantom)
    bench.check()
    comparison, test = bench.comparison, bench.test
    folder = workspace.comparison(_name(bench))
    run = _open_run(store, folder.name, bench)
    with run.watched():
        restored, notes = filtered(bench.domain, test)
        done: dict[str, Trained] = {}
        side_by_side(bench, concurrent)
        for method in comparison.methods:
            done[method.label], restored[method.label] = bench.carry_out(method)
        with task("Writing table and figures", 1):
            table = _table(bench, done, restored, notes)
            markdown = _write(folder, table, restored, test)
        _log(run, folder, table, markdown)
    run.finish("finished")
    return Compared(folder, table, markdown)


def _name(bench: Bench) -> str:
    """Of the folder: another scale, other rows, data or test subjects have another."""
    comparison, scale = bench.comparison, bench.scale
    rows = [
        [row.label, bench.arm(row).fingerprint, to_dict(row.restoring(scale.size))]
        for row in comparison.methods
    ]
    tested = [bench.domain.manifest.fingerprint, *(info.key for info in bench.test.infos)]
    digest = sha256_text(json.dumps([to_dict(scale), rows, tested], sort_keys=True))
    return f"{comparison.name}-{scale.size}-{scale.recipe.iterations}-{digest[:6]}"


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
    trained: Mapping[str, Trained],
    restored: Mapping[str, Restoration],
    notes: Mapping[str, str],
) -> Table:
    """Every row in every setting."""
    comparison, seed = bench.comparison, bench.scale.seed
    costs = {label: _cost(done, restored[label]) for label, done in trained.items()}
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
        facts=facts(bench, trained, restored) | dict(notes),
        seed=seed,
    )


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
