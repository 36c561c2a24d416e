"""How a user gets to MLflow's pages: the command that serves them, and links that work."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mfdiff_core.errors import ConfigError

if TYPE_CHECKING:
    from mfdiff_platform.tracking import TrackingStore

UI_ADDRESS = "http://127.0.0.1:5000"


def ui_command(store: TrackingStore, address: str = UI_ADDRESS) -> str:
    """The command line that opens the MLflow UI of ``store``, on loopback only."""
    if store.address.is_server:
        return shlex.join([Path(sys.executable).name, "-m", "webbrowser", store.address.shown])
    host, port = address.removeprefix("http://").split(":")
    command = ["mlflow", "ui", "--app-name", "mfdiff"]
    command += ["--host", host, "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", store.address.shown]
    command += ["--artifacts-destination", str(store.workspace / "artifacts")]
    command += ["--allowed-hosts", f"{host}:{port},localhost:{port}"]
    command += ["--cors-allowed-origins", f"http://{host}:{port},http://localhost:{port}"]
    quiet = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    return f"env {quiet} {shlex.join(command)}"


def require_free(port: int) -> None:
    """See that nobody else listens there; MLflow would say so in a traceback.

    Raises:
        ConfigError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"port {port} is taken; give another: --port {port + 1}") from None


def ui_link(experiment_id: str, run_id: str = "", address: str = UI_ADDRESS, view: str = "") -> str:
    """Page of an experiment, or of one run, in the UI's view for models rather than chat.

    Args:
        experiment_id: which experiment.
        run_id: one run of it; "" for the table of all.
        address: where the server is.
        view: key of a shared view, see `experiment_view`.
    """
    page = f"runs/{run_id}" if run_id else "runs"
    shared = f"&viewStateShareKey={view}" if view else ""
    return f"{address}/#/experiments/{experiment_id}/{page}?workflowType=machine_learning{shared}"


def models_link(address: str = UI_ADDRESS) -> str:
    """Page of the registered site models."""
    return f"{address}/#/models?workflowType=machine_learning"
