"""One MLflow run as plain values and files, and back into another store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mfdiff_platform.privacy import without_paths
from mfdiff_platform.run import Run, RunSpec
from mfdiff_platform.spool import Operation

if TYPE_CHECKING:
    from mfdiff_platform.tracking import TrackingStore

_KEPT_TAGS = ("mlflow.note.content", "mlflow.loggedImages")
"""Of MLflow's own tags; the others belong to the store they are in."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is logged to a run besides its artifacts.

    Attributes:
        key, name: how the platform and how people know it.
        parent: whether it is shown under the study's run.
        status, start_ms, end_ms: MLflow's status and times.
        tags, params: as they are.
        metrics: ``[step, value, time_ms]`` by metric.
        datasets: name, fingerprint and context of each dataset.
    """

    key: str
    name: str
    parent: bool
    status: str
    start_ms: int
    end_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, tuple[tuple[float, float, float], ...]] = field(default_factory=dict)
    datasets: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.status not in ("RUNNING", "FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"unknown {self.status=}")


def describe_run(
    store: TrackingStore, found: Any, folder: Path
) -> tuple[RunRecord, dict[str, Path]]:
    """What MLflow run ``found`` holds, and its artifacts by path, fetched to ``folder``."""
    from mfdiff_platform.tracking import KEY_TAG

    tags = dict(found.data.tags)
    record = RunRecord(
        key=tags[KEY_TAG],
        name=found.info.run_name or tags[KEY_TAG],
        parent="mlflow.parentRunId" in tags,
        status=found.info.status,
        start_ms=found.info.start_time,
        end_ms=found.info.end_time or found.info.start_time,
        tags={tag: without_paths(value) for tag, value in _travelling(tags).items()},
        params={name: without_paths(value) for name, value in found.data.params.items()},
        metrics={name: _history(store, found, name) for name in found.data.metrics},
        datasets=tuple(
            (
                used.dataset.name,
                json.loads(used.dataset.profile or "{}").get("fingerprint", ""),
                used.tags[0].value if used.tags else "",
            )
            for used in found.inputs.dataset_inputs
        ),
    )
    folder.mkdir(parents=True)
    if store.client.list_artifacts(found.info.run_id):
        store.client.download_artifacts(found.info.run_id, "", str(folder))
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return record, files


def restore_run(
    store: TrackingStore,
    experiment: str,
    record: RunRecord,
    parent: RunRecord | None,
    artifacts: Mapping[str, Path],
) -> Run:
    """Log ``record`` to the run of its key; what the run has already stays as it is."""
    from mfdiff_platform.tracking import KEY_TAG

    run = Run(store, _spec(experiment, record, parent))
    run.set_tags(_travelling(record.tags) | {KEY_TAG: record.key})
    run.log_config(record.params)
    for (step, time_ms), metrics in _by_step(record).items():
        values = {"metrics": metrics, "step": step, "time_ms": time_ms}
        store.submit(run.spec, Operation("metrics", values))
    for name, fingerprint, context in record.datasets:
        run.log_dataset(name, fingerprint, context)
    for name, path in artifacts.items():
        folder = PurePosixPath(name).parent.as_posix()
        run.log_file(path, "" if folder == "." else folder)
    ended = {
        "status": record.status,
        "state": record.tags.get("state", ""),
        "time_ms": record.end_ms,
    }
    store.submit(run.spec, Operation("status", ended))
    return run


def _spec(experiment: str, record: RunRecord, parent: RunRecord | None) -> RunSpec:
    return RunSpec(
        experiment=experiment,
        key=record.key,
        name=record.name,
        tags=_travelling(record.tags),
        start_ms=record.start_ms,
        parent=_spec(experiment, parent, None) if parent else None,
    )


def _travelling(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without MLflow's own; asked on arrival too, for anybody may write an archive."""
    return {
        tag: value
        for tag, value in tags.items()
        if not tag.startswith("mlflow.") or tag in _KEPT_TAGS
    }


def _history(
    store: TrackingStore, found: Any, metric: str
) -> tuple[tuple[float, float, float], ...]:
    points = store.client.get_metric_history(found.info.run_id, metric)
    return tuple((p.step, p.value, p.timestamp) for p in sorted(points, key=lambda p: p.step))


def _by_step(record: RunRecord) -> dict[tuple[int, int], dict[str, float]]:
    """Metrics of each call in the order of steps, so that none is left out as older."""
    rows = [
        (int(step), int(time_ms), metric, value)
        for metric, points in record.metrics.items()
        for step, value, time_ms in points
    ]
    calls: dict[tuple[int, int], dict[str, float]] = {}
    for step, time_ms, metric, value in sorted(rows):
        calls.setdefault((step, time_ms), {})[metric] = value
    return calls
