"""Writes to one MLflow run, each of which may be repeated without effect.

A call whose answer got lost, or that was delivered just before a kill, is made again later. So
nothing here adds up: metrics at steps already there are left out, parameters that are set stay,
files and tags are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from mfdiff_platform.spool import Operation

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PARAMS_PER_CALL = 100
_METRICS_PER_CALL = 1000
_DIGEST_LENGTH = 36  # of an MLflow dataset
_NEVER = -1

T = TypeVar("T")


class RunWriter:
    """Applies operations to run ``run_id``; ``is_new`` says that nothing was logged to it yet."""

    def __init__(self, client: MlflowClient, run_id: str, *, is_new: bool) -> None:
        self.run_id = run_id
        self._client = client
        self._is_new = is_new
        self._last_step: dict[str, int] = {}

    def apply(self, operation: Operation) -> None:
        """Carry out ``operation``; any MLflow exception is passed on."""
        values = operation.values
        match operation.kind:
            case "params":
                self._params(values)
            case "metrics":
                self._metrics(**values)
            case "tags":
                self._tags(values)
            case "artifact":
                self._artifact(operation, **values)
            case "dataset":
                self._dataset(**values)
            case "status":
                self._status(**values)
            case unknown:
                raise AssertionError(f"unknown operation {unknown!r}")

    def _params(self, params: Mapping[str, str]) -> None:
        """Set parameters; MLflow never changes one, so a new value is told in a tag."""
        from mlflow.entities import Param

        there = self._client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in params.items() if name not in there]
        for chunk in _chunks(new, _PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=chunk)
        changed = [
            f"{name}: {there[name]} -> {value}"
            for name, value in params.items()
            if there.get(name, value) != value
        ]
        if changed:
            self._tags({"config_changed": "; ".join(changed)})

    def _metrics(self, metrics: Mapping[str, float], step: int, time_ms: int) -> None:
        from mlflow.entities import Metric

        due = {name: value for name, value in metrics.items() if step > self._last(name)}
        rows = [Metric(name, value, time_ms, step) for name, value in due.items()]
        for chunk in _chunks(rows, _METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=chunk)
        self._last_step |= dict.fromkeys(due, step)

    def _last(self, name: str) -> int:
        """Newest step of metric ``name`` in the store."""
        if name not in self._last_step:
            history = [] if self._is_new else self._client.get_metric_history(self.run_id, name)
            self._last_step[name] = max((metric.step for metric in history), default=_NEVER)
        return self._last_step[name]

    def _tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        rows = [RunTag(name, value) for name, value in tags.items()]
        for chunk in _chunks(rows, _PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, tags=chunk)

    def _artifact(self, operation: Operation, folder: str) -> None:
        assert operation.source is not None
        if operation.source.is_dir():
            self._client.log_artifacts(self.run_id, str(operation.source), folder)
        else:
            self._client.log_artifact(self.run_id, str(operation.source), folder or None)

    def _dataset(self, name: str, fingerprint: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=fingerprint[:_DIGEST_LENGTH],
            source_type="code",  # the one source without a path, which could name a patient
            source=json.dumps({"tags": {"fingerprint": fingerprint}}),
            profile=json.dumps({"fingerprint": fingerprint}),
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])

    def _status(self, status: str, state: str, time_ms: int) -> None:
        self._tags({"state": state})
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status, time_ms)


def _chunks(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
