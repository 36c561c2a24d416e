"""Site models: bundles registered in MLflow as versions of ``mfdiff-<domain>``.

A registered version is an artifact folder of the run that made it, see `model_files`. Its tags
say where it comes from and what the gates said; without these it can never be champion.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mfdiff_core.errors import BundleError, ConfigError, MfdiffError
from mfdiff_platform.errors import TrackingError
from mfdiff_platform.model_files import (
    INSIDE,
    WEIGHTS_TAG,
    is_intact,
    keep_bundle,
    lineage,
    model_folder,
    version_folder,
)
from mfdiff_platform.names import check_name
from mfdiff_platform.page import NOTICE
from mfdiff_platform.privacy import without_paths
from mfdiff_platform.site_model import (
    ADMITTED_TAG,
    CANDIDATE,
    CHAMPION,
    GATES_TAG,
    OVERRIDE_TAG,
    PREFIX,
    RESULT_TAG,
    ModelVersion,
    SiteModel,
    check_may_be_champion,
    site_model,
)
from mfdiff_platform.tracking import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[\w.-]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")


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
        # What the weights say of themselves stands, whatever a tag from elsewhere says.
        facts = {tag: str(value) for tag, value in tags.items()} | lineage(bundle_dir)
        with self.asking() as client:
            _ensure_model(client, name, domain)
            known = _registered(client, name, run_id, facts[WEIGHTS_TAG])
            if known is None:
                place = version_folder(facts[WEIGHTS_TAG])
                with model_folder(bundle_dir) as folder:
                    client.log_artifacts(run_id, str(folder), place)
                source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
                made = client.create_model_version(
                    name, source, run_id, tags=facts, description=description
                )
                known = int(made.version)
            client.set_registered_model_alias(name, CANDIDATE, str(known))
        return ModelVersion(name, known)

    def set_alias(self, model: ModelVersion, alias: str) -> None:
        """Let ``alias`` (``candidate``, ``champion``) point at ``model`` from now on.

        Raises:
            ConfigError: no such version.
            GateError: ``champion`` is asked for, and the gates neither passed nor were overridden.
            TrackingError: MLflow is out of reach.
        """
        found = self.show(str(model))
        if alias == CHAMPION:
            check_may_be_champion(found)
        with self.asking() as client:
            client.set_registered_model_alias(model.name, alias, str(model.version))

    def champion(self, domain: str) -> SiteModel | None:
        """The champion of ``domain``, if there is one.

        Raises:
            ConfigError: ``domain`` is not an allowed name.
            TrackingError: MLflow is out of reach.
        """
        name = PREFIX + check_name("domain", domain)
        chosen = (m for m in self.list() if m.id.name == name and CHAMPION in m.aliases)
        return next(chosen, None)

    def record_verdict(self, model: SiteModel, verdict: Mapping[str, Any], override: str) -> None:
        """Store what the gates said with the version: as tags and as a file beside its weights.

        Args:
            model: the version.
            verdict: `gates.Verdict.to_dict`.
            override: why it becomes champion all the same, "" if it does not have to.

        Raises:
            TrackingError: MLflow is out of reach.
        """
        tags = {GATES_TAG: verdict["summary"], RESULT_TAG: json.dumps(verdict)}
        if verdict["passed"] or override:
            tags |= {ADMITTED_TAG: verdict["weights_sha256"], OVERRIDE_TAG: without_paths(override)}
        name, version = model.id.name, str(model.id.version)
        place = version_folder(model.tags[WEIGHTS_TAG])
        with self.asking() as client:
            client.log_text(model.run_id, json.dumps(verdict, indent=2), f"{place}/gates.json")
            for tag, value in tags.items():
                client.set_model_version_tag(name, version, tag, value)

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
            GateError: a champion that no gate has let through, however it got its alias.
            BundleError: the stored weights are not the ones that were registered.
            TrackingError: MLflow is out of reach.
        """
        if Path(reference).is_dir():
            return Path(reference).absolute()
        if not _REFERENCE.fullmatch(reference):
            raise ConfigError(f"no folder and no site model {reference!r}; {self._there_are()}")
        model = self.show(reference)
        if reference.endswith(f"@{CHAMPION}"):
            check_may_be_champion(model)
        return self._fetch(model)

    def _there_are(self) -> str:
        return _listing(self.list())

    def _fetch(self, model: SiteModel) -> Path:
        """Folder with the bundle of ``model``, downloaded unless an intact copy is there."""
        folder = self._store.workspace / "models" / model.id.name / str(model.id.version)
        if not is_intact(folder, model.tags.get(WEIGHTS_TAG)):
            with TemporaryDirectory() as scratch, self.asking():
                from mlflow.artifacts import download_artifacts

                uri = f"{model.source}/{INSIDE}"
                got = download_artifacts(
                    uri, dst_path=scratch, tracking_uri=self._store.address.uri
                )
                keep_bundle(Path(got), folder)
            if not is_intact(folder, model.tags.get(WEIGHTS_TAG)):
                shutil.rmtree(folder)
                raise BundleError(f"{model.id}: the stored weights are not the registered ones")
        return folder

    @contextmanager
    def asking(self) -> Iterator[MlflowClient]:
        """The client; its failures become `TrackingError`.

        Raises:
            TrackingError: MLflow is out of reach, or refuses.
        """
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
        with self.asking() as client:
            models = [m for m in _all(client.search_registered_models) if m.name[:7] == PREFIX]
            return [
                site_model(version, model.aliases)
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


def _is_meant(match: re.Match[str], model: SiteModel) -> bool:
    return match["alias"] in model.aliases or match["version"] == str(model.id.version)


def _listing(models: Iterable[SiteModel]) -> str:
    names = [f"{model.id.name}@{alias}" for model in models for alias in model.aliases]
    names += [str(model.id) for model in models]
    return f"there are {', '.join(names)}" if names else "none is registered yet"


def _ensure_model(client: MlflowClient, name: str, domain: str) -> None:
    from mlflow.exceptions import MlflowException

    # In code marks: MLflow makes a link to somebody's account of a bare @champion.
    described = (
        f"Restores low-dose PET of domain {domain}. `{CHAMPION}` is in use: the gates, or a person "
        f"who gave a reason, let it through. `{CANDIDATE}` is the newest that waits for them. "
        f"{NOTICE}"
    )
    try:
        client.create_registered_model(name, description=described)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered(client: MlflowClient, name: str, run_id: str, sha256: str) -> int | None:
    for version in _versions(client, f"name = '{name}' and run_id = '{run_id}'"):
        if version.tags.get(WEIGHTS_TAG) == sha256:
            return int(version.version)
    return None
