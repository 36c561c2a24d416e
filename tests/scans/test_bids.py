from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.errors import InputFault
from mfdiff_core.scans.bids import entities, find_scans, labels, participants, sidecar


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if name.endswith(".json") else "x")
    return root


def write(root: Path, name: str, values: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(values))


PAIR = ("sub-01/pet/sub-01_pet.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz")


def test_participants_are_the_folders_with_or_without_their_prefix(tmp_path: Path) -> None:
    touch(tmp_path, "sub-02/x", "sub-01/x", "derivatives/y", "sub-03.txt")
    assert labels(tmp_path) == ("01", "02")
    assert labels(tmp_path, ["sub-02", "02"]) == ("02",)


def test_label_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path) -> None:
    touch(tmp_path, *(f"sub-{number:03d}/x" for number in range(40)))
    with pytest.raises(InputFault, match=r"the dataset has 000, 001.*\.\.\.") as refusal:
        labels(tmp_path, ["1"])
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("made", [True, False])
def test_folder_without_participants_is_no_dataset(tmp_path: Path, made: bool) -> None:
    root = tmp_path / "set"
    if made:
        root.mkdir()
    with pytest.raises(InputFault, match=r"no sub-\* folder|no such file"):
        labels(root)


def test_thousand_participants_cost_no_time(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"sub-{number:04d}" / "pet").mkdir(parents=True)
    touch(tmp_path, "sub-0500/pet/sub-0500_pet.nii.gz", "sub-0500/anat/sub-0500_T1w.nii.gz")
    started = time.perf_counter()
    (label,) = labels(tmp_path, ["0500"])
    assert len(find_scans(tmp_path, label)) == 1
    assert time.perf_counter() - started < 2


def test_pet_and_t1_are_found_and_masks_are_not_mistaken_for_them(tmp_path: Path) -> None:
    touch(tmp_path, *PAIR, "sub-01/anat/sub-01_T1w_defacemask.nii.gz")
    touch(tmp_path, "sub-01/pet/sub-01_pet_defacemask.nii.gz")
    (scan,) = find_scans(tmp_path, "01")
    assert [path.name for path in scan.pets] == ["sub-01_pet.nii.gz"]
    assert scan.t1.name == "sub-01_T1w.nii.gz"
    assert (scan.stem, scan.folder) == ("sub-01", Path("sub-01"))


def test_runs_of_one_series_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    runs = [f"sub-01/pet/sub-01_task-x_run-{run}_pet.nii.gz" for run in (10, 2, 1)]
    touch(tmp_path, PAIR[1], *runs)
    (scan,) = find_scans(tmp_path, "01")
    assert [entities(path.name)["run"] for path in scan.pets] == ["1", "2", "10"]


def test_corrected_dynamic_reconstruction_is_taken(tmp_path: Path) -> None:
    """As in ds003382: acdyn, acstat and nacstat side by side."""
    series = [f"sub-01/pet/sub-01_rec-{rec}_pet.nii.gz" for rec in ("acdyn", "acstat", "nacstat")]
    touch(tmp_path, PAIR[1], *series)
    (scan,) = find_scans(tmp_path, "01")
    assert [path.name for path in scan.pets] == ["sub-01_rec-acdyn_pet.nii.gz"]
    (scan,) = find_scans(tmp_path, "01", "rec-acstat")
    assert [path.name for path in scan.pets] == ["sub-01_rec-acstat_pet.nii.gz"]


def test_several_tracers_need_a_choice(tmp_path: Path) -> None:
    touch(tmp_path, PAIR[1], *(f"sub-01/pet/sub-01_trc-{t}_pet.nii.gz" for t in ("FDG", "PIB")))
    with pytest.raises(InputFault, match=r"--pet-filter trc-FDG") as refusal:
        find_scans(tmp_path, "01")
    assert "trc-PIB" in str(refusal.value)
    assert len(find_scans(tmp_path, "01", "trc-PIB")) == 1


def test_each_session_is_a_scan_and_borrows_a_t1(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    touch(tmp_path, *(f"sub-01/ses-{s}/pet/sub-01_ses-{s}_pet.nii.gz" for s in "ab"))
    scans = find_scans(tmp_path, "01")
    assert [scan.stem for scan in scans] == ["sub-01_ses-a", "sub-01_ses-b"]
    assert {scan.t1.name for scan in scans} == {"sub-01_ses-a_T1w.nii.gz"}


@pytest.mark.parametrize(("kept", "words"), [(0, "no T1-weighted"), (1, "no \\*_pet.nii.gz")])
def test_half_a_pair_is_refused(tmp_path: Path, kept: int, words: str) -> None:
    touch(tmp_path, PAIR[kept])
    with pytest.raises(InputFault, match=words):
        find_scans(tmp_path, "01")


def test_inner_sidecars_overrule_outer_ones(tmp_path: Path) -> None:
    image = touch(tmp_path, *PAIR) / PAIR[0]
    write(tmp_path, "pet.json", {"a": 1, "b": 1})
    write(tmp_path, "sub-01/sub-01_pet.json", {"b": 2, "c": 2})
    write(tmp_path, "sub-01/pet/sub-01_pet.json", {"c": 3})
    write(tmp_path, "task-other_pet.json", {"a": 9})
    assert sidecar(tmp_path, image) == {"a": 1, "b": 2, "c": 3}


def test_sidecar_that_is_not_json_is_named(tmp_path: Path) -> None:
    image = touch(tmp_path, *PAIR) / PAIR[0]
    (tmp_path / "sub-01/pet/sub-01_pet.json").write_text("{'a': 1")
    with pytest.raises(InputFault, match=r"sub-01_pet\.json: cannot be read as JSON"):
        sidecar(tmp_path, image)


@pytest.mark.parametrize("name", ["participants.tsv", "sub-01/pet/sub-01_pet.json"])
def test_texts_that_were_not_fetched_are_told(tmp_path: Path, name: str) -> None:
    image = touch(tmp_path, *PAIR) / PAIR[0]
    (tmp_path / name).symlink_to("../.git/annex/objects/x/MD5E-s1260000--0af.json/a")
    with pytest.raises(InputFault, match=r"content not fetched \(1.3 MB\); run `datalad get`"):
        sidecar(tmp_path, image) if name.endswith("json") else participants(tmp_path)


def test_participants_table_survives_a_byte_order_mark_and_broken_rows(tmp_path: Path) -> None:
    text = "\ufeffparticipant_id\tgroup\nsub-01\tBI\nsub-02\nsub-03\tI\textra\tcells\n"
    (tmp_path / "participants.tsv").write_text(text, encoding="utf-8")
    rows = participants(tmp_path)
    assert (rows["01"]["group"], rows["03"]["group"]) == ("BI", "I")
    assert "02" in rows


@pytest.mark.skipif("MFDIFF_TEST_DATA" not in os.environ, reason="needs the public tables")
def test_real_tables_have_their_groups() -> None:
    root = Path(os.environ["MFDIFF_TEST_DATA"]) / "openneuro" / "ds003397"
    groups = {label: row["group"] for label, row in participants(root).items()}
    assert [groups["01"], groups["06"], groups["11"]] == ["B", "I", "BI"]
    assert sidecar(root, root / "sub-01/pet/sub-01_task-checkerboard_run-2_pet.nii.gz")[
        "RadionuclideHalfLife"
    ] == pytest.approx(6586.2)
