"""One version of a site model in one file, to take to another site."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from mfdiff_core.bundle import load_bundle
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import atomic_path
from mfdiff_platform.archive import Archive, read_archive, write_archive
from mfdiff_platform.model_files import WEIGHTS_TAG, bundle_files, is_intact
from mfdiff_platform.names import check_name
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.site_model import PREFIX, ModelVersion, arriving_tags, travelling_tags
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

KIND = "site model"
EXPERIMENT = "mfdiff-imports"
_BUNDLE = "bundle"
_FOLDER_DIGITS = 16


def export_model(models: SiteModels, reference: str, out: Path) -> ModelVersion:
    """Write the version that ``reference`` names, with card and lineage, to ``out``.

    Raises:
        ConfigError: no such version.
        TrackingError: MLflow is out of reach.
    """
    model = models.show(reference)
    bundle = models.resolve(str(model.id))
    facts = {
        "domain": model.id.name.removeprefix(PREFIX),
        "tags": travelling_tags(model),
        "description": model.description,
    }
    files = {f"{_BUNDLE}/{path.name}": path for path in bundle_files(bundle)}
    write_archive(out, KIND, facts, files)
    return model.id


def import_model(workspace: Workspace, store: TrackingStore, path: Path) -> ModelVersion:
    """Register what `export_model` wrote as the domain's candidate; the same file once.

    Raises:
        DataError: not such a file, or a damaged one.
        TrackingError: MLflow is out of reach.
    """
    with read_archive(path, KIND, workspace.root) as archive:
        try:
            domain = check_name("domain", str(archive.facts["domain"]))
            tags = arriving_tags(archive.facts["tags"])
            described = archive.facts["tags"].get(WEIGHTS_TAG)
            card = str(archive.facts["description"])
        except (KeyError, AttributeError, ConfigError) as fault:
            raise DataError(f"{path}: no description of a site model ({fault})") from None
        with TemporaryDirectory(dir=workspace.root) as scratch:
            bundle = Path(scratch)
            weights = _copy_bundle(archive, bundle)
            if described != weights:
                raise DataError(f"{path}: the weights are not those of the model described")
            key = f"{domain}/{weights[:16]}"
            run = store.find_or_create(EXPERIMENT, key, f"{domain}: imported", {"kind": "import"})
            made = SiteModels(store).register_candidate(domain, bundle, run.run_id, tags, card)
            run.finish("finished")
    return made


def unpacked_bundle(workspace: Workspace, path: Path) -> Path:
    """Bundle folder of what `export_model` wrote, below the workspace; nothing is registered.

    Raises:
        DataError: not such a file, or a damaged one.
    """
    with read_archive(path, KIND, workspace.root) as archive:
        with TemporaryDirectory(dir=workspace.root) as scratch:
            weights = _copy_bundle(archive, Path(scratch))
        folder = workspace.root / "models" / "files" / weights[:_FOLDER_DIGITS]
        if not is_intact(folder, weights):
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                _copy_bundle(archive, temporary)
    return folder


def _copy_bundle(archive: Archive, folder: Path) -> str:
    """Copy the bundle of an archive into ``folder``; returns the hash of its weights."""
    for name, source in archive.below(_BUNDLE).items():
        shutil.copyfile(source, folder / Path(name).name)
    return load_bundle(folder).provenance.sha256
