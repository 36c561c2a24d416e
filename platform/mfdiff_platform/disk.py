"""What of a workspace may go when the disk fills up, most dispensable first.

Trials that were put to the test subjects, registered versions and whatever still runs stay,
whatever the quota says.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mfdiff_core.errors import DataError
from mfdiff_platform.ledger import TrialRecord
from mfdiff_platform.model_files import WEIGHTS_TAG
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.repeats import REPEATS
from mfdiff_platform.run import run_of
from mfdiff_platform.search import TUNE_STATE
from mfdiff_platform.session import last_session
from mfdiff_platform.study import FINALISTS, REQUEST, RESULTS, TRIALS, Study, load_study
from mfdiff_platform.study_record import EXPERIMENT, trial_key
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.trial import LATEST
from mfdiff_platform.workspace import Workspace

_ARTIFACT = "checkpoints"


@dataclass(frozen=True)
class Dispensable:
    """Something that may go.

    Attributes:
        path: file or folder.
        bytes: its size.
        why: why nobody will miss it.
        run_key: run whose checkpoint it is, "" for none; is told that it is gone.
    """

    path: Path
    bytes: int
    why: str
    run_key: str = ""


@dataclass(frozen=True)
class DiskPlan:
    """What a clean-up would do.

    Attributes:
        used: bytes of studies, artifacts and fetched models now.
        quota: bytes they may take.
        items: what goes, in order.
    """

    used: int
    quota: int
    items: tuple[Dispensable, ...]

    @property
    def freed(self) -> int:
        """Bytes that go."""
        return sum(item.bytes for item in self.items)

    @property
    def left(self) -> int:
        """Bytes in use afterwards."""
        return self.used - self.freed


def plan_clean_up(workspace: Workspace, store: TrackingStore, quota: int) -> DiskPlan:
    """Choose what goes: copies always, checkpoints of beaten trials only while above ``quota``.

    Raises:
        TrackingError: MLflow is out of reach.
    """
    used = sum(_size(workspace.root / name) for name in ("studies", "artifacts", "models"))
    items = list(_copies(workspace))
    left = used - sum(item.bytes for item in items)
    for item in sorted(_beaten(workspace, store), key=lambda pair: pair[0]):
        if left <= quota:
            break
        items.append(item[1])
        left -= item[1].bytes
    return DiskPlan(used, quota, tuple(items))


def clean_up(store: TrackingStore, plan: DiskPlan) -> None:
    """Carry out ``plan``; runs that lose a checkpoint say so in a tag."""
    for item in plan.items:
        shutil.rmtree(item.path, ignore_errors=True)
        if item.run_key:
            tags = {"checkpoint": "removed to keep the quota"}
            run_of(store, EXPERIMENT, item.run_key).set_tags(tags)


def _copies(workspace: Workspace) -> Iterator[Dispensable]:
    """What can be had again: Ray's own state, pictures that MLflow has, fetched models.

    Trainings with other seeds whose trial is no longer a finalist nobody will ask for either.
    """
    for study in _concluded(workspace):
        yield from _item(study.folder / TUNE_STATE, "Ray's state of a study that has ended")
        for record in study.ledger.ended():
            pictures = study.folder / TRIALS / f"{record.number:04d}" / "validations"
            yield from _item(pictures, "pictures that MLflow has")
        tested = _tested(study)
        for folder in sorted((study.folder / REPEATS).glob(f"*/{TRIALS}/*")):
            pictures = folder / "validations"
            if int(folder.name) in tested:
                yield from _item(pictures, "pictures of a training with another seed")
            else:
                yield from _item(folder, f"trial {int(folder.name)} with another seed, not tested")
    for folder in sorted((workspace.root / "models").glob("*/*")):
        yield from _item(folder, "copy of a registered model, fetched again when needed")


def _beaten(
    workspace: Workspace, store: TrackingStore
) -> Iterator[tuple[tuple[float, str], Dispensable]]:
    """Checkpoints of trials that were neither best nor reference, with the order they go in."""
    registered = {model.tags.get(WEIGHTS_TAG) for model in SiteModels(store).list()}
    for study in _concluded(workspace):
        best = study.best().metrics["psnr"]
        for record in study.ledger.finished():
            if not record.bundle or not _may_go(study, record, registered):
                continue
            key, behind = trial_key(study, record.number), record.metrics["psnr"] - best
            why = f"checkpoint of trial {record.number} of {study.request.name}, {behind:.2f} dB"
            bundle = study.bundle_of(record)
            places = [bundle, bundle.with_name(LATEST), _artifact(workspace, store, key)]
            for place in filter(None, places):
                for item in _item(place, f"{why} behind the best", key):
                    yield (behind, str(place)), item


def _may_go(study: Study, record: TrialRecord, registered: set[str | None]) -> bool:
    from mfdiff_core.bundle import load_bundle

    if record.number in _tested(study) or record.config["reference"]:
        return False
    try:
        return load_bundle(study.bundle_of(record)).provenance.sha256 not in registered
    except DataError:
        return False  # gone already, or damaged, which somebody should see


def _tested(study: Study) -> set[int]:
    """Numbers of the trials whose result on test subjects is the study's."""
    session = last_session(study)
    count = session.scale.finalists if session else FINALISTS
    return {record.number for record in study.finalists(count).values()}


def _concluded(workspace: Workspace) -> Iterator[Study]:
    """Studies with a result and nothing under way."""
    for path in sorted((workspace.root / "studies").glob(f"*/{REQUEST}")):
        study = load_study(path.parent)
        if (study.folder / RESULTS).is_file() and not study.ledger.in_state("running"):
            yield study


def _artifact(workspace: Workspace, store: TrackingStore, key: str) -> Path | None:
    """The checkpoints' folder among the artifacts, if they lie in this workspace."""
    found = store.find(EXPERIMENT, key)
    if found is None or not found.info.artifact_uri.startswith("file:"):
        return None
    folder = Path(unquote(urlsplit(found.info.artifact_uri).path)) / _ARTIFACT
    return folder if folder.resolve().is_relative_to(workspace.root.resolve()) else None


def _item(path: Path, why: str, run_key: str = "") -> Iterator[Dispensable]:
    if path.is_dir() and not path.is_symlink():
        yield Dispensable(path, _size(path), why, run_key)


def _size(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)
