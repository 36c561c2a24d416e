"""`check_dataset` finds whatever is wrong with a dataset and never raises for it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdiff_core.data.check import (
    HIGHEST_INTENSITY,
    check_dataset,
    open_sound_dataset,
    shared_subjects,
)
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.data.manifest import MANIFEST, SHARDS, SPLIT, describe_shard, load_manifest
from mfdiff_core.data.slices import SliceRecord, write_shard
from mfdiff_core.data.splits import Split
from mfdiff_core.errors import DataError
from mfdiff_platform.cli import run
from tests.comparison.toy_systems import TOY

MakeDataset = Callable[..., Path]
MakeRecord = Callable[..., SliceRecord]


def _codes(folder: Path) -> set[str]:
    return {finding.code for finding in check_dataset(folder)}


def _replace_shard(folder: Path, subject: str, records: list[SliceRecord]) -> None:
    """Write other slices under a subject's name, with a manifest that fits them."""
    path = folder / SHARDS / f"{subject}.arrow"
    path.unlink()
    write_shard(path, records)
    manifest = load_manifest(folder)
    entry = describe_shard(folder, path, subject, len(records))
    shards = tuple(entry if old.subject == subject else old for old in manifest.shards)
    replace(manifest, shards=shards).save(folder)


def test_sound_dataset_has_no_findings(dataset_folder: Path) -> None:
    assert check_dataset(dataset_folder) == []


def test_sinograms_are_checked_against_the_manifest_and_for_their_values(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    folder = make_dataset(tmp_path / "measured", sinograms=TOY)
    assert check_dataset(folder) == []
    manifest = load_manifest(folder)
    replace(manifest, sinograms=manifest.sinograms | {"num_bins": 41}).save(folder)
    assert _codes(folder) == {"sinograms"}
    replace(manifest, sinograms={}).save(folder)
    assert _codes(folder) == {"sinograms"}
    with pytest.raises(DataError, match="sinograms of"):
        open_dataset(folder)


@pytest.mark.parametrize(("place", "value"), [(0, -1.0), (0, np.nan), (1, 0.0)])
def test_measured_data_that_cannot_be_is_found(
    make_dataset: MakeDataset, tmp_path: Path, make_record: MakeRecord, place: int, value: float
) -> None:
    folder = make_dataset(tmp_path / "measured", sinograms=TOY)
    sinogram = np.ones((2, TOY.num_views, TOY.num_bins), np.float32)
    sinogram[place, 3, 4] = value
    _replace_shard(folder, "s1", [replace(make_record("s1"), sinogram=sinogram)])
    assert _codes(folder) == {"sinograms"}


def test_500_flipped_bytes_and_truncations_are_all_found(own_dataset: Path) -> None:
    shard = own_dataset / load_manifest(own_dataset).shards[1].file
    content, draws = shard.read_bytes(), random.Random(1)
    for number in range(500):
        damaged = bytearray(content)
        if number % 4:
            damaged[draws.randrange(len(content))] ^= draws.randrange(1, 256)
        else:
            del damaged[draws.randrange(len(content)) :]
        shard.unlink()  # a mapped file must not be cut short under its readers
        shard.write_bytes(damaged)
        assert _codes(own_dataset) == {"damaged"}


def test_every_damaged_shard_is_named_in_one_pass(own_dataset: Path) -> None:
    for subject in ("s1", "s3"):
        path = own_dataset / SHARDS / f"{subject}.arrow"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1])
    assert [finding.where for finding in check_dataset(own_dataset)] == [
        f"{SHARDS}/s1.arrow",
        f"{SHARDS}/s3.arrow",
    ]


@pytest.mark.parametrize(("name", "code"), [(MANIFEST, "manifest"), (SPLIT, "split")])
def test_missing_manifest_or_split_is_found(own_dataset: Path, name: str, code: str) -> None:
    (own_dataset / name).unlink()
    assert _codes(own_dataset) == {code}


def test_set_too_small_to_be_split_is_sound_but_warned_of(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    folder = make_dataset(tmp_path / "few", subjects=("s0", "s1", "s2"))
    manifest = load_manifest(folder)
    replace(manifest, shards=manifest.shards[:1]).save(folder)
    (folder / SPLIT).unlink()
    for subject in ("s1", "s2"):
        (folder / SHARDS / f"{subject}.arrow").unlink()
    assert [(f.severity, f.code) for f in check_dataset(folder)] == [("warning", "split")]
    assert run(["data", "check", str(folder)]) == 0
    assert run(["data", "show", str(folder), "--picture", str(tmp_path / "sheet.png")]) == 0
    with pytest.raises(DataError, match="at least 3 subjects"):
        open_dataset(folder)


def test_subject_in_two_parts_is_found(own_dataset: Path) -> None:
    split = json.loads((own_dataset / SPLIT).read_text())
    split["train"].append(split["test"][0])
    (own_dataset / SPLIT).write_text(json.dumps(split))
    assert _codes(own_dataset) == {"split"}


def test_slices_of_another_subject_are_a_leak(own_dataset: Path, make_record: MakeRecord) -> None:
    _replace_shard(own_dataset, "s1", [make_record("s1"), make_record("s4", index=1)])
    assert _codes(own_dataset) == {"leak"}


def test_target_that_two_subjects_share_is_a_leak(
    own_dataset: Path, make_record: MakeRecord
) -> None:
    twin = make_record("s2")
    renamed = replace(twin, info=replace(twin.info, subject="s1"))
    _replace_shard(own_dataset, "s1", [renamed])
    (finding,) = check_dataset(own_dataset)
    assert (finding.code, finding.where) == ("leak", f"{SHARDS}/s2.arrow")
    assert "shares targets with s1" in finding.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_s": np.zeros((32, 32), np.float32)}, r"s1\.arrow: x_s of s1/ld/0/0 is empty"),
        ({"subject": "s2"}, "s2.arrow: shares targets with s1"),
    ],
)
def test_set_that_only_a_look_at_its_values_gives_away_is_not_trained_on(
    own_dataset: Path, make_record: MakeRecord, change: dict[str, Any], message: str
) -> None:
    record = make_record(change.pop("subject", "s1"))
    record = replace(record, info=replace(record.info, subject="s1"), **change)
    _replace_shard(own_dataset, "s1", [record])
    open_dataset(own_dataset)
    with pytest.raises(DataError, match=message):
        open_sound_dataset(own_dataset)


def test_sound_dataset_opens(dataset_folder: Path) -> None:
    assert open_sound_dataset(dataset_folder).manifest == load_manifest(dataset_folder)


def test_slice_written_twice_is_found(own_dataset: Path, make_record: MakeRecord) -> None:
    _replace_shard(own_dataset, "s1", [make_record("s1"), make_record("s1")])
    assert _codes(own_dataset) == {"duplicate"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"x_s": np.zeros((32, 32), np.float32)}, "empty"),
        ({"x_p": np.full((32, 32), 2 * HIGHEST_INTENSITY, np.float32)}, "range"),
    ],
)
def test_unusable_values_are_found(
    own_dataset: Path, make_record: MakeRecord, change: dict[str, Any], code: str
) -> None:
    _replace_shard(own_dataset, "s1", [replace(make_record("s1"), **change)])
    assert _codes(own_dataset) == {code}


def test_a_target_given_as_its_own_low_dose_image_is_found(
    own_dataset: Path, make_record: MakeRecord
) -> None:
    record = make_record("s1")
    _replace_shard(own_dataset, "s1", [replace(record, x_p=record.x_s)])
    assert _codes(own_dataset) == {"same-image"}


def test_test_subjects_that_another_dataset_learns_from_are_named(
    dataset_folder: Path, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    tested = open_dataset(dataset_folder)
    (stranger,) = tested.split.subjects("test")
    assert shared_subjects(tested, tested) == []
    twin = open_dataset(make_dataset(tmp_path / "twin"))
    for shard in twin.shards:  # the same persons at another dose: the LPET's scale is that of both
        shard.arrays["x_s"] = 0.37 * shard.arrays["x_s"]
    others = tuple(name for name in tested.manifest.subjects if name != stranger)
    parts = {"train": others[:2], "validation": others[2:3], "test": others[3:]}
    for part in ("train", "validation", "test"):
        split = Split(**{**parts, part: (*parts[part], stranger)})
        found = shared_subjects(tested, replace(twin, split=split))
        assert found == ([] if part == "test" else [stranger])


def test_scale_that_is_not_positive_is_found(own_dataset: Path, make_record: MakeRecord) -> None:
    record = make_record("s1")
    _replace_shard(own_dataset, "s1", [replace(record, info=replace(record.info, scale=0.0))])
    assert _codes(own_dataset) == {"scale"}


@pytest.mark.parametrize("name", ["stray.arrow", ".s1.arrow.4711.tmp"])
def test_shard_that_no_manifest_knows_is_a_warning(own_dataset: Path, name: str) -> None:
    (own_dataset / SHARDS / name).write_bytes(b"left behind")
    findings = check_dataset(own_dataset)
    assert [(finding.severity, finding.code) for finding in findings] == [("warning", "stray")]
    assert set(asdict(findings[0])) == {"severity", "code", "where", "message"}


def test_data_check_ends_with_4_for_a_damaged_set_and_0_for_a_sound_one(own_dataset: Path) -> None:
    assert run(["data", "check", str(own_dataset)]) == 0
    (own_dataset / SPLIT).unlink()
    assert run(["data", "check", str(own_dataset)]) == 4


def test_data_show_writes_a_contact_sheet_and_histograms(
    own_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "sheet.png"
    assert run(["data", "show", str(own_dataset), "--picture", str(picture), "--json"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = json.loads(capsys.readouterr().out)
    assert {row["setting"] for row in shown["settings"]} == {"ld", "uld"}
    assert all(row["level"] > 0 and 0 < row["paper_ssim"] < 1 for row in shown["settings"])
    assert Path(shown["histograms"]).read_bytes().startswith(b"\x89PNG")


def test_data_show_takes_sets_whose_subjects_have_one_setting_each(
    own_dataset: Path, make_record: MakeRecord, tmp_path: Path
) -> None:
    """As sets ingested by dose or by group are."""
    for subject, setting in (("s0", "ld"), ("s1", "uld"), ("s2", "ld"), ("s3", "uld")):
        _replace_shard(own_dataset, subject, [make_record(subject, setting)])
    assert run(["data", "show", str(own_dataset), "--picture", str(tmp_path / "sheet.png")]) == 0


def test_data_show_prints_both_conventions(
    own_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "show", str(own_dataset), "--picture", str(tmp_path / "sheet.png")]) == 0
    assert "by own maxima (paper)" in capsys.readouterr().out
