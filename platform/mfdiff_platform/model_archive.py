"""One version of a site model in one file, to take to another site."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from mfdiff_core.bundle import load_bundle
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_platform.archive import read_archive, write_archive
from mfdiff_platform.model_files import WEIGHTS_TAG, bundle_files
from mfdiff_platform.names import check_name
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.site_model import PREFIX, ModelVersion, arriving_tags, travelling_tags
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

KIND = "site model"
EXPERIMENT = "mfdiff-imports"
_BUNDLE = "bundle"


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
            for name, source in archive.below(_BUNDLE).items():
                shutil.copyfile(source, bundle / Path(name).name)
            weights = load_bundle(bundle).provenance.sha256
            if described != weights:
                raise DataError(f"{path}: the weights are not those of the model described")
            key = f"{domain}/{weights[:16]}"
            run = store.find_or_create(EXPERIMENT, key, f"{domain}: imported", {"kind": "import"})
            made = SiteModels(store).register_candidate(domain, bundle, run.run_id, tags, card)
            run.finish("finished")
    return made
