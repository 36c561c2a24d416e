"""Tracking calls that could not be delivered, kept on disk until they can be.

One folder per run::

    spool/<run>/queue.jsonl     first line: which run; then one line per call, in order
    spool/<run>/files/          copies of the artifacts those calls carry
    spool/<run>/refused.jsonl   calls that the store will never accept, and why
    spool/<run>/lock            held by whoever appends or delivers

A call leaves the queue only after it was delivered. A process that dies while it delivers makes
the next one deliver some calls again, so every call must be one that may be repeated.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mfdiff_core.files import atomic_path, write_bytes
from mfdiff_platform.durable import append_text, cut_torn_line, locked


class Operation(NamedTuple):
    """One tracking call: its kind, its plain values, and the file or folder it carries."""

    kind: str
    values: dict[str, Any]
    source: Path | None = None


class Spool:
    """The undelivered calls of all runs of a workspace, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Runs that have calls waiting."""
        return sorted(queue.parent.name for queue in self.folder.glob("*/queue.jsonl"))

    def pending(self, name: str) -> bool:
        """Whether run ``name`` has calls waiting."""
        return self._queue(name).exists()

    def count(self) -> int:
        """How many calls wait, over all runs."""
        return sum(max(len(self._read(name)) - 1, 0) for name in self.names())

    def header(self, name: str) -> dict[str, Any] | None:
        """Description of run ``name`` as given to its first `append`; None if nothing waits."""
        lines = self._read(name)
        header: dict[str, Any] | None = json.loads(lines[0]) if lines else None
        return header

    def append(self, name: str, header: dict[str, Any], operation: Operation) -> None:
        """Queue ``operation`` of run ``name``, with a copy of the file it carries."""
        with locked(self.folder / name / "lock"):
            queue = self._queue(name)
            cut_torn_line(queue)
            known = queue.exists() and queue.stat().st_size > 0
            lines = [] if known else [json.dumps(header)]
            lines.append(json.dumps(self._record(name, "files", operation)))
            append_text(queue, "".join(f"{line}\n" for line in lines))

    def drain(self, name: str, deliver: Callable[[Operation], None]) -> int:
        """Hand every waiting call of run ``name`` to ``deliver``, oldest first.

        Stops at the first exception, which is passed on; what was delivered until then has left
        the queue. ``deliver`` must not append to or drain the same run.

        Returns:
            Number of calls delivered.
        """
        with locked(self.folder / name / "lock"):
            lines = self._read(name)
            records = [json.loads(line) for line in lines[1:]]
            done = 0
            try:
                for record in records:
                    deliver(self._operation(name, record))
                    done += 1
            finally:
                self._shorten(name, lines[:1], lines[1 + done :])
                for record in records[:done]:
                    self._drop_file(name, record)
        return done

    def refuse(self, name: str, header: dict[str, Any], operation: Operation, why: str) -> None:
        """Set aside a call that the store will never accept, so that it blocks no other."""
        record = self._record(name, "refused", operation) | {"run": header, "why": why}
        append_text(self.folder / name / "refused.jsonl", json.dumps(record) + "\n")

    def _queue(self, name: str) -> Path:
        return self.folder / name / "queue.jsonl"

    def _read(self, name: str) -> list[str]:
        """Complete lines of the queue; a line cut short by a kill never counted as kept."""
        try:
            text = self._queue(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return text.split("\n")[:-1]

    def _shorten(self, name: str, header: list[str], waiting: list[str]) -> None:
        if waiting:
            write_bytes(self._queue(name), "".join(f"{x}\n" for x in header + waiting).encode())
        else:
            self._queue(name).unlink(missing_ok=True)

    def _record(self, name: str, shelf: str, operation: Operation) -> dict[str, Any]:
        """JSON form of ``operation``; its file is copied to ``shelf`` first."""
        record: dict[str, Any] = {"kind": operation.kind, "values": operation.values}
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        if operation.source is not None:
            relative = Path(shelf) / uuid.uuid4().hex / operation.source.name
            _copy(operation.source, self.folder / name / relative)
            record["file"] = relative.as_posix()
        return record

    def _operation(self, name: str, record: dict[str, Any]) -> Operation:
        source = self.folder / name / record["file"] if "file" in record else None
        return Operation(record["kind"], record["values"], source)

    def _drop_file(self, name: str, record: dict[str, Any]) -> None:
        if "file" in record:
            shutil.rmtree((self.folder / name / record["file"]).parent, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary)
        else:
            shutil.copyfile(source, temporary)
