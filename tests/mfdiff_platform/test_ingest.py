"""Real scans in: what a site has on its disk becomes a dataset that `adapt` can use."""

from __future__ import annotations

import base64
import csv
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mfdiff_core.data.check import check_dataset
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import DataError
from mfdiff_platform.cli import run
from mfdiff_platform.data_facts import data_facts
from mfdiff_platform.site_salt import site_salt
from mfdiff_platform.workspace import ENVIRONMENT

MakeBids = Callable[..., Path]
MakeHead = Callable[..., Volume]
Output = pytest.CaptureFixture[str]
SMALL = ["--planes", "8:18:3", "--set", "image_size=32", "--set", "voxel_mm=6.0"]
SHORT = ["--window", "16:368", "--lpet", "16s=16", "--lpet", "48s=48"]
STARTS_WITH_A_GAP = [0.0, 16.0, 32.0, *(96 + 16.0 * index for index in range(20))]
MR = ((48, 56, 48), np.diag([4.0, 4.0, 4.0, 1.0]))
TRAPS: dict[str, dict[str, Any]] = {
    "01": {},
    "02": {"misnamed": True},
    "03": {"starts": STARTS_WITH_A_GAP, "FrameDuration": 16},
    "04": {"FrameTimesStart": [86399.0, *(16.0 * index for index in range(1, 24))]},
}
BAD: dict[str, dict[str, Any]] = {
    "05": {"annexed": True},
    "06": {"RadionuclideTotalDose": 249.8},
    "07": {"no_mr": True},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "ws"))
    return tmp_path


def ingest(output: Output, code: int, *arguments: object) -> Any:
    """The JSON result of a command that ends with ``code``; None if it printed none."""
    output.readouterr()
    assert run(["ingest", *map(str, arguments), "--json"]) == code
    text = output.readouterr().out
    return json.loads(text) if text else None


def test_traps_go_in_and_bad_subjects_do_not_stop_the_others(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    people = {label: {**person, "unlike": True} for label, person in (TRAPS | BAD).items()}
    root = make_bids(site / "set", people)
    made = ingest(capsys, 5, "bids", root, "--domain", "toy", "--no-register", *SHORT, *SMALL)
    assert [r["code"] for r in made["refused"]] == ["MF-IN-03", "MF-IN-38", "MF-IN-28"]
    assert len(made["subjects"]) == 4
    folder = Path(made["out"])
    assert check_dataset(folder) == []
    dataset = open_dataset(folder)
    assert dataset.manifest.settings == ("16s", "48s")
    for subject in dataset.manifest.subjects:
        facts = dataset.manifest.origin["subjects"][subject]["sessions"][0]
        assert facts["windows_s"]["16s"] == [176.0, 192.0]
        assert facts["windows_s"]["48s"] == [160.0, 208.0]
        assert facts["dose_mbq"] == pytest.approx(249.8)
    card = data_facts(folder)
    assert "settings used: 16s, 48s. Tracer: FDG. Injected dose: 250 MBq." in card
    assert card.endswith("Origin: ingest bids.")
    infos = dataset.shards[0].infos
    assert {info.domain for info in infos} == {"toy"}
    assert len(infos) == 2 * 4
    assert set(dataset.manifest.facts) > {"voxel_mm", "noise", "q50"}


def test_what_a_script_is_told_of_refused_subjects_names_none(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    """Pseudonym, code and sentence; only the terminal says which file it is."""
    people: dict[str, dict[str, Any]] = {"good": {}}
    people |= {f"DOE{label}": traits for label, traits in BAD.items()}
    root = make_bids(site / "set", people)
    (root / "sub-DOE08" / "pet").mkdir(parents=True)
    command = ["bids", root, "--domain", "toy", "--no-register", *SHORT, *SMALL, "--json"]
    assert run(["ingest", *map(str, command)]) == 5
    told, shown = capsys.readouterr()
    assert len(json.loads(told)["refused"]) == 4
    assert "DOE" not in told
    assert "sub-DOE05_task-rest_pet.nii.gz: content not fetched" in shown


def test_nothing_is_written_for_a_bad_subject(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    root = make_bids(site / "set", BAD)
    ingest(capsys, 4, "bids", root, "--domain", "toy", "--no-register", *SHORT, *SMALL)
    assert not [path for path in (site / "ws" / "data").rglob("*") if path.is_file()]


def test_single_bad_subject_is_one_sentence(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    root = make_bids(site / "set", BAD)
    arguments = ["bids", str(root), "--domain", "toy", "--participant-label", "07"]
    assert run(["ingest", *arguments, "--no-register"]) == 4
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert len(error) == 1
    assert "no T1-weighted MR" in error[0]
    assert "[MF-IN-28]" in error[0]


def test_same_command_keeps_what_is_there_and_takes_in_what_was_mended(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    root = make_bids(site / "set", TRAPS | {"06": BAD["06"]})
    command = ["bids", root, "--domain", "toy", "--no-register", *SHORT, *SMALL]
    first = ingest(capsys, 5, *command)
    split = json.loads((Path(first["out"]) / "split.json").read_text())
    stamps = {path: path.stat().st_mtime_ns for path in Path(first["out"]).rglob("*.arrow")}
    (sidecar,) = (root / "sub-06" / "pet").glob("*.json")
    sidecar.write_text(sidecar.read_text().replace("249.8", "249800000"))
    second = ingest(capsys, 0, *command)
    assert set(first["subjects"]) < set(second["subjects"])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    again = json.loads((Path(first["out"]) / "split.json").read_text())
    assert (again["test"], again["validation"]) == (split["test"], split["validation"])
    assert len(again["train"]) == len(split["train"]) + 1
    assert ingest(capsys, 0, *command) == second


def test_other_settings_do_not_mix_into_a_dataset(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    root = make_bids(site / "set", {"01": {}})
    command = ["bids", root, "--domain", "toy", "--no-register", *SMALL]
    ingest(capsys, 0, *command, *SHORT)
    ingest(capsys, 2, *command, "--window", "16:368", "--lpet", "32s=32")


def test_labels_are_given_as_bids_apps_take_them(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    root = make_bids(site / "set", TRAPS)
    labels = ["--participant_label", "01", "sub-03", "--participant-label", "02"]
    command = ["--domain", "toy", "--no-register", *SHORT, *SMALL]
    assert len(ingest(capsys, 0, "bids", root, *labels, *command)["subjects"]) == 3


def test_preset_cuts_the_papers_planes_of_the_t1(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    mr_grid = ((44, 50, 160), np.diag([5.0, 5.0, 1.0, 1.0]))
    people: dict[str, dict[str, Any]] = {"01": {}, "06": {}, "11": {}}
    groups = {"01": "B", "06": "I", "11": "BI"}
    root = make_bids(site / "set", people, first_s=1792, count=114, groups=groups, mr_grid=mr_grid)
    command = ["bids", root, "--domain", "ood3", "--preset", "ood3", "--no-register"]
    made = ingest(capsys, 0, *command)
    dataset = open_dataset(Path(made["out"]))
    assert sorted(dataset.manifest.settings) == ["bolus", "hybrid", "infusion"]
    infos = [info for shard in dataset.shards for info in shard.infos]
    assert sorted({info.slice_index for info in infos}) == list(range(130, 150, 2))
    assert {(info.setting, info.protocol) for info in infos} == {
        (protocol, protocol) for protocol in ("bolus", "infusion", "hybrid")
    }
    assert dataset.manifest.image_size == 192
    facts = dataset.manifest.origin["subjects"][infos[0].subject]["sessions"][0]
    assert facts["windows_s"]["SPET"] == [1808, 3600]
    assert facts["num_frames"] == {"SPET": 112, dataset.shards[0].infos[0].setting: 1}


def test_registration_is_done_once_and_told(
    site: Path, make_bids: MakeBids, rigid: Callable[..., Any], capsys: Output
) -> None:
    pytest.importorskip("SimpleITK")
    root = make_bids(site / "set", {"01": {"mr_affine": rigid((3, -2, 4), (5, -6, 4))}})
    made = ingest(capsys, 0, "bids", root, "--domain", "toy", *SHORT, *SMALL)
    manifest = open_json(Path(made["out"]) / "manifest.json")
    facts = next(iter(manifest["origin"]["subjects"].values()))["sessions"][0]
    assert 5 < facts["moved_mm"] < 20
    before, after = facts["mutual_information"]
    assert after > before
    (page,) = Path(made["pages"]).glob("*.html")
    assert "registered" in page.read_text()


def open_json(path: Path) -> Any:
    return json.loads(path.read_text())


# --- NIfTI tables --------------------------------------------------------------------------


def pairs(folder: Path, make_head: MakeHead, subjects: int = 3) -> Path:
    rows = []
    for number in range(subjects):
        names = {}
        for name in ("lpet", "mr", "spet"):
            head = make_head("mr", MR) if name == "mr" else make_head("pet", seed=number)
            names[name] = f"P{number}_{name}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(head.data, head.affine), folder / names[name])
        rows.append({"subject": f"DOE{number}", "setting": "ld", **names, "dose_mbq": "55"})
    return write_table(folder / "pairs.csv", rows)


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_table_of_pairs_becomes_a_dataset(site: Path, make_head: MakeHead, capsys: Output) -> None:
    table = pairs(site, make_head)
    made = ingest(capsys, 0, "nifti", table, "--domain", "toy", "--no-register", *SMALL)
    dataset = open_dataset(Path(made["out"]))
    assert dataset.manifest.settings == ("ld",)
    assert {info.dose_mbq for shard in dataset.shards for info in shard.infos} == {55.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mr": "nowhere.nii.gz"}, "no such file"),
        ({"setting": ""}, "row 2: table of pairs: setting is empty"),
        ({"dose_mbq": "low"}, "dose_mbq is no number"),
        ({"dose_mbq": "55000000"}, "a dose of 5.5e\\+07 MBq is not plausible"),
        ({"lpet": "P0_mr.nii.gz"}, "lies on another grid than its SPET"),
        ({"setting": "../x"}, "setting name"),
    ],
)
def test_bad_row_is_named(
    site: Path, make_head: MakeHead, capsys: Output, change: dict[str, str], words: str
) -> None:
    table = pairs(site, make_head, 1)
    write_table(table, [row | change for row in read_table(table)])
    arguments = ["nifti", str(table), "--domain", "toy", "--no-register", *SMALL]
    assert run(["ingest", *arguments]) in (2, 4)
    assert re.search(words, capsys.readouterr().err)
    assert not (site / "ws" / "data" / "toy" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("a,b\n1,2\n", "subject, setting, lpet, mr, spet is missing"), ("", "no rows|missing")],
)
def test_other_tables_are_refused(site: Path, capsys: Output, text: str, words: str) -> None:
    (site / "t.csv").write_text(text)
    assert run(["ingest", "nifti", str(site / "t.csv"), "--domain", "toy"]) == 4
    assert re.search(words, capsys.readouterr().err)


def test_row_twice_is_refused(site: Path, make_head: MakeHead, capsys: Output) -> None:
    table = pairs(site, make_head, 1)
    write_table(table, read_table(table) * 2)
    assert run(["ingest", "nifti", str(table), "--domain", "toy"]) == 4
    assert "stand there twice" in capsys.readouterr().err


# --- DICOM ---------------------------------------------------------------------------------


def test_patients_of_a_dicom_folder_go_in_and_a_broken_one_is_listed(
    site: Path, make_head: MakeHead, make_dicom: Callable[..., Path], capsys: Output
) -> None:
    pytest.importorskip("pydicom")
    grid = ((16, 18, 14), np.diag([-12.0, 11.0, 12.0, 1.0]))
    for number in range(2):
        who = {"PatientName": f"DOE^{number}", "PatientID": f"MRN{number}"}
        folder, drop = site / "export" / f"DOE_{number}", (3,) if number else ()
        make_dicom(folder / "a", make_head("pet", grid), duration_s=900, patient=who)
        make_dicom(folder / "b", make_head("pet", grid), number=2, duration_s=60, patient=who,
                   drop=drop)  # fmt: skip
        make_dicom(folder / "c", make_head("mr", grid), "MR", number=3, patient=who)
    arguments = ["--domain", "toy", "--no-register", "--set", "image_size=32"]
    made = ingest(capsys, 5, "dicom", site / "export", *arguments)
    assert made["settings"] == ["60s"]
    assert (len(made["subjects"]), len(made["refused"])) == (1, 1)
    assert "slices are missing" in made["refused"][0]["sentence"]


def test_nothing_that_is_written_names_a_dicom_patient(
    site: Path, make_head: MakeHead, make_dicom: Callable[..., Path], capsys: Output
) -> None:
    """The name of the patient is in the folder, the headers, private tags and free texts."""
    pytest.importorskip("pydicom")
    grid = ((16, 18, 14), np.diag([-12.0, 11.0, 12.0, 1.0]))
    who = {
        "PatientName": "MUSTERMANN^ERIKA",
        "PatientID": "MRN4711",
        "PatientBirthDate": "19700102",
        "AccessionNumber": "ACC0815",
        "OtherPatientIDs": "ALT9999",
        "PatientComments": "ERIKA MUSTERMANN",
        "SeriesDescription": "MUSTERMANN ERIKA T1",
        "ReferringPhysicianName": "QUACK^DR",
    }
    folder = site / "export" / "MUSTERMANN_ERIKA_MRN4711"
    for name, seconds in (("a", 900), ("b", 60)):
        number = 1 + (name == "b")
        make_dicom(
            folder / name, make_head("pet", grid), number=number, duration_s=seconds, patient=who
        )
    make_dicom(folder / "c", make_head("mr", grid), "MR", number=3, patient=who)
    arguments = ["--domain", "toy", "--no-register", "--set", "image_size=32"]
    made = ingest(capsys, 0, "dicom", site / "export", *arguments)
    assert (len(made["subjects"]), made["settings"]) == (1, ["60s"])
    written = [path for path in (site / "ws").rglob("*") if path.is_file()]
    assert len(written) >= 5
    # Long enough that no compressed picture and no digest spells one by chance.
    names = ("MUSTERMANN", "ERIKA", "QUACK", "Elsewhere")
    words = (*names, "DOE^JANE", "MRN4711", "19700102", "ACC0815", "ALT9999")
    for path in written:
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in with_pictures(content)], path
        assert not [word for word in words if word in str(path.relative_to(site))], path
    assert not [word for word in words if word in json.dumps(made)]


def with_pictures(content: bytes) -> bytes:
    """A page with its pictures as the bytes that they are, since base64 spells words by chance."""
    pictures = [base64.b64decode(p) for p in re.findall(rb"base64,([^\"']*)", content)]
    return b"\n".join([re.sub(rb"base64,[^\"']*", b"", content), *pictures])


# --- pseudonyms ----------------------------------------------------------------------------


def test_no_identity_reaches_anything_that_is_written(
    site: Path, make_bids: MakeBids, make_head: MakeHead, capsys: Output
) -> None:
    root = make_bids(site / "set", {"JaneDoe19700102": {}, "MRN4711": {}})
    ingest(capsys, 0, "bids", root, "--domain", "toy", "--no-register", *SHORT, *SMALL)
    table = pairs(site, make_head)
    ingest(capsys, 0, "nifti", table, "--domain", "other", "--no-register", *SMALL)
    written = [path for path in (site / "ws").rglob("*") if path.is_file()]
    assert len(written) > 15
    # A year alone would be found in a digest now and then: all of a date.
    secrets = [b"JaneDoe", b"19700102", b"MRN4711", b"DOE^JANE", b"DOE0", b"St Elsewhere"]
    for path in written:
        content = re.sub(rb"base64,[^']*'", b"", path.read_bytes())
        content = content if path.suffix != ".arrow" else content[:4096] + content[-4096:]
        assert not [word for word in secrets if word in content], path
        assert "Doe" not in path.name
        assert "MRN" not in path.name


def test_pseudonym_is_that_of_the_person_under_this_salt(
    site: Path, make_bids: MakeBids, capsys: Output
) -> None:
    root = make_bids(site / "set", {"01": {}})
    command = ["bids", root, "--no-register", *SHORT, *SMALL]
    subjects = [
        ingest(capsys, 0, *command, "--domain", name, *more)["subjects"]
        for name, more in (("a", []), ("b", []), ("c", ["--workspace", site / "other"]))
    ]
    assert subjects[0] == subjects[1] != subjects[2]


def test_salt_is_a_secret_of_its_owner_and_stays(tmp_path: Path) -> None:
    salt = site_salt(tmp_path)
    assert len(salt) >= 16
    assert site_salt(tmp_path) == salt
    assert stat.S_IMODE((tmp_path / "site-salt").stat().st_mode) == 0o600
    (tmp_path / "site-salt").write_text("oops")
    with pytest.raises(DataError, match="not a salt"):
        site_salt(tmp_path)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--lpet", "16"], "NAME=SECONDS"),
        (["--window", "60"], "START:END"),
        (["--planes", "1-2"], "FIRST:STOP:STEP"),
        (["--set", "grid=scanner"], "'pet', 'mr'"),
    ],
)
def test_option_that_is_not_understood_is_a_usage_error(
    site: Path, make_bids: MakeBids, capsys: Output, option: list[str], words: str
) -> None:
    root = make_bids(site / "set", {"01": {}})
    assert run(["ingest", "bids", str(root), "--domain", "toy", *option]) == 2
    assert words in capsys.readouterr().err


def test_missing_simple_itk_is_told_with_the_way_out(
    site: Path, make_bids: MakeBids, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    root = make_bids(site / "set", {"01": {}})
    assert run(["ingest", "bids", str(root), "--domain", "toy", *SHORT]) == 4
    assert "--no-register" in capsys.readouterr().err
