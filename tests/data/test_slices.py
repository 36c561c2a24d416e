from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mfdiff_core.data.slices import (
    SliceInfo,
    SliceRecord,
    read_shard,
    schema,
    sinogram_size,
    write_shard,
)
from mfdiff_core.errors import DataError

MakeRecord = Callable[..., SliceRecord]
IMAGES, MAPS = ("x_p", "x_m", "x_s"), ("tissue", "lesions")


@pytest.fixture
def records(make_record: MakeRecord) -> list[SliceRecord]:
    return [make_record(index=index) for index in range(3)]


@pytest.fixture
def shard_path(records: list[SliceRecord], tmp_path: Path) -> Path:
    write_shard(tmp_path / "s.arrow", records)
    return tmp_path / "s.arrow"


# --- round trip ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES + MAPS)
def test_images_come_back_bit_for_bit(
    records: list[SliceRecord], shard_path: Path, name: str
) -> None:
    stored = read_shard(shard_path).arrays[name]
    written = np.stack([getattr(record, name) for record in records])
    assert stored.dtype == written.dtype
    assert stored.tobytes() == written.tobytes()


def test_sinograms_come_back_bit_for_bit(records: list[SliceRecord], tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    given = [
        replace(record, sinogram=draws.random((2, 6, 5), dtype=np.float32)) for record in records
    ]
    write_shard(tmp_path / "s.arrow", given)
    shard = read_shard(tmp_path / "s.arrow")
    for place, name in enumerate(("y", "factors")):
        written = np.stack([r.sinogram[place] for r in given if r.sinogram is not None])
        assert shard.arrays[name].tobytes() == written.tobytes()
    assert sinogram_size(shard) == (6, 5)


def test_shards_without_sinograms_have_no_column_for_them(shard_path: Path) -> None:
    assert "y" not in schema(32).names
    assert b"mfdiff.sinogram" not in schema(32).metadata
    assert sinogram_size(read_shard(shard_path)) is None


def test_a_sinogram_in_some_slices_only_is_refused(
    records: list[SliceRecord], tmp_path: Path
) -> None:
    records[0] = replace(records[0], sinogram=np.ones((2, 6, 5), np.float32))
    with pytest.raises(DataError, match="all slices of a dataset carry equal ones, or none"):
        write_shard(tmp_path / "s.arrow", records)


def test_facts_come_back_exactly(records: list[SliceRecord], shard_path: Path) -> None:
    # dose_mbq is NaN, which equals nothing.
    assert [replace(info, dose_mbq=0) for info in read_shard(shard_path).infos] == [
        replace(record.info, dose_mbq=0) for record in records
    ]
    assert all(math.isnan(info.dose_mbq) for info in read_shard(shard_path).infos)


def test_arrays_are_views_of_the_mapped_file(shard_path: Path) -> None:
    before = pa.total_allocated_bytes()
    shard = read_shard(shard_path)
    again = {name: array for name, array in shard.arrays.items()}
    assert pa.total_allocated_bytes() == before
    assert not any(array.flags.owndata for array in again.values())
    assert not any(array.flags.writeable for array in again.values())


def test_rows_of_a_view_share_its_memory(shard_path: Path) -> None:
    arrays = read_shard(shard_path).arrays
    assert np.shares_memory(arrays["x_p"][1], arrays["x_p"])
    assert not np.shares_memory(arrays["x_p"], arrays["x_s"])


def test_views_outlive_the_shard_object(records: list[SliceRecord], shard_path: Path) -> None:
    array = read_shard(shard_path).arrays["x_s"]
    assert np.array_equal(array[2], records[2].x_s)


def test_same_records_give_the_same_bytes(records: list[SliceRecord], tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", records)
    write_shard(tmp_path / "b.arrow", records)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_key_tells_apart_whatever_may_differ_within_a_dataset() -> None:
    info = SliceInfo("toy", "ld", "s0", 1, 2, 2.0, 1.0, 1.0)
    others = [{"setting": "uld"}, {"subject": "s1"}, {"slice_index": 2}, {"rotation_index": 1}]
    assert len({info.key, *(replace(info, **other).key for other in others)}) == 5  # type: ignore[arg-type]


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", IMAGES)
def test_pixel_that_is_not_finite_is_refused(
    records: list[SliceRecord], tmp_path: Path, name: str, value: float
) -> None:
    image = getattr(records[1], name).copy()
    image[3, 4] = value
    records[1] = replace(records[1], **{name: image})
    with pytest.raises(DataError, match=f"slice s0/ld/1/0: {name} has NaN or infinite"):
        write_shard(tmp_path / "s.arrow", records)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(16, 16), (32, 16), (32,), (1, 32, 32)])
@pytest.mark.parametrize("name", IMAGES + MAPS)
def test_image_of_another_shape_is_refused(
    records: list[SliceRecord], tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    records[1] = replace(records[1], **{name: np.zeros(shape, getattr(records[1], name).dtype)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"slice s0/ld/1/0: {name} is"):
        write_shard(tmp_path / "s.arrow", records)


def test_shard_without_slices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one slice"):
        write_shard(tmp_path / "s.arrow", [])


def write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_arrow_file_of_another_schema_is_refused(shard_path: Path) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(shard_path))).read_all()
    write_table(shard_path.with_name("t.arrow"), table.drop_columns(["lesions"]))
    with pytest.raises(DataError, match=r"t\.arrow: not a slice shard of schema version 2"):
        read_shard(shard_path.with_name("t.arrow"))


def test_arrow_file_without_our_metadata_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.arrow", pa.table({"a": [1]}))
    with pytest.raises(DataError, match="not a readable slice shard"):
        read_shard(tmp_path / "t.arrow")


def test_other_schema_version_is_refused(shard_path: Path) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(shard_path))).read_all()
    facts = {**schema(32).metadata, b"mfdiff.schema": b"1"}
    write_table(shard_path.with_name("t.arrow"), table.replace_schema_metadata(facts))
    with pytest.raises(DataError, match="schema version"):
        read_shard(shard_path.with_name("t.arrow"))


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0" + bytes(64), b"not arrow" * 9])
def test_file_that_is_no_arrow_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"s\.arrow: not a readable slice shard"):
        read_shard(tmp_path / "s.arrow")


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s\.arrow: no such shard"):
        read_shard(tmp_path / "s.arrow")


def test_damaged_shard_is_refused_or_read_but_never_takes_the_process_down(
    shard_path: Path, tmp_path: Path
) -> None:
    """Arrow follows damaged offsets out of the mapped file unless it is told to validate."""
    content, draws = shard_path.read_bytes(), random.Random(0)
    outcomes: list[Any] = []
    for number in range(200):
        damaged = bytearray(content)
        # Of the few header and text bytes, not of the many pixels, which no reader can check.
        place = draws.choice([draws.randrange(4000), -1 - draws.randrange(2000)])
        damaged[place] ^= 1 << draws.randrange(8)
        path = tmp_path / f"{number}.arrow"
        path.write_bytes(damaged)
        try:
            outcomes.append(read_shard(path))
        except DataError:
            outcomes.append(None)
    assert outcomes.count(None) > 50
