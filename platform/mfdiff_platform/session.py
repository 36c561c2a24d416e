"""A command at work on a study: one at a time, and how the last one ended.

A session that was interrupted wrote so; one that still claims to run while nobody holds the
study's lock has crashed. A trial that was running in several crashed sessions is suspected to be
their cause and not tried again.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mfdiff_core.errors import ConfigError
from mfdiff_core.files import read_json, write_json
from mfdiff_platform.progress import say
from mfdiff_platform.study import FINALISTS, Study

SESSION, LOCK = "session.json", "session.lock"
MOST_CRASHES = 5
"""A trial that ran in as many crashed sessions counts as failed."""

SessionState = Literal["running", "interrupted", "failed", "finished", "crashed"]


@dataclass(frozen=True, kw_only=True)
class SearchScale:
    """How much of the cluster a search uses, and when it gives up; no trial's result depends on it.

    Attributes:
        trials: trials in all, the references included; with ``grow`` as many more.
        grow: add ``trials`` to what the study has.
        gpus_per_trial: GPU share of a trial, or as many GPUs; 0 trains on the CPU.
        concurrent: trials at a time; None = as many as fit.
        trial_timeout_s: longest time of a trial; None derives it from the slowest reference.
        max_failures: failed trials after which no new one begins; None = any number.
        seeds: trainings of each finalist, with as many seeds.
        finalists: best trials that are put to the test subjects beside the references.
    """

    trials: int
    grow: bool = False
    gpus_per_trial: float = 0.0
    concurrent: int | None = None
    trial_timeout_s: float | None = None
    max_failures: int | None = None
    seeds: int = 1
    finalists: int = FINALISTS

    def __post_init__(self) -> None:
        gpus = self.gpus_per_trial
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"a trial takes a share of a GPU or whole ones, got {gpus=}")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials=}")
        for name in ("seeds", "finalists"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Session:
    """The last command on a study."""

    state: SessionState
    scale: SearchScale
    host: str = ""
    pid: int = 0


def last_session(study: Study) -> Session | None:
    """The last session; ``crashed`` is one that died without a word."""
    return _read(study, held=is_held(study))


def _read(study: Study, *, held: bool) -> Session | None:
    path = study.folder / SESSION
    if not path.is_file():
        return None
    values: dict[str, Any] = read_json(path)
    session = Session(**{**values, "scale": SearchScale(**values["scale"])})
    crashed = session.state == "running" and not held
    return replace(session, state="crashed") if crashed else session


def is_held(study: Study) -> bool:
    """Whether a command is at work on the study."""
    if not (study.folder / LOCK).is_file():
        return False
    with (study.folder / LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def session(study: Study, scale: SearchScale) -> Iterator[SearchScale]:
    """Work on a study in the block; yields ``scale`` with its number of trials settled.

    Raises:
        ConfigError: another command is at work on it.
    """
    with _alone(study):
        earlier = _read(study, held=False)
        if earlier and earlier.state == "crashed":
            _blame_crash(study)
        settled = _settle(study, scale, earlier)
        state: SessionState = "failed"
        _note(study, "running", settled)
        try:
            yield settled
            state = "finished"
        except (KeyboardInterrupt, SystemExit):
            state = "interrupted"
            raise
        finally:
            _note(study, state, settled)


@contextmanager
def _alone(study: Study) -> Iterator[None]:
    with (study.folder / LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another command is at work on study {study.request.name!r};"
                " wait for it, or stop it first"
            ) from None
        yield


def _note(study: Study, state: SessionState, scale: SearchScale) -> None:
    noted = Session(state=state, scale=scale, host=socket.gethostname(), pid=os.getpid())
    write_json(study.folder / SESSION, asdict(noted))


def _settle(study: Study, scale: SearchScale, earlier: Session | None) -> SearchScale:
    """Turn ``+20`` into a total; growth that was not finished is finished, not grown again.

    Finalists that were tested and repeated stay so, lest the test subjects be looked at once more
    for less.
    """
    if earlier:
        seeds = max(scale.seeds, earlier.scale.seeds)
        finalists = max(scale.finalists, earlier.scale.finalists)
        scale = replace(scale, seeds=seeds, finalists=finalists)
    if not scale.grow:
        return scale
    asked = max((record.number + 1 for record in study.ledger), default=len(study.first()))
    if earlier is None:
        return replace(scale, trials=asked + scale.trials, grow=False)
    if earlier.state == "finished":
        return replace(scale, trials=max(asked, earlier.scale.trials) + scale.trials, grow=False)
    say(f"The last command was to reach {earlier.scale.trials} trials; this one goes on with that.")
    return replace(scale, trials=earlier.scale.trials, grow=False)


def _blame_crash(study: Study) -> None:
    """Count a crash against the trials that were running, and say what becomes of them."""
    again = []
    for record in study.ledger.in_state("running"):
        crashes = record.crashes + 1
        if crashes >= MOST_CRASHES:
            reason = f"was running in {crashes} sessions that crashed"
            study.ledger.update(record.number, state="failed", reason=reason, crashes=crashes)
            say(f"trial {record.number} {reason}; it is not tried again", mark="[red]✗[/] ")
        else:
            study.ledger.update(record.number, crashes=crashes)
            again.append(str(record.number))
    what = f"; trials cut short begin again: {', '.join(again)}" if again else ""
    say(f"The last command on study {study.request.name!r} died{what}.")
