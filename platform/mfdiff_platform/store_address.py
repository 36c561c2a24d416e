"""Where an MLflow store is, and whether anybody answers there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mfdiff_platform.errors import TrackingError

URI_VARIABLE = "MLFLOW_TRACKING_URI"

_SQLITE = "sqlite:///"
_BUSY_TIMEOUT_S = 60
_CONNECT_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class StoreAddress:
    """A tracking URI that this platform can use, absolute, with a patient SQLite timeout."""

    uri: str

    @classmethod
    def find(cls, workspace: Path, uri: str | None = None) -> StoreAddress:
        """``uri``, else the environment's, else a database in ``workspace``.

        Raises:
            TrackingError: the URI names a folder or memory, which cannot be a store.
        """
        text = uri or os.environ.get(URI_VARIABLE) or f"{_SQLITE}{workspace / 'mlflow.db'}"
        if not text.startswith("sqlite:"):
            if urlsplit(text).scheme in ("", "file"):
                raise TrackingError(
                    f"MLflow has given up stores in folders ({text}); set {URI_VARIABLE} to a "
                    f"server or to {_SQLITE}FILE, or unset it"
                )
            return cls(text)
        path, _, options = text.removeprefix(_SQLITE).partition("?")
        if not text.startswith(_SQLITE) or path in ("", ":memory:"):
            raise TrackingError(f"{text}: a database in memory forgets; use {_SQLITE}FILE")
        if "timeout=" not in options:
            options = "&".join(filter(None, [options, f"timeout={_BUSY_TIMEOUT_S}"]))
        return cls(f"{_SQLITE}{Path(path).absolute()}?{options}")

    @property
    def database(self) -> Path | None:
        """The SQLite file, if the store is one."""
        if not self.uri.startswith(_SQLITE):
            return None
        return Path(self.uri.removeprefix(_SQLITE).partition("?")[0])

    @property
    def is_server(self) -> bool:
        """Whether the store is an MLflow server, which keeps the artifacts too."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The URI without user name and password, for messages."""
        user, at, _ = urlsplit(self.uri).netloc.rpartition("@")
        return self.uri.replace(user + at, "", 1)

    def knock(self) -> None:
        """Raise OSError within a second when no server listens; MLflow would try for long."""
        parts = urlsplit(self.uri)
        if not self.is_server or not parts.hostname:
            return
        if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
            return
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()


def within(seconds: float, work: Callable[[], T]) -> T:
    """Result of ``work()``, which runs in a thread that is left behind when it takes longer.

    Raises:
        TimeoutError: no result after ``seconds``.
    """
    results: list[T] = []
    faults: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as fault:
            faults.append(fault)

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if faults:
        raise faults[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
