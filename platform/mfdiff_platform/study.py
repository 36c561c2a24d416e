"""A study on disk: what was asked, what each trial did, and how the finalists fared on test data.

Everything a resumed or reported study needs is in its folder; MLflow and Ray may forget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import read_json, write_json
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.known import Known, load_known, take_over
from mfdiff_platform.ledger import Ledger, TrialRecord
from mfdiff_platform.names import check_name
from mfdiff_platform.objective import Objective, pareto, read_objectives
from mfdiff_platform.search_space import SearchSpace, parse
from mfdiff_platform.suggestion import Observation, Suggestion

REQUEST, TRIALS, RESULTS, REPORT = "study.json", "trials", "results.json", "study.html"
PAPER_RECIPE, BEST_TRIAL = "two-stage (paper)", "best trial"
FINALISTS = 3
"""Trials of a search that test subjects are opened for unless more are asked for."""

SamplerName = Literal["tpe", "random", "grid"]
SchedulerName = Literal["asha", "none"]

_PLACES = ("data", "phantom", "pretrained")


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What a study searches; the number of trials may grow and is not part of it.

    Attributes:
        name: name of the study; the same name resumes.
        domain: domain of the dataset, names the site model.
        data, data_fingerprint: dataset folder and what it held when the study began.
        phantom, phantom_fingerprint: dataset of the external stage, for replay and single-stage
            training, and what it held; may be "".
        pretrained, pretrained_sha256: bundle folder of the external stage and its weights' hash.
        setting: only slices of this setting, "" for all.
        space: the resolved search space as its YAML text.
        with_single_stage: run the mixed training of Table 7 among the references.
        seed: seed of the study.
        sampler, scheduler: how points are suggested, and which trials are stopped early.
        validations: how often a trial validates.
        validation_slices: at most so many of each setting, evenly spread; None takes all.
        precision: arithmetic of the network.
        metrics, modes: what is optimised; trials are judged and stopped by the first.
        parent: study with another space, of which this one is the child.
        warm_start: study whose best points are tried first.
    """

    name: str
    domain: str
    data: str
    data_fingerprint: str
    phantom: str
    pretrained: str
    pretrained_sha256: str
    setting: str
    space: str
    with_single_stage: bool = False
    seed: int = 0
    sampler: SamplerName = "tpe"
    scheduler: SchedulerName = "asha"
    validations: int = 9
    validation_slices: int | None = None
    precision: Precision = "fp32"
    phantom_fingerprint: str = ""
    metrics: tuple[str, ...] = ("psnr",)
    modes: tuple[str, ...] = ()
    parent: str = ""
    warm_start: str = ""

    def references(self) -> dict[str, Recipe]:
        """The recipes every study runs first, by name."""
        return self.search_space().references(single_stage=self.with_single_stage)

    def search_space(self) -> SearchSpace:
        """The space, parsed."""
        return parse(self.space, "search space")

    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised, the deciding objective first."""
        return read_objectives(self.metrics, self.modes)


@dataclass(frozen=True)
class Study:
    """An opened study folder."""

    folder: Path
    request: StudyRequest

    @property
    def ledger(self) -> Ledger:
        """Its trials."""
        return Ledger(self.folder / TRIALS)

    @cached_property
    def known(self) -> Known:
        """What it took over from another study."""
        return load_known(self.folder)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised, the deciding objective first."""
        return self.request.objectives()

    def bundle_of(self, record: TrialRecord) -> Path:
        """Bundle folder of a finished trial."""
        return self.folder / record.bundle

    def best(self) -> TrialRecord:
        """Finished trial with the best validation, the earliest of equals.

        Raises:
            DataError: no trial has finished.
        """
        finished = self.ledger.finished()
        if not finished:
            raise DataError(f"{self.folder}: no trial has finished")
        score = self.objectives[0].score
        return max(finished, key=lambda record: (score(record.metrics), -record.number))

    def finalists(self, count: int = FINALISTS) -> dict[str, TrialRecord]:
        """What test subjects are for: references, runners-up, and last the best trial.

        Args:
            count: trials of the search among them, the best included; validation chooses them.
        """
        finished, best = self.ledger.finished(), self.best()
        references = {r.config["reference"]: r for r in finished if r.config["reference"]}
        score = self.objectives[0].score
        points = [r for r in finished if not r.config["reference"] and r.number != best.number]
        points.sort(key=lambda record: (-score(record.metrics), record.number))
        runners_up = {f"trial {record.number}": record for record in points[: count - 1]}
        return references | runners_up | {BEST_TRIAL: best}

    def pareto(self) -> list[TrialRecord]:
        """Finished trials that no other beats in one objective without losing in another."""
        finished = {record.number: record for record in self.ledger.finished()}
        metrics = {number: record.metrics for number, record in finished.items()}
        return [finished[number] for number in pareto(metrics, self.objectives)]

    def first(self) -> list[Suggestion]:
        """What runs before the search: references, then points to try first."""
        references = enumerate(self.request.references().items())
        fixed = [Suggestion(number, to_dict(recipe), name) for number, (name, recipe) in references]
        points = enumerate(self.known.points, start=len(fixed))
        return fixed + [replace(point, number=number) for number, point in points]

    def pending(self) -> list[Suggestion]:
        """What must run before the search goes on: references, and trials cut short; in order.

        What is stopped depends on what ran before, so a resumed study keeps the order.
        """
        ledger = {record.number: record for record in self.ledger}
        waiting = [suggestion for suggestion in self.first() if suggestion.number not in ledger]
        cut = [suggestion_of(r) for r in ledger.values() if r.state == "running"]
        return sorted(waiting + cut, key=lambda suggestion: suggestion.number)

    def history(self) -> list[Observation]:
        """Search points that have ended, in order, those taken over first."""
        return [*self.known.observations, *map(self._observed, self.ledger.ended())]

    def _observed(self, record: TrialRecord) -> Observation:
        values = [record.metrics.get(aim.metric) for aim in self.objectives]
        if values[0] is not None and len(values) == 1 and record.state == "pruned":
            values[0] = self.objectives[0].best((values[0], *(v for _, v in record.curve)))
        others = tuple(value for value in values[1:] if value is not None)
        return Observation(
            suggestion_of(record), record.state, values[0], record.iterations, others
        )

    def unasked(self, trials: int) -> list[int]:
        """Numbers of the search points still to be suggested in a study of ``trials`` trials."""
        known = {record.number for record in self.ledger}
        return [n for n in range(len(self.first()), trials) if n not in known]


def suggestion_of(record: TrialRecord) -> Suggestion:
    """What a recorded trial was asked to do."""
    return Suggestion(number=record.number, **record.config)


def recorded(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a Tune config that goes into the ledger."""
    return {name: config[name] for name in ("recipe", "reference", "distributions")}


def claim_study(folder: Path, request: StudyRequest, known: Known | None = None) -> Study:
    """Begin a study in ``folder``, or open it if it is the one that was begun there.

    Where only the search space has changed, the study gets a child beside it, ``<name>-2`` and so
    on, which knows all results of the studies before it.

    Args:
        folder: the study's own; its name is the study's.
        request: what is asked for now.
        known: what a study that begins is given.

    Raises:
        ConfigError: the folder holds a study of other settings; names those that differ.
    """
    if not (folder / REQUEST).is_file():
        return _begin(folder, request, known or Known())
    begun = load_study(folder)
    odd = _differences(begun.request, request)
    if not odd:
        return begun
    if odd == ["space"]:
        return _claim_child(begun, request)
    raise ConfigError(
        f"study {request.name!r} was begun with another {', '.join(odd)}; give another --name, or"
        f" the same settings to resume it ({folder / REQUEST})"
    )


def _claim_child(begun: Study, request: StudyRequest) -> Study:
    """The child of ``begun`` with this space, made if it is not there yet."""
    parent = begun
    for place in count(2):
        name = check_name("study", f"{request.name}-{place}")
        folder = begun.folder.with_name(name)
        child = replace(request, name=name, parent=parent.request.name)
        if not (folder / REQUEST).is_file():
            return _begin(folder, child, take_over(parent, child.search_space()))
        found = load_study(folder)
        if not _differences(found.request, child):
            return found
        if found.request.parent == parent.request.name:
            parent = found
    raise AssertionError("count does not end")


def _differences(old: StudyRequest, new: StudyRequest) -> list[str]:
    """Names of the settings that differ, apart from what a study is called."""
    before, after = to_dict(old), to_dict(new)
    return [n for n in after if n not in ("name", "parent") and after[n] != before[n]]


def _begin(folder: Path, request: StudyRequest, known: Known) -> Study:
    if known != Known():
        known.save(folder)
    values = to_dict(request)
    root = _root(folder)
    for name in _PLACES:
        if values[name] and Path(values[name]).is_relative_to(root):
            values[name] = Path(values[name]).relative_to(root).as_posix()
    write_json(folder / REQUEST, values)
    return Study(folder, request)


def load_study(folder: Path) -> Study:
    """Open a study folder.

    Raises:
        DataError: there is none.
    """
    if not (folder / REQUEST).is_file():
        raise DataError(f"{folder}: no study (no {REQUEST})")
    values = read_json(folder / REQUEST)
    for name in _PLACES:
        if values.get(name):
            values[name] = str(_root(folder) / values[name])
    return Study(folder, from_dict(StudyRequest, values, REQUEST))


def all_studies(studies: Path) -> Iterator[Study]:
    """Every study below the workspace's folder of studies, by name."""
    for path in sorted(studies.glob(f"*/{REQUEST}")):
        yield load_study(path.parent)


def _root(folder: Path) -> Path:
    """The workspace, which a study's paths are relative to: it may move as a whole."""
    return folder.absolute().parents[1]
