"""The SQLite file of a tracking store: created whole or not at all, migrated with a copy kept."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from mfdiff_core.files import atomic_path
from mfdiff_platform.durable import locked
from mfdiff_platform.errors import TrackingError


def ensure_database(database: Path, uri: str) -> None:
    """Create ``database``, or bring an older one up to date.

    Processes that do this together break the file for good, and so does a kill in the middle; so
    one does it at a time, and a new file appears only when it is complete.

    Raises:
        TrackingError: an older file could not be migrated; names the copy of it.
    """
    from mlflow import MlflowClient
    from mlflow.store.db.utils import _get_latest_schema_revision

    with locked(database.with_name(f"{database.name}.lock")):
        if not database.exists():
            with atomic_path(database) as temporary:
                MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        elif _revision(database) != _get_latest_schema_revision():
            _migrate(database, uri)


def _revision(database: Path) -> str | None:
    """Schema revision of the file, None when it has none."""
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
        if not connection.execute(query).fetchone():
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _migrate(database: Path, uri: str) -> None:
    backup = database.with_name(f"{database.name}.before-{_revision(database)}")
    if not backup.exists():
        with atomic_path(backup) as temporary:
            shutil.copyfile(database, temporary)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TrackingError(f"{database}: migration failed ({last}); the old file is {backup}")
