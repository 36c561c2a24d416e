"""The manifest of a dataset: what its shards hold, where they come from, what they must hash to.

Arrow does not notice a flipped byte; the hashes here do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mfdiff_core.config import from_dict
from mfdiff_core.data.slices import SCHEMA_VERSION, Shard, read_shard
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import read_json, sha256_file, sha256_text, write_json
from mfdiff_core.names import check_name

MANIFEST = "manifest.json"
SPLIT = "split.json"
SHARDS = "shards"


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest knows it."""

    file: str
    subject: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Dataset description: slices, origin (physics or ingest settings) and shard hashes.

    ``lpet`` is the LPET's mean row in the paper's convention, ``lpet_quantitative`` in the other;
    ``facts`` are those of `facts.dataset_facts`: what the low-dose slices are like. ``sinograms``
    is the projector's geometry where slices carry y and AN; they lie on its grid.
    """

    domain: str
    image_size: int
    settings: tuple[str, ...]
    seed: int
    origin: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    lpet: dict[str, float]
    schema_version: int = SCHEMA_VERSION
    facts: dict[str, Any] = field(default_factory=dict)
    sinograms: dict[str, Any] = field(default_factory=dict)
    lpet_quantitative: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of slices."""
        return sum(entry.rows for entry in self.shards)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects in shard order."""
        return tuple(entry.subject for entry in self.shards)

    @property
    def sinogram_size(self) -> tuple[int, int] | None:
        """Views and bins of the sinograms; None where slices carry none."""
        if not self.sinograms:
            return None
        return int(self.sinograms["num_views"]), int(self.sinograms["num_bins"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' hashes: equal for equal slices, wherever they lie."""
        return sha256_text("".join(sorted(entry.sha256 for entry in self.shards)))

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``; a dataset without it does not exist."""
        write_json(folder / MANIFEST, asdict(self) | {"fingerprint": self.fingerprint})


def describe_shard(folder: Path, path: Path, subject: str, rows: int) -> ShardEntry:
    """Manifest entry of a finished shard below ``folder``."""
    file = path.relative_to(folder).as_posix()
    return ShardEntry(file, subject, rows, path.stat().st_size, sha256_file(path))


def load_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        DataError: no dataset there, or a manifest that contradicts itself.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder}: no dataset (no {MANIFEST}); make one with `mfdiff-platform simulate`"
            " or `mfdiff-platform ingest`"
        )
    values = read_json(path)
    try:
        fingerprint = values.pop("fingerprint")
        manifest = from_dict(Manifest, values)
        _check_names(manifest)
    except (AttributeError, KeyError, TypeError, ConfigError) as fault:
        raise DataError(f"{path}: not a dataset manifest ({fault})") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {manifest.schema_version}, this program reads"
            f" {SCHEMA_VERSION}; simulate or ingest the set again"
        )
    if manifest.fingerprint != fingerprint:
        raise DataError(f"{path}: the fingerprint does not fit the shards listed")
    return manifest


def _check_names(manifest: Manifest) -> None:
    """Names become metrics, tags and cells of tables; a dataset may come from anywhere."""
    check_name("domain", manifest.domain)
    for setting in manifest.settings:
        check_name("setting", setting)
    for subject in manifest.subjects:
        check_name("subject", subject)


def verify_shard(folder: Path, entry: ShardEntry) -> Shard:
    """Read a shard after checking its size and hash against the manifest.

    Raises:
        DataError: the shard is missing, damaged, cut short or not the one described.
    """
    path = folder / entry.file
    if Path(entry.file).is_absolute() or ".." in Path(entry.file).parts:
        raise DataError(f"{entry.file}: a shard lies inside its dataset's folder")
    if not path.is_file():
        raise DataError(f"{path}: shard is missing; make the dataset again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise DataError(f"{path}: {size} bytes, the manifest says {entry.bytes}: damaged shard")
    if sha256_file(path) != entry.sha256:
        raise DataError(f"{path}: content does not match its hash in the manifest: damaged shard")
    shard = read_shard(path)
    if len(shard.infos) != entry.rows:
        raise DataError(f"{path}: {len(shard.infos)} rows, the manifest says {entry.rows}")
    return shard


def unique(values: Sequence[str]) -> tuple[str, ...]:
    """Distinct values in order of first appearance."""
    return tuple(dict.fromkeys(values))
