"""The files of a registered version.

    site-model/<weights hash>/
      MLmodel, requirements.txt, ...      what MLflow needs to load and serve it
      artifacts/bundle/                   the bundle, as it is on disk

Nothing in it is code or a pickle: MLflow loads it with the installed `mfdiff_platform.serving`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mfdiff_core.errors import BundleError
from mfdiff_core.files import atomic_path, sha256_file

INSIDE = "artifacts/bundle"
WEIGHTS_TAG, DATA_TAG = "weights_sha256", "data_fingerprint"

_FOLDER_DIGITS = 16


def version_folder(sha256: str) -> str:
    """Artifact folder of the version with these weights, in the run that made them."""
    return f"site-model/{sha256[:_FOLDER_DIGITS]}"


@contextmanager
def model_folder(bundle_dir: Path) -> Iterator[Path]:
    """A temporary folder with all files of a version made from ``bundle_dir``."""
    from mfdiff_platform.serving import write_mlflow_model

    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_mlflow_model(bundle_dir, folder)
        keep_bundle(bundle_dir, folder / INSIDE)
        yield folder


def lineage(bundle_dir: Path) -> dict[str, str]:
    """Tags from a bundle's provenance, after a look at its weights.

    Raises:
        BundleError: the bundle is damaged.
    """
    from mfdiff_core.bundle import load_bundle

    bundle = load_bundle(bundle_dir)
    bundle.weights()
    provenance = bundle.provenance
    freeze = provenance.recipe.get("freeze")
    return {
        WEIGHTS_TAG: provenance.sha256,
        DATA_TAG: provenance.data,
        "parent_bundle": provenance.parent,
        "strategy": provenance.strategy,
    } | ({"freeze": str(freeze)} if freeze else {})


def is_intact(folder: Path, sha256: str | None) -> bool:
    """Whether ``folder`` holds weights of this hash."""
    from mfdiff_core.bundle import WEIGHTS

    weights = folder / WEIGHTS
    return weights.is_file() and sha256_file(weights) == sha256


def bundle_files(bundle_dir: Path) -> list[Path]:
    """The files of a bundle; nothing else of the folder travels.

    Raises:
        BundleError: one is missing or a link.
    """
    from mfdiff_core.bundle import CONFIG, PROVENANCE, WEIGHTS

    paths = [bundle_dir / name for name in (WEIGHTS, CONFIG, PROVENANCE)]
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: missing or not a plain file")
    return paths


def keep_bundle(source: Path, folder: Path) -> None:
    """Copy the files of a bundle to ``folder``, all or none."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for path in bundle_files(source):
            shutil.copyfile(path, temporary / path.name)
