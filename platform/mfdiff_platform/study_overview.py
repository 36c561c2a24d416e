"""What stands in a study's folder, in a few words; asks neither Ray nor MLflow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mfdiff_core.errors import DataError
from mfdiff_platform.outcome import gain_over_paper, load_outcome
from mfdiff_platform.session import Session, last_session
from mfdiff_platform.study import RESULTS, Study, all_studies


@dataclass(frozen=True, kw_only=True)
class StudyOverview:
    """A study as one line.

    Attributes:
        name, domain, setting, parent: what it searches, and whose child it is.
        state: of its last command: ``running``, ``interrupted``, ``crashed``, ``failed`` or
            ``finished``; without one here, ``begun`` or, with a result, ``finished``.
        asked: trials it was asked for.
        trials: how many trials are in each state.
        best_trial, best: number of the best trial and its deciding metric on validation
            subjects; None before any has finished.
        gain_db: test PSNR of the best trial minus that of the paper's recipe.
    """

    name: str
    domain: str
    setting: str
    parent: str
    state: str
    asked: int
    trials: dict[str, int]
    best_trial: int | None
    best: float | None
    gain_db: float | None

    @property
    def ended(self) -> int:
        """Trials that need not run again."""
        return sum(count for state, count in self.trials.items() if state != "running")


def overview(study: Study) -> StudyOverview:
    """The study as it stands."""
    request, session = study.request, last_session(study)
    records = list(study.ledger)
    best = study.best() if any(record.state == "finished" for record in records) else None
    return StudyOverview(
        name=request.name,
        domain=request.domain,
        setting=request.setting,
        parent=request.parent,
        state=session.state if session else _state_alone(study),
        asked=_asked(study, session),
        trials=dict(Counter(record.state for record in records)),
        best_trial=best.number if best else None,
        best=best.metrics[study.objectives[0].metric] if best else None,
        gain_db=_gain(study),
    )


def overviews(studies: Path) -> list[StudyOverview]:
    """Every study of a workspace's folder of studies, by name."""
    return [overview(study) for study in all_studies(studies)]


def _state_alone(study: Study) -> str:
    """State of a study that was imported, or that only older versions worked on."""
    return "finished" if (study.folder / RESULTS).is_file() else "begun"


def _asked(study: Study, session: Session | None) -> int:
    return session.scale.trials if session else len(study.ledger)


def _gain(study: Study) -> float | None:
    if not (study.folder / RESULTS).is_file():
        return None
    try:
        return gain_over_paper(load_outcome(study))
    except DataError:
        return None
