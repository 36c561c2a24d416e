"""The durable record of a study: one small JSON file per trial, complete or not there.

What counts as done is what stands here. Ray and MLflow may forget or repeat; a resumed study
asks the ledger first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from mfdiff_core.errors import DataError
from mfdiff_core.files import read_json, write_json

TrialState = Literal["running", "failed", "pruned", "finished"]

STATES: tuple[TrialState, ...] = ("running", "failed", "pruned", "finished")
"""How far a trial got, from least to most."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What is kept of a trial.

    Attributes:
        number: position in the study, from 0.
        config: the recipe that was tried; scalars and lists.
        state: how far it got.
        metrics: final values by name, or the last ones of a pruned trial; may be NaN.
        reason: why it failed or was pruned.
        bundle: where its weights are, relative to the study; empty when there are none.
        seconds: time it took.
        iterations: training steps it did.
        crashes: sessions that died while it ran.
        curve: iterations and the deciding metric of each finite validation before the last.
    """

    number: int
    config: dict[str, Any]
    state: TrialState = "running"
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    bundle: str = ""
    seconds: float = 0.0
    iterations: int = 0
    crashes: int = 0
    curve: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"a trial's number is 0 or more: {self.number=}")
        if self.state not in STATES:
            raise ValueError(f"a trial's state is one of {', '.join(STATES)}: {self.state=}")

    @property
    def key(self) -> str:
        """Hash that two trials of the same config share."""
        return config_key(self.config)


class Ledger:
    """The trials of one study as files ``0000.json``, ``0001.json``, ... in ``folder``.

    One process writes; any number may read at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __len__(self) -> int:
        return len(self._paths())

    def __iter__(self) -> Iterator[TrialRecord]:
        """All trials by number.

        Raises:
            DataError: a file is damaged; names it.
        """
        return (_load(path) for path in self._paths())

    def __getitem__(self, number: int) -> TrialRecord:
        """Trial ``number``.

        Raises:
            DataError: there is no such trial, or its file is damaged.
        """
        return _load(self._path(number))

    def add(self, config: Mapping[str, Any], number: int | None = None) -> TrialRecord:
        """Record that a trial of ``config`` begins.

        Args:
            config: the recipe; JSON values.
            number: its number; default is the next free one.

        Raises:
            DataError: the number is taken.
        """
        if number is None:
            number = max((_number(path) for path in self._paths()), default=-1) + 1
        path = self._path(number)
        if path.exists():
            raise DataError(f"{path}: trial {number} is recorded already")
        record = TrialRecord(number=number, config=json.loads(json.dumps(config)))
        _save(path, record)
        return record

    def update(self, number: int, **changes: Any) -> TrialRecord:
        """Replace fields of trial ``number``, all at once.

        Raises:
            DataError: there is no such trial, or its file is damaged.
        """
        record = replace(self[number], **changes)
        _save(self._path(number), record)
        return record

    def in_state(self, *states: TrialState) -> list[TrialRecord]:
        """Trials in one of ``states``, by number."""
        return [record for record in self if record.state in states]

    def finished(self) -> list[TrialRecord]:
        """Trials that went to their end."""
        return self.in_state("finished")

    def ended(self) -> list[TrialRecord]:
        """Trials that need not run again: finished, pruned or failed."""
        return self.in_state("finished", "pruned", "failed")

    def find(self, config: Mapping[str, Any]) -> TrialRecord | None:
        """The trial of ``config`` that got furthest, the latest of equals; None if never tried."""
        key = config_key(config)
        tried = [record for record in self if record.key == key]
        return max(tried, key=lambda r: (STATES.index(r.state), r.number), default=None)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.json"

    def _paths(self) -> list[Path]:
        paths = [path for path in self.folder.glob("*.json") if path.stem.isdecimal()]
        return sorted(paths, key=_number)


def _number(path: Path) -> int:
    return int(path.stem)


def _save(path: Path, record: TrialRecord) -> None:
    values = asdict(record) | {"key": record.key}
    # JSON has no NaN or infinity; as text they come back through float().
    values["metrics"] = {
        name: float(value) if math.isfinite(value) else str(float(value))
        for name, value in record.metrics.items()
    }
    write_json(path, values)


def _load(path: Path) -> TrialRecord:
    values = read_json(path)
    try:
        key = values.pop("key")
        values["metrics"] = {name: float(value) for name, value in values["metrics"].items()}
        values["curve"] = tuple((int(s), float(v)) for s, v in values.get("curve", ()))
        record = TrialRecord(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise DataError(f"{path}: not a trial's record ({fault!r})") from None
    if record.number != _number(path) or record.key != key:
        raise DataError(f"{path}: number or config do not belong to this trial")
    return record


def config_key(config: Mapping[str, Any]) -> str:
    """Hash of a config, whatever the order of its keys; 1 and 1.0 are the same."""
    text = json.dumps(_canonical(config), sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _canonical(item) for key, item in value.items()}
        case list() | tuple():
            return [_canonical(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return value
