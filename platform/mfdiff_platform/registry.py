"""Site models: bundles registered in MLflow as versions of ``mfdiff-<domain>``.

A registered version is an artifact folder of the run that made it::

    site-model/<weights hash>/artifacts/bundle/     the bundle, as it is on disk

The bundle lies where an MLflow pyfunc model keeps its artifacts, so that an ``MLmodel`` file and
its code can be put beside ``artifacts/`` without moving anything.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from mfdiff_core.errors import BundleError, ConfigError, MfdiffError
from mfdiff_core.files import atomic_path, sha256_file
from mfdiff_platform.errors import TrackingError
from mfdiff_platform.names import check_name
from mfdiff_platform.tracking import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "mfdiff-"
CANDIDATE, CHAMPION = "candidate", "champion"
WEIGHTS_TAG = "weights_sha256"

_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[\w.-]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")
_INSIDE = "artifacts/bundle"
_FOLDER_DIGITS = 16


class ModelVersion(NamedTuple):
    """Which registered model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class SiteModel:
    """What the registry knows of a version."""

    id: ModelVersion
    aliases: tuple[str, ...]
    tags: dict[str, str]
    description: str
    run_id: str
    source: str
    created_ms: int


class SiteModels:
    """The site models in a tracking store."""

    def __init__(self, store: TrackingStore) -> None:
        self._store = store

    def register_candidate(
        self,
        domain: str,
        bundle_dir: Path,
        run_id: str,
        tags: Mapping[str, Any],
        description: str,
    ) -> ModelVersion:
        """Register a bundle as a version of ``mfdiff-<domain>`` and make it the candidate.

        The same bundle of the same run is registered once, however often this is called.

        Args:
            domain: the site's or stand-in's name.
            bundle_dir: the bundle; its provenance gives the lineage tags ``data_fingerprint``,
                ``parent_bundle``, ``strategy`` and ``weights_sha256``.
            run_id: MLflow run that made it.
            tags: further lineage, such as ``study`` and ``trial``.
            description: model card in Markdown.

        Raises:
            ConfigError: ``domain`` is not an allowed name.
            BundleError: the bundle is damaged.
            TrackingError: MLflow is out of reach.
        """
        name = PREFIX + check_name("domain", domain)
        lineage = _lineage(bundle_dir) | {tag: str(value) for tag, value in tags.items()}
        with self._asking() as client:
            _ensure_model(client, name)
            known = _registered(client, name, run_id, lineage[WEIGHTS_TAG])
            if known is None:
                folder = f"site-model/{lineage[WEIGHTS_TAG][:_FOLDER_DIGITS]}"
                for path in _files(bundle_dir):
                    client.log_artifact(run_id, str(path), f"{folder}/{_INSIDE}")
                source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
                made = client.create_model_version(
                    name, source, run_id, tags=lineage, description=description
                )
                known = int(made.version)
            client.set_registered_model_alias(name, CANDIDATE, str(known))
        return ModelVersion(name, known)

    def set_alias(self, model: ModelVersion, alias: str) -> None:
        """Let ``alias`` (``candidate``, ``champion``) point at ``model`` from now on.

        Raises:
            ConfigError: no such version.
            TrackingError: MLflow is out of reach.
        """
        self.show(str(model))
        with self._asking() as client:
            client.set_registered_model_alias(model.name, alias, str(model.version))

    def show(self, reference: str) -> SiteModel:
        """The version that ``mfdiff-<domain>@<alias>`` or ``mfdiff-<domain>/<version>`` names.

        Raises:
            ConfigError: there is none; lists those there are.
            TrackingError: MLflow is out of reach.
        """
        models = self.list()
        match = _REFERENCE.fullmatch(reference)
        for model in models:
            if match and model.id.name == match["name"] and _is_meant(match, model):
                return model
        raise ConfigError(f"no site model {reference!r}; {_listing(models)}")

    def resolve(self, reference: str) -> Path:
        """Local bundle folder for a site model or for a path to a bundle.

        Args:
            reference: ``mfdiff-<domain>@<alias>``, ``mfdiff-<domain>/<version>``, or a folder.

        Raises:
            ConfigError: neither a folder nor a site model; lists those there are.
            BundleError: the stored weights are not the ones that were registered.
            TrackingError: MLflow is out of reach.
        """
        if Path(reference).is_dir():
            return Path(reference).absolute()
        if not _REFERENCE.fullmatch(reference):
            raise ConfigError(f"no folder and no site model {reference!r}; {self._there_are()}")
        return self._fetch(self.show(reference))

    def _there_are(self) -> str:
        return _listing(self.list())

    def _fetch(self, model: SiteModel) -> Path:
        """Folder with the bundle of ``model``, downloaded unless an intact copy is there."""
        folder = self._store.workspace / "models" / model.id.name / str(model.id.version)
        if not _is_intact(folder, model):
            with TemporaryDirectory() as scratch, self._asking():
                from mlflow.artifacts import download_artifacts

                uri = f"{model.source}/{_INSIDE}"
                got = download_artifacts(
                    uri, dst_path=scratch, tracking_uri=self._store.address.uri
                )
                _keep_bundle(Path(got), folder)
            if not _is_intact(folder, model):
                shutil.rmtree(folder)
                raise BundleError(f"{model.id}: the stored weights are not the registered ones")
        return folder

    @contextmanager
    def _asking(self) -> Iterator[MlflowClient]:
        """The client; its failures become `TrackingError`."""
        from mlflow.exceptions import MlflowException

        try:
            self._store.address.knock()
            yield self._store.client
        except MfdiffError:
            raise
        except (MlflowException, OSError) as fault:
            place = self._store.address.shown
            raise TrackingError(f"the model registry at {place} cannot be used: {fault}") from fault

    def list(self) -> list[SiteModel]:
        """All versions of all site models, by name, newest first.

        Raises:
            TrackingError: MLflow is out of reach.
        """
        with self._asking() as client:
            models = [m for m in _all(client.search_registered_models) if m.name[:7] == PREFIX]
            return [
                _site_model(version, model.aliases)
                for model in sorted(models, key=lambda m: m.name)
                for version in _versions(client, f"name = '{model.name}'")
            ]


def _all(search: Any, **query: Any) -> Iterator[Any]:
    """All results of a paged MLflow search."""
    token = None
    while True:
        page = search(page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return


def _versions(client: MlflowClient, query: str) -> list[Any]:
    found = _all(client.search_model_versions, filter_string=query)
    return sorted(found, key=lambda version: -int(version.version))


def _site_model(version: Any, aliases: Mapping[str, Any]) -> SiteModel:
    number = int(version.version)
    return SiteModel(
        id=ModelVersion(version.name, number),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == number)),
        tags=dict(version.tags),
        description=version.description or "",
        run_id=version.run_id or "",
        source=version.source,
        created_ms=version.creation_timestamp,
    )


def _is_meant(match: re.Match[str], model: SiteModel) -> bool:
    return match["alias"] in model.aliases or match["version"] == str(model.id.version)


def _listing(models: Iterable[SiteModel]) -> str:
    names = [f"{model.id.name}@{alias}" for model in models for alias in model.aliases]
    names += [str(model.id) for model in models]
    return f"there are {', '.join(names)}" if names else "none is registered yet"


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered(client: MlflowClient, name: str, run_id: str, sha256: str) -> int | None:
    for version in _versions(client, f"name = '{name}' and run_id = '{run_id}'"):
        if version.tags.get(WEIGHTS_TAG) == sha256:
            return int(version.version)
    return None


def _lineage(bundle_dir: Path) -> dict[str, str]:
    """Tags from a bundle's provenance, after a look at its weights."""
    from mfdiff_core.bundle import load_bundle

    bundle = load_bundle(bundle_dir)
    bundle.weights()
    provenance = bundle.provenance
    return {
        WEIGHTS_TAG: provenance.sha256,
        "data_fingerprint": provenance.data,
        "parent_bundle": provenance.parent,
        "strategy": provenance.strategy,
    }


def _is_intact(folder: Path, model: SiteModel) -> bool:
    from mfdiff_core.bundle import WEIGHTS

    weights = folder / WEIGHTS
    return weights.is_file() and sha256_file(weights) == model.tags.get(WEIGHTS_TAG)


def _files(bundle_dir: Path) -> list[Path]:
    """The files of a bundle; nothing else of the folder travels."""
    from mfdiff_core.bundle import CONFIG, PROVENANCE, WEIGHTS

    paths = [bundle_dir / name for name in (WEIGHTS, CONFIG, PROVENANCE)]
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: missing or not a plain file")
    return paths


def _keep_bundle(source: Path, folder: Path) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for path in _files(source):
            shutil.copyfile(path, temporary / path.name)
