"""One run in MLflow: what a study, a trial or a pretraining writes about itself."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from mfdiff_platform.privacy import without_paths
from mfdiff_platform.spool import Operation
from mfdiff_platform.store_address import within

if TYPE_CHECKING:
    from mfdiff_platform.tracking import TrackingStore

State = Literal["finished", "pruned", "failed", "interrupted"]

_STATUS: dict[State, str] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_LONGEST_PARAM = 500
_LONGEST_TAG = 5000
_LONGEST_REASON = 300
_THUMBNAIL_PIXELS = 256
_HURRY_S = 12.0
"""Patience once the command was interrupted; schedulers kill after 30 s."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What is needed to find a run again, or to create it later than it began."""

    experiment: str
    key: str
    name: str
    tags: dict[str, str]
    start_ms: int
    parent: RunSpec | None = None

    @property
    def slug(self) -> str:
        """Folder name of the run in the spool."""
        return sha256(f"{self.experiment}\n{self.key}".encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for the spool."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """Inverse of `to_dict`."""
        parent = cls.from_dict(values["parent"]) if values["parent"] else None
        return cls(**{**values, "parent": parent})


class Run:
    """A run of `TrackingStore`. Its calls never fail because MLflow does: they wait in the spool.

    One process writes to a run at a time. Steps of a metric only go up: a value at a step that
    the run already has is left out, so a training resumed from a checkpoint may log the steps
    since that checkpoint again.
    """

    def __init__(self, store: TrackingStore, spec: RunSpec) -> None:
        self.store = store
        self.spec = spec

    @property
    def run_id(self) -> str:
        """MLflow's id; asks the store, so it needs one that answers."""
        return self.store.run_id(self.spec)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log a flat config as parameters; a second time, changed values become a tag."""
        self._submit("params", {name: _param(value) for name, value in config.items()})

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, time_s: float | None = None
    ) -> None:
        """Log all ``metrics`` of ``step`` (0 or more) in one call.

        Args:
            metrics: values by name.
            step: when in the training.
            time_s: when, in seconds since 1970; default is now.
        """
        values = {name: float(value) for name, value in metrics.items()}
        time_ms = now_ms() if time_s is None else int(1000 * time_s)
        self._submit("metrics", {"metrics": values, "step": int(step), "time_ms": time_ms})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing those of the same name."""
        self._submit("tags", clean_tags(tags))

    def note(self, markdown: str) -> None:
        """Text at the top of the run's page."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file below artifact folder ``folder``."""
        self._log_artifact(Path(path), folder)

    def log_dir(self, path: Path, folder: str) -> None:
        """Log the content of a directory, such as a bundle, as artifact folder ``folder``."""
        self._log_artifact(Path(path), folder)

    def log_text(self, text: str, name: str) -> None:
        """Log ``text`` as artifact ``name``, a path such as ``tables/subjects.csv``."""
        self._log_bytes(text.encode(), name)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Log rows with equal keys as artifact ``name`` (``.json``); the UI shows a table."""
        columns = list(rows[0]) if rows else []
        data = [[row[column] for column in columns] for row in rows]
        self.log_text(json.dumps({"columns": columns, "data": data}), name)

    def log_image(self, png: bytes, name: str, step: int | None = None) -> None:
        """Log a PNG as ``images/<name>.png``, or with ``step`` as one frame of a picture series."""
        if step is None:
            self._log_bytes(png, f"images/{name}.png")
            return
        # MLflow's naming of a series. The id is derived, so a frame logged again replaces itself.
        frame_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.spec.slug}/{name}/{step}")
        stem = f"images/{name.replace('/', '~')}+step+{step}+timestamp+{step}+{frame_id}"
        self._log_bytes(png, f"{stem}.png")
        self._log_bytes(_thumbnail(png), f"{stem}+compressed.webp")
        self.set_tags({"mlflow.loggedImages": True})

    def log_dataset(self, name: str, fingerprint: str, context: str) -> None:
        """Note that dataset ``name`` was used as ``context`` (training, validation, testing)."""
        values = {"name": name, "fingerprint": fingerprint, "context": context}
        self._submit("dataset", values)

    def finish(self, state: State, reason: str = "") -> None:
        """End the run; tag ``state`` tells how, with the reason."""
        told = " ".join(f"{state}: {without_paths(reason)}".split()) if reason else state
        values = {"status": _STATUS[state], "state": told[:_LONGEST_REASON], "time_ms": now_ms()}
        self._submit("status", values)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Finish the run as failed or interrupted if the block does not come to its end.

        Where that cannot be noted, because the disk is full or, after an interruption, because a
        server takes too long to answer, it is still the block's fault that is raised.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            with suppress(OSError):
                within(_HURRY_S, lambda: self.finish("interrupted"))
            raise
        except Exception as fault:
            with suppress(OSError):
                self.finish("failed", str(fault))
            raise

    def reopen(self) -> None:
        """Set the run going again after a resume."""
        self._submit("status", {"status": "RUNNING", "state": "running", "time_ms": now_ms()})

    def _submit(self, kind: str, values: dict[str, Any], source: Path | None = None) -> None:
        self.store.submit(self.spec, Operation(kind, values, source))

    def _log_artifact(self, path: Path, folder: str) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ValueError(f"an artifact folder is a relative path without '..': {folder=}")
        self._submit("artifact", {"folder": folder}, path.absolute())

    def _log_bytes(self, data: bytes, name: str) -> None:
        with TemporaryDirectory() as scratch:
            target = Path(scratch) / Path(name).name
            target.write_bytes(data)
            folder = Path(name).parent.as_posix()
            self._log_artifact(target, "" if folder == "." else folder)


def run_of(store: TrackingStore, experiment: str, key: str, parent: Run | None = None) -> Run:
    """The run with ``key``, to add to it without setting it going again."""
    above = parent.spec if parent else None
    spec = RunSpec(
        experiment=experiment, key=key, name=key, tags={}, start_ms=now_ms(), parent=above
    )
    return Run(store, spec)


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them, cut, and without paths, which may name a patient."""
    return {name: without_paths(str(value))[:_LONGEST_TAG] for name, value in tags.items()}


def _param(value: Any) -> str:
    """Text of a parameter; of a long one the beginning, its length and a hash to tell it apart."""
    text = without_paths(str(value))
    if len(text) <= _LONGEST_PARAM:
        return text
    ending = f"... [{len(text)} characters, sha256 {sha256(text.encode()).hexdigest()[:12]}]"
    return text[: _LONGEST_PARAM - len(ending)] + ending


def _thumbnail(png: bytes) -> bytes:
    """Small WebP of a PNG, which the UI shows first."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        image.convert("RGB").save(small, "WEBP")
    return small.getvalue()
