"""An MLflow client that gives up in seconds and says nothing on its own."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from mfdiff_platform.store_address import StoreAddress
from mfdiff_platform.store_database import ensure_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Our own patience replaces MLflow's minutes of silent retries; what the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def open_client(address: StoreAddress) -> MlflowClient:
    """A client of the store, which answers; a database is created or migrated first."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if address.database:
        ensure_database(address.database, address.uri)
    client = MlflowClient(address.uri, registry_uri=address.uri)
    client.search_experiments(max_results=1)
    return client
