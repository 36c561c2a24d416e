"""A study in one file: its folder and its MLflow runs, for a site without a network.

What comes out at the other end is made of data alone. The report and the files with which MLflow
loads a model are made anew, aliases do not travel, and what gates said elsewhere is told but does
not count: a model passes the gates of the site that promotes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mfdiff_core.bundle import PROVENANCE
from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import atomic_path, read_json, write_json
from mfdiff_platform.archive import KINDS, Archive, read_archive, write_archive
from mfdiff_platform.known import KNOWN, load_known
from mfdiff_platform.model_files import WEIGHTS_TAG
from mfdiff_platform.names import check_key, check_name
from mfdiff_platform.outcome import load_outcome
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.repeats import REPEATS
from mfdiff_platform.report import write_report
from mfdiff_platform.run import Run
from mfdiff_platform.run_archive import RunRecord, describe_run, restore_run
from mfdiff_platform.site_model import CANDIDATE, PREFIX, SiteModel, arriving_tags, travelling_tags
from mfdiff_platform.study import REQUEST, RESULTS, TRIALS, StudyRequest, load_study
from mfdiff_platform.study_record import EXPERIMENT
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

KIND = "study"
_STUDY, _RUNS = "study", "runs"
_LEFT_BEHIND = ("site-model/",)
"""Artifacts made anew on arrival, because MLflow would load them as a model."""


@dataclass(frozen=True)
class Imported:
    """What arrived: the study's folder, its runs, its registered versions."""

    folder: Path
    runs: int
    models: tuple[str, ...]


class _Version(NamedTuple):
    """A registered version in an archive: its bundle below the trials, its tags, its card."""

    bundle: PurePosixPath
    tags: dict[str, str]
    description: str

    @property
    def trial(self) -> str:
        """Number of its trial, as in the trial's key."""
        return self.bundle.parts[0]


def export_study(workspace: Workspace, store: TrackingStore, name: str, out: Path) -> int:
    """Write study ``name`` with its runs to ``out``; returns the number of runs.

    Paths of this machine stay here: the study arrives without the place of its data.

    Raises:
        DataError: no such study.
        TrackingError: MLflow is out of reach.
    """
    folder = workspace.study(name)
    request = load_study(folder).request
    models = SiteModels(store)
    with TemporaryDirectory() as scratch:
        files = _study_files(folder, request, Path(scratch))
        records = []
        with models.asking():
            for found in _runs(store, name):
                place = Path(scratch) / found.info.run_id
                record, artifacts = describe_run(store, found, place)
                records.append(record)
                files |= {
                    f"{_RUNS}/{_slug(record)}/{file}": path
                    for file, path in _travelling(artifacts).items()
                    if path.suffix in KINDS
                }
        facts = {
            "study": name,
            "domain": request.domain,
            "runs": [to_dict(record) for record in records],
            "models": [_model_facts(model) for model in _registered(models, request)],
        }
        write_archive(out, KIND, facts, files)
    return len(records)


def import_study(workspace: Workspace, store: TrackingStore, path: Path) -> Imported:
    """Bring in what `export_study` wrote. The same file twice changes nothing.

    Raises:
        DataError: not such a file, or a damaged one; nothing of it is used.
        ConfigError: another study of this name is here.
        TrackingError: MLflow is out of reach.
    """
    with read_archive(path, KIND, workspace.root) as archive:
        name = check_name("study", str(archive.facts.get("study")))
        check_name("domain", str(archive.facts.get("domain")))
        records = _checked_records(archive, name, path)
        versions = _checked_versions(archive, records, path)
        folder = _place_study(workspace, archive, name, path)
        runs = {
            record.key: restore_run(
                store,
                EXPERIMENT,
                record,
                records[0] if record.parent else None,
                _travelling(archive.below(f"{_RUNS}/{_slug(record)}")),
            )
            for record in records
        }
        _report_again(folder, runs[name], path)
        made = _register(store, archive.facts["domain"], folder, versions)
    return Imported(folder, len(runs), made)


def _study_files(folder: Path, request: StudyRequest, scratch: Path) -> dict[str, Path]:
    """Files of a study's folder; without Ray's own, and with a request that names no path."""
    below = [path for name in (TRIALS, REPEATS) for path in (folder / name).rglob("*")]
    wanted = [folder / RESULTS, folder / KNOWN, *below]
    files = {
        f"{_STUDY}/{path.relative_to(folder).as_posix()}": path
        for path in sorted(wanted)
        if path.is_file() and path.suffix in KINDS and not path.name.startswith(".")
    }
    told = to_dict(request) | {"data": "", "pretrained": "", "phantom": ""}
    write_json(scratch / REQUEST, told)
    return {f"{_STUDY}/{REQUEST}": scratch / REQUEST, **files}


def _runs(store: TrackingStore, name: str) -> Iterator[Any]:
    """MLflow runs of the study: the parent, then the trials in order."""
    parent = store.find(EXPERIMENT, name)
    if parent is None:
        raise DataError(f"study {name!r} has no run in MLflow; resume it once, then export it")
    yield parent
    for record in sorted((store.workspace / "studies" / name / TRIALS).glob("*.json")):
        found = store.find(EXPERIMENT, f"{name}/{record.stem}")
        if found is not None:
            yield found


def _travelling(artifacts: Mapping[str, Path]) -> dict[str, Path]:
    """Artifacts less those made anew; asked on arrival too, for anybody may write an archive."""
    return {file: path for file, path in artifacts.items() if not file.startswith(_LEFT_BEHIND)}


def _slug(record: RunRecord) -> str:
    """Folder of a run's artifacts; no run's folder lies in another's."""
    return record.key.replace("/", "~")


def _registered(models: SiteModels, request: StudyRequest) -> list[SiteModel]:
    """Versions that came from the study, oldest first."""
    name = f"{PREFIX}{request.domain}"
    found = [m for m in models.list() if m.id.name == name and m.tags.get("study") == request.name]
    return sorted(found, key=lambda model: model.id.version)


def _model_facts(model: SiteModel) -> dict[str, Any]:
    return {
        "weights_sha256": model.tags.get(WEIGHTS_TAG, ""),
        "tags": travelling_tags(model),
        "description": model.description,
        "candidate": CANDIDATE in model.aliases,
    }


def _checked_records(archive: Archive, name: str, path: Path) -> list[RunRecord]:
    """Descriptions of the runs, parent first, all of this study."""
    try:
        records = [from_dict(RunRecord, values) for values in archive.facts["runs"]]
        for record in records:
            if check_key(record.key).split("/")[0] != name:
                raise DataError(f"{path}: run {record.key!r} belongs to another study")
    except (KeyError, TypeError, ConfigError) as fault:
        raise DataError(f"{path}: descriptions of the runs are not understood ({fault})") from None
    if not records or records[0].key != name or records[0].parent:
        raise DataError(f"{path}: the study's own run is missing")
    return records


def _place_study(workspace: Workspace, archive: Archive, name: str, path: Path) -> Path:
    """Put the study's folder where it belongs, unless it is there already."""
    files = archive.below(_STUDY)
    if REQUEST not in files:
        raise DataError(f"{path}: no {REQUEST} inside")
    request = _localised(workspace, read_json(files[REQUEST]), path)
    if request.name != name:
        raise DataError(f"{path}: {REQUEST} is of another study")
    folder = workspace.study(name)
    if folder.exists():
        _require_same(folder, files, path)
        return folder
    with atomic_path(folder) as temporary:
        for file, source in files.items():
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            (temporary / file).write_bytes(source.read_bytes())
        write_json(temporary / REQUEST, to_dict(request))
        load_known(temporary)
    return folder


def _localised(workspace: Workspace, values: Mapping[str, Any], path: Path) -> StudyRequest:
    """The request with the places where data of its domain would lie here."""
    try:
        request = from_dict(StudyRequest, values, REQUEST)
    except ConfigError as fault:
        raise DataError(f"{path}: {fault}") from None
    data = str(workspace.dataset(request.domain))
    return from_dict(StudyRequest, to_dict(request) | {"data": data})


def _require_same(folder: Path, files: Mapping[str, Path], path: Path) -> None:
    """Refuse to mix two studies of one name."""
    for file, source in files.items():
        here = folder / file
        same = here.is_file() and here.read_bytes() == source.read_bytes()
        if file.endswith(".json") and file != REQUEST and not same:
            raise ConfigError(
                f"{folder}: a study of this name is here, and its {file} differs from the one in "
                f"{path}; move it away first"
            )


def _report_again(folder: Path, run: Run, path: Path) -> None:
    """Make the study's page of its data, which cannot bring a script along."""
    if not (folder / RESULTS).is_file():
        return
    study = load_study(folder)
    try:
        run.log_file(write_report(study, load_outcome(study)), "report")
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        raise DataError(f"{path}: results of the study are not understood ({fault})") from None


def _checked_versions(archive: Archive, records: list[RunRecord], path: Path) -> list[_Version]:
    """Registered versions that came along; the one that was candidate comes last."""
    bundles = {
        read_json(file).get("sha256"): PurePosixPath(name).parent
        for name, file in archive.below(f"{_STUDY}/{TRIALS}").items()
        if PurePosixPath(name).name == PROVENANCE
    }
    keys = {record.key for record in records}
    try:
        described = sorted(archive.facts.get("models", []), key=lambda f: bool(f.get("candidate")))
        versions = [
            _Version(
                bundles.get(facts["weights_sha256"], PurePosixPath()),
                arriving_tags(facts["tags"]),
                str(facts["description"]),
            )
            for facts in described
        ]
    except (KeyError, TypeError, AttributeError) as fault:
        raise DataError(f"{path}: descriptions of versions are not understood ({fault})") from None
    for version in versions:
        if not version.bundle.name:
            raise DataError(f"{path}: weights of a registered version are missing")
        if f"{records[0].key}/{version.trial}" not in keys:
            raise DataError(f"{path}: the run of trial {version.trial} is missing")
    return versions


def _register(
    store: TrackingStore, domain: str, folder: Path, versions: list[_Version]
) -> tuple[str, ...]:
    models, made = SiteModels(store), []
    for version in versions:
        run = store.find(EXPERIMENT, f"{folder.name}/{version.trial}")
        assert run is not None, "it was restored a moment ago"
        bundle = folder / TRIALS / version.bundle
        new = models.register_candidate(
            domain, bundle, run.info.run_id, version.tags, version.description
        )
        made.append(str(new))
    return tuple(dict.fromkeys(made))
