from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.data.manifest import MANIFEST, SHARDS, SPLIT, describe_shard, load_manifest
from mfdiff_core.data.slices import SliceRecord, read_shard, write_shard
from mfdiff_core.data.splits import PARTS
from mfdiff_core.errors import DataError
from mfdiff_core.files import atomic_path

MakeRecord = Callable[..., SliceRecord]


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def replace_shard(folder: Path, records: list[SliceRecord]) -> None:
    """Put other slices into the first shard and make the manifest agree with its hash."""
    manifest = load_manifest(folder)
    first = manifest.shards[0]
    write_shard(folder / first.file, records)
    entry = describe_shard(folder, folder / first.file, first.subject, len(records))
    object.__setattr__(manifest, "shards", (entry, *manifest.shards[1:]))
    manifest.save(folder)


# --- parts ---------------------------------------------------------------------------------


def test_parts_hold_every_slice_once(dataset: Dataset) -> None:
    keys = [info.key for part in PARTS for info in dataset.part(part).infos]
    assert len(keys) == len(set(keys)) == dataset.manifest.rows


def test_part_holds_only_its_own_subjects(dataset: Dataset) -> None:
    for part in PARTS:
        subjects = {info.subject for info in dataset.part(part).infos}
        assert subjects == set(dataset.split.subjects(part))


def test_rows_of_a_part_are_the_slices_on_disk(dataset: Dataset) -> None:
    part = dataset.part("train")
    info = part.infos[3]
    shard = read_shard(dataset.folder / SHARDS / f"{info.subject}.arrow")
    row = shard.infos.index(next(other for other in shard.infos if other.key == info.key))
    for name in ("x_p", "x_m", "x_s", "tissue", "lesions"):
        assert np.array_equal(getattr(part, name)[3].squeeze().numpy(), shard.arrays[name][row])


def test_tensors_have_one_channel_and_maps_none(dataset: Dataset) -> None:
    part = dataset.part("train")
    assert part.x_p.shape == part.x_m.shape == part.x_s.shape == (12, 1, 32, 32)
    assert part.tissue.shape == part.lesions.shape == (12, 32, 32)
    assert part.scale.shape == (12,)


def test_setting_narrows_a_part(dataset: Dataset) -> None:
    chosen = dataset.part("train", "uld")
    assert {info.setting for info in chosen.infos} == {"uld"}
    assert len(chosen) == len(dataset.part("train")) // 2


def test_unknown_setting_names_the_valid_ones(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no setting 'bolus'; it has ld, uld"):
        dataset.part("train", "bolus")


def test_setting_that_a_part_lacks_is_refused(own_dataset: Path) -> None:
    rewrite(own_dataset / MANIFEST, lambda values: values["settings"].append("empty"))
    with pytest.raises(DataError, match="no subject of test has a slice of 'empty'"):
        open_dataset(own_dataset).part("test", "empty")


def test_select_keeps_facts_and_images_together(dataset: Dataset) -> None:
    part = dataset.part("train")
    chosen = part.select(lambda info: info.slice_index == 1)
    rows = [row for row, info in enumerate(part.infos) if info.slice_index == 1]
    assert chosen.infos == tuple(part.infos[row] for row in rows)
    assert torch.equal(chosen.x_s, part.x_s[rows])
    assert torch.equal(chosen.lesions, part.lesions[rows])


def test_training_cannot_write_into_the_mapped_file(dataset: Dataset) -> None:
    part = dataset.part("train")
    part.x_p.zero_()
    assert dataset.part("train").x_p.any()


# --- damage --------------------------------------------------------------------------------


def test_every_flipped_byte_and_every_truncation_is_found(own_dataset: Path) -> None:
    shard = own_dataset / load_manifest(own_dataset).shards[2].file
    content, draws = shard.read_bytes(), random.Random(0)
    for number in range(200):
        damaged = bytearray(content)
        if number % 4:
            damaged[draws.randrange(len(content))] ^= draws.randrange(1, 256)
        else:
            del damaged[draws.randrange(len(content)) :]
        shard.unlink()  # a mapped file must not be cut short under its readers
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged shard"):
            open_dataset(own_dataset)
    shard.write_bytes(content)
    assert open_dataset(own_dataset).manifest.rows == 20


def test_missing_shard_is_named(own_dataset: Path) -> None:
    (own_dataset / SHARDS / "s3.arrow").unlink()
    with pytest.raises(DataError, match=r"s3\.arrow: shard is missing"):
        open_dataset(own_dataset)


@pytest.mark.parametrize("name", [MANIFEST, SPLIT])
def test_dataset_without_manifest_or_split_is_refused(own_dataset: Path, name: str) -> None:
    (own_dataset / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_dataset(own_dataset)


def test_half_written_shard_is_never_read(own_dataset: Path) -> None:
    path = own_dataset / SHARDS / "s0.arrow"
    with atomic_path(path) as temporary:
        left_behind = path.with_name(temporary.name.replace(str(os.getpid()), "1"))
        shutil.copyfile(path, temporary)
    left_behind.write_bytes(b"half a shard")  # a killed process cannot tidy up
    assert open_dataset(own_dataset).manifest.rows == 20


# --- contradictions ------------------------------------------------------------------------


def test_subject_that_leaks_between_parts_is_refused(own_dataset: Path) -> None:
    rewrite(own_dataset / SPLIT, lambda values: values["test"].append(values["train"][0]))
    with pytest.raises(DataError, match="leaks test data"):
        open_dataset(own_dataset)


def test_subject_hidden_in_anothers_shard_is_refused(
    own_dataset: Path, make_record: MakeRecord
) -> None:
    replace_shard(own_dataset, [make_record("s0"), make_record("s4")])
    with pytest.raises(DataError, match=r"s0\.arrow: holds s4 besides its subject"):
        open_dataset(own_dataset)


@pytest.mark.parametrize("change", [lambda v: v["train"].pop(), lambda v: v["test"].append("x")])
def test_split_of_other_subjects_is_refused(
    own_dataset: Path, change: Callable[[Any], Any]
) -> None:
    rewrite(own_dataset / SPLIT, change)
    with pytest.raises(DataError, match="split and manifest disagree on subjects"):
        open_dataset(own_dataset)


def test_setting_that_the_manifest_conceals_is_refused(own_dataset: Path) -> None:
    rewrite(own_dataset / MANIFEST, lambda values: values["settings"].remove("uld"))
    with pytest.raises(DataError, match="setting 'uld' is not in"):
        open_dataset(own_dataset)


def test_manifest_of_another_image_size_is_refused(own_dataset: Path) -> None:
    rewrite(own_dataset / MANIFEST, lambda values: values.update(image_size=64))
    with pytest.raises(DataError, match=r"32 pixels wide, manifest\.json says 64"):
        open_dataset(own_dataset)
