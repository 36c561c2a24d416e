from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.data.manifest import MANIFEST, load_manifest, unique, verify_shard
from mfdiff_core.errors import DataError

MakeDataset = Callable[..., Path]


def rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    """Tamper with the manifest of ``folder``."""
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values))


def test_saved_manifest_is_read_back(dataset_folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(dataset_folder)
    manifest.save(tmp_path)
    assert load_manifest(tmp_path) == manifest


def test_manifest_counts_its_slices_and_names_its_subjects(dataset_folder: Path) -> None:
    manifest = load_manifest(dataset_folder)
    assert manifest.rows == 20
    assert manifest.subjects == ("s0", "s1", "s2", "s3", "s4")


def test_equal_slices_have_equal_fingerprints_wherever_they_lie(
    dataset_folder: Path, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    again = load_manifest(make_dataset(tmp_path / "elsewhere"))
    assert again.fingerprint == load_manifest(dataset_folder).fingerprint


def test_fingerprint_does_not_depend_on_the_order_of_shards(dataset_folder: Path) -> None:
    manifest = load_manifest(dataset_folder)
    turned = replace(manifest, shards=manifest.shards[::-1])
    assert turned.fingerprint == manifest.fingerprint


def test_other_slices_have_another_fingerprint(
    dataset_folder: Path, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    other = load_manifest(make_dataset(tmp_path / "other", seed=1))
    assert other.fingerprint != load_manifest(dataset_folder).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(fingerprint="0" * 64),
        lambda v: v.pop("fingerprint"),
        lambda v: v.pop("shards"),
        lambda v: v.pop("seed"),
        lambda v: v.update(extra=1),
        lambda v: v.update(schema_version=1),
        lambda v: v.update(image_size="32"),
        lambda v: v.update(settings="ld"),
        lambda v: v.update(shards=3),
        lambda v: v["shards"].append(None),
        lambda v: v["shards"].pop(),
        lambda v: v["shards"][0].update(sha256=None),
        lambda v: v["shards"][0].update(sha256="0" * 64),
        lambda v: v["shards"][0].update(file=7),
        lambda v: v["shards"][0].pop("rows"),
        lambda v: v.update(domain="../x"),
        lambda v: v.update(settings=["ld", "a/b"]),
        lambda v: v["shards"][0].update(subject="<script>alert(1)</script>"),
        lambda v: v["shards"][0].update(subject="s\0"),
        lambda v: v["shards"][0].update(subject="s" * 300),
    ],
)
def test_tampered_manifest_is_refused(own_dataset: Path, change: Callable[[Any], Any]) -> None:
    rewrite(own_dataset, change)
    with pytest.raises(DataError, match=r"manifest\.json: "):
        load_manifest(own_dataset)


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '"x"', '{"fingerprint": 1}'])
def test_manifest_that_is_none_is_refused(own_dataset: Path, content: str) -> None:
    (own_dataset / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: "):
        load_manifest(own_dataset)


def test_folder_without_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset"):
        load_manifest(tmp_path)


# --- one shard -----------------------------------------------------------------------------


def test_shard_that_matches_its_entry_is_read(dataset_folder: Path) -> None:
    entry = load_manifest(dataset_folder).shards[0]
    assert len(verify_shard(dataset_folder, entry).infos) == entry.rows == 4


@pytest.mark.parametrize("file", ["../secret.arrow", "shards/../../secret.arrow", "/etc/passwd"])
def test_shard_outside_its_dataset_is_refused_unread(
    own_dataset: Path, dataset_folder: Path, file: str
) -> None:
    entry = load_manifest(own_dataset).shards[0]
    (own_dataset.parent / "secret.arrow").write_bytes((own_dataset / entry.file).read_bytes())
    with pytest.raises(DataError, match="lies inside its dataset's folder"):
        verify_shard(own_dataset, replace(entry, file=file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "shards/none.arrow"}, "shard is missing"),
        ({"file": "shards"}, "shard is missing"),
        ({"bytes": 1}, "the manifest says 1: damaged shard"),
        ({"sha256": "0" * 64}, "does not match its hash"),
        ({"rows": 5}, "4 rows, the manifest says 5"),
    ],
)
def test_shard_that_contradicts_its_entry_is_refused(
    dataset_folder: Path, change: dict[str, Any], message: str
) -> None:
    entry = replace(load_manifest(dataset_folder).shards[0], **change)
    with pytest.raises(DataError, match=message):
        verify_shard(dataset_folder, entry)


def test_unique_keeps_the_order_of_first_appearance() -> None:
    assert unique(["b", "a", "b", "c", "a"]) == ("b", "a", "c")
