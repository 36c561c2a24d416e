"""A study on disk: what was asked, what each trial did, and how the finalists fared on test data.

Everything a resumed or reported study needs is in its folder; MLflow and Ray may forget.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import read_json, write_json
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.ledger import Ledger, TrialRecord
from mfdiff_platform.search_space import SearchSpace, parse
from mfdiff_platform.suggestion import Observation, Suggestion

REQUEST, TRIALS, RESULTS, REPORT = "study.json", "trials", "results.json", "study.html"
PAPER_RECIPE = "two-stage (paper)"

SamplerName = Literal["tpe", "random"]
SchedulerName = Literal["asha", "none"]


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What a study searches; the number of trials may grow and is not part of it.

    Attributes:
        name: name of the study; the same name resumes.
        domain: domain of the dataset, names the site model.
        data, data_fingerprint: dataset folder and what it held when the study began.
        phantom: dataset of the external stage, for replay and single-stage training; may be "".
        pretrained, pretrained_sha256: bundle folder of the external stage and its weights' hash.
        setting: only slices of this setting, "" for all.
        space: the resolved search space as its YAML text.
        with_single_stage: run the mixed training of Table 7 among the references.
        seed: seed of the study.
        sampler, scheduler: how points are suggested, and which trials are stopped early.
        validations: how often a trial validates.
        precision: arithmetic of the network.
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
    validations: int = 5
    precision: Precision = "fp32"

    def references(self) -> dict[str, Recipe]:
        """The recipes every study runs first, by name."""
        return self.search_space().references(single_stage=self.with_single_stage)

    def search_space(self) -> SearchSpace:
        """The space, parsed."""
        return parse(self.space, "search space")


@dataclass(frozen=True)
class Study:
    """An opened study folder."""

    folder: Path
    request: StudyRequest

    @property
    def ledger(self) -> Ledger:
        """Its trials."""
        return Ledger(self.folder / TRIALS)

    def bundle_of(self, record: TrialRecord) -> Path:
        """Bundle folder of a finished trial."""
        return self.folder / record.bundle

    def best(self) -> TrialRecord:
        """Finished trial with the highest validation PSNR, the earliest of equals.

        Raises:
            DataError: no trial has finished.
        """
        finished = self.ledger.finished()
        if not finished:
            raise DataError(f"{self.folder}: no trial has finished")
        return max(finished, key=lambda record: (record.metrics["psnr"], -record.number))

    def pending(self) -> list[Suggestion]:
        """What must run before the search goes on: references, and trials cut short."""
        ledger = {record.number: record for record in self.ledger}
        waiting = [
            Suggestion(number, to_dict(recipe), name)
            for number, (name, recipe) in enumerate(self.request.references().items())
            if number not in ledger
        ]
        return waiting + [suggestion_of(r) for r in ledger.values() if r.state == "running"]

    def history(self) -> list[Observation]:
        """Search points that have ended, in order."""
        return [
            Observation(
                suggestion_of(record), record.state, record.metrics.get("psnr"), record.iterations
            )
            for record in self.ledger.ended()
        ]

    def unasked(self, trials: int) -> list[int]:
        """Numbers of the search points still to be suggested in a study of ``trials`` trials."""
        known = {record.number for record in self.ledger}
        return [n for n in range(len(self.request.references()), trials) if n not in known]


def suggestion_of(record: TrialRecord) -> Suggestion:
    """What a recorded trial was asked to do."""
    return Suggestion(number=record.number, **record.config)


def recorded(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a Tune config that goes into the ledger."""
    return {name: config[name] for name in ("recipe", "reference", "distributions")}


def claim_study(folder: Path, request: StudyRequest) -> Study:
    """Begin a study in ``folder``, or open it if it is the one that was begun there.

    Raises:
        ConfigError: the folder holds a study of other settings; names those that differ.
    """
    if not (folder / REQUEST).is_file():
        write_json(folder / REQUEST, to_dict(request))
        return Study(folder, request)
    begun = load_study(folder).request
    if begun != request:
        old, new = to_dict(begun), to_dict(request)
        odd = ", ".join(name for name in new if new[name] != old[name])
        raise ConfigError(
            f"study {request.name!r} was begun with another {odd}; give another --name, or the"
            f" same settings to resume it ({folder / REQUEST})"
        )
    return Study(folder, begun)


def load_study(folder: Path) -> Study:
    """Open a study folder.

    Raises:
        DataError: there is none.
    """
    if not (folder / REQUEST).is_file():
        raise DataError(f"{folder}: no study (no {REQUEST})")
    return Study(folder, from_dict(StudyRequest, read_json(folder / REQUEST), REQUEST))
