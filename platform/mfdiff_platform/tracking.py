"""MLflow, explicitly: a store, its experiments, and runs that outlive a store out of reach.

The fluent global state of MLflow (active run, active experiment) is never used: parallel
workers would file their runs under the wrong experiment. A run is known by its experiment and a
key of ours, so the same trial finds the same run after any restart, and a run can be written to
(into the spool) before MLflow has heard of it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from mfdiff_core.errors import ConfigError, MfdiffError
from mfdiff_platform.code_state import code_fingerprint
from mfdiff_platform.durable import locked
from mfdiff_platform.errors import TrackingError
from mfdiff_platform.names import check_key, check_name
from mfdiff_platform.run import Run, RunSpec, clean_tags, now_ms
from mfdiff_platform.run_writer import RunWriter
from mfdiff_platform.spool import Operation, Spool
from mfdiff_platform.store_address import URI_VARIABLE, StoreAddress, within
from mfdiff_platform.store_client import open_client
from mfdiff_platform.ui import ui_command, ui_link

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

__all__ = ["Run", "TrackingError", "TrackingStore", "ui_command", "ui_link"]

KEY_TAG = "mfdiff.key"

_ANSWER_S = 8.0
_TURN = "mlflow.turn"
_STATE = ("workspace", "address", "spool", "_retry_after_s")
# The store understood the call and will never accept it; anything else may pass later.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}

_log = logging.getLogger(__name__)


class TrackingStore:
    """The MLflow store of a workspace; one object per process, cheap to pickle.

    Args:
        workspace: folder of the site; holds ``mlflow.db``, ``artifacts/`` and ``spool/``.
        uri: MLflow tracking URI; default is ``MLFLOW_TRACKING_URI``, else a database in the
            workspace.
        retry_after_s: pause before a store that was out of reach is tried again.

    Raises:
        TrackingError: the URI names a store that cannot be used.
    """

    def __init__(
        self, workspace: Path, uri: str | None = None, *, retry_after_s: float = 15.0
    ) -> None:
        self.workspace = Path(workspace).absolute()
        self.address = StoreAddress.find(self.workspace, uri)
        self.spool = Spool(self.workspace / "spool")
        self._retry_after_s = retry_after_s
        self._forget()

    def _forget(self) -> None:
        self._client: MlflowClient | None = None
        self._writers: dict[str, RunWriter] = {}
        self._experiments: dict[str, str] = {}
        self._resting_until = 0.0
        self._is_away = False
        self._one_at_a_time = RLock()  # the driver's event thread writes too
        self._has_turn = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in _STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def client(self) -> MlflowClient:
        """MLflow client of this store, opened on first use."""
        if self._client is None:
            self._client = open_client(self.address)
        return self._client

    def prepare(self) -> None:
        """Create or migrate the store and see that it answers; once, in the driver.

        Raises:
            TrackingError: it does not answer within seconds, or cannot be used.
        """
        self.knock()
        try:
            if self.address.database:
                self._client = open_client(self.address)
            else:
                self._client = within(_ANSWER_S, lambda: open_client(self.address))
        except MfdiffError:
            raise
        except Exception as fault:
            raise self._unusable(fault) from fault

    def knock(self) -> None:
        """See within a second that somebody listens, where the store is a server.

        Raises:
            TrackingError: nobody does.
        """
        try:
            self.address.knock()
        except OSError as fault:
            raise self._unusable(fault) from fault

    def _unusable(self, fault: Exception) -> TrackingError:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        return TrackingError(
            f"MLflow at {self.address.shown} cannot be used: {reason}. Start it, or set "
            f"{URI_VARIABLE} to another store, or unset it to use the workspace's own"
        )

    def require_server(self, num_nodes: int) -> None:
        """Refuse a database file when runs are written from several machines.

        Raises:
            TrackingError: more than one node and no server.
        """
        if num_nodes > 1 and self.address.database:
            raise TrackingError(
                f"{num_nodes} nodes cannot share the file {self.address.database}: start an "
                f"MLflow server on it and set {URI_VARIABLE} to the server's address"
            )

    # Experiments and runs

    def get_or_create_experiment(self, name: str) -> str:
        """Id of experiment ``name``; its artifacts go to an absolute place.

        Raises:
            ConfigError: ``name`` is not an allowed name.
        """
        check_name("experiment", name)
        if name not in self._experiments:
            self._experiments[name] = self._find_experiment(name) or self._new_experiment(name)
        return self._experiments[name]

    def _find_experiment(self, name: str) -> str | None:
        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id) if found else None

    def _new_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        place = None
        if not self.address.is_server:
            database = self.address.database
            folder = database.parent if database else self.workspace
            place = (folder / "artifacts" / name).as_uri()
        try:
            return str(self.client.create_experiment(name, artifact_location=place))
        except MlflowException:  # another process may have been faster
            found = self._find_experiment(name)
            if found is None:
                raise
            return found

    def create_run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, Any] | None = None,
        parent: Run | None = None,
    ) -> Run:
        """A run that nobody will look for by key."""
        return self.find_or_create(experiment, uuid.uuid4().hex, name, tags, parent)

    def find_or_create(
        self,
        experiment: str,
        key: str,
        name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: Run | None = None,
    ) -> Run:
        """The run with ``key`` in ``experiment``, set going again, or a new one.

        Args:
            experiment: name of the experiment, created if need be.
            key: names joined by ``/``, unique in the experiment, such as ``first-study/0003``.
            name: what people read; default is ``key``.
            tags: set whether the run is new or not, and with them which code writes to it.
            parent: run under which this one is shown.

        Raises:
            ConfigError: ``experiment`` or ``key`` holds characters that are not allowed.
        """
        if experiment.isdecimal():
            raise ConfigError(f"{experiment!r} looks like an experiment's id; give its name")
        spec = RunSpec(
            experiment=check_name("experiment", experiment),
            key=check_key(key),
            name=name or key,
            tags=clean_tags(tags or {}) | {"code": code_fingerprint()},
            start_ms=now_ms(),
            parent=parent.spec if parent else None,
        )
        run = Run(self, spec)
        run.reopen()
        run.set_tags(spec.tags)
        return run

    def find(self, experiment: str, key: str) -> MlflowRun | None:
        """The run with ``key`` as MLflow has it, untouched.

        Raises:
            TrackingError: MLflow is out of reach.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.address.knock()
            return self._find(experiment, key)
        except (MlflowException, OSError) as fault:
            raise TrackingError(
                f"MLflow at {self.address.shown} cannot be read: {fault}"
            ) from fault

    def _find(self, experiment: str, key: str) -> MlflowRun | None:
        found = self.client.search_runs(
            [self.get_or_create_experiment(experiment)],
            f"tags.`{KEY_TAG}` = '{check_key(key)}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return found[0] if found else None

    def run_id(self, spec: RunSpec) -> str:
        """MLflow's id of the run; the run is created when it is not there yet."""
        with self._one_at_a_time:
            return self._writer(spec).run_id

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep the other processes of this workspace from writing until the block is done.

        Processes that write to one SQLite file together wait for each other by polling, and the
        unlucky one gives up; here each takes its turn, in order.
        """
        if self._has_turn:
            yield
            return
        database = self.address.database
        folder = database.parent if database else self.spool.folder
        with locked(folder / _TURN):
            self._has_turn = True
            try:
                yield
            finally:
                self._has_turn = False

    def _writer(self, spec: RunSpec) -> RunWriter:
        if spec.slug not in self._writers:
            # Whoever flushes may deliver this run's calls at the same moment: one creates it.
            with self._turn():
                parent_id = self.run_id(spec.parent) if spec.parent else None
                found = self._find(spec.experiment, spec.key)
                run_id = found.info.run_id if found else self._new_run(spec, parent_id)
            self._writers[spec.slug] = RunWriter(self.client, run_id, is_new=found is None)
        return self._writers[spec.slug]

    def _new_run(self, spec: RunSpec, parent_id: str | None) -> str:
        tags = {**spec.tags, KEY_TAG: spec.key, "state": "running"}
        if parent_id:
            tags["mlflow.parentRunId"] = parent_id
        experiment_id = self.get_or_create_experiment(spec.experiment)
        made = self.client.create_run(experiment_id, spec.start_ms, tags, spec.name)
        return str(made.info.run_id)

    # Delivery

    def submit(self, spec: RunSpec, operation: Operation) -> None:
        """Deliver ``operation`` after all that waits for the same run, or let it wait too."""
        with self._one_at_a_time:
            if time.monotonic() >= self._resting_until and self._deliver_waiting(spec):
                try:
                    self._deliver(spec, operation)
                    return
                except Exception as fault:
                    self._rest(spec, fault)
            self.spool.append(spec.slug, spec.to_dict(), operation)

    def flush(self) -> int:
        """Try to deliver all that waits, of all runs; the number of calls still waiting."""
        with self._one_at_a_time:
            for name in self.spool.names():
                header = self.spool.header(name)  # None when another process was faster
                if header and not self._deliver_waiting(RunSpec.from_dict(header)):
                    break
        return self.spool.count()

    def _deliver_waiting(self, spec: RunSpec) -> bool:
        """Whether nothing waits any longer for this run."""
        if not self.spool.pending(spec.slug):
            return True
        try:
            delivered = self.spool.drain(spec.slug, lambda item: self._deliver(spec, item))
        except Exception as fault:
            self._rest(spec, fault)
            return False
        _log.info("%d calls of %s delivered that had waited", delivered, spec.name)
        return True

    def _deliver(self, spec: RunSpec, operation: Operation) -> None:
        from mlflow.exceptions import MlflowException

        self.address.knock()
        try:
            with self._turn() if self.address.database else nullcontext():
                self._writer(spec).apply(operation)
            self._is_away = False
        except MlflowException as fault:
            if fault.error_code not in _REFUSALS:
                raise
            _log.error("MLflow refuses a call of run %s for good: %s", spec.name, fault)
            self.spool.refuse(spec.slug, spec.to_dict(), operation, str(fault))

    def _rest(self, spec: RunSpec, fault: Exception) -> None:
        # What of the failed call arrived is unknown, so the run is looked up again.
        self._writers.pop(spec.slug, None)
        self._resting_until = time.monotonic() + self._retry_after_s
        level = logging.DEBUG if self._is_away else logging.WARNING  # once per outage
        self._is_away = True
        _log.log(level, "MLflow is out of reach, calls wait in %s: %s", self.spool.folder, fault)
