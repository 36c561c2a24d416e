from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdiff_core.data.volumes import Volume, axial_slices, resample_to
from mfdiff_core.errors import InputFault
from mfdiff_core.scans.dicom import check_units, find_series, identity, only
from mfdiff_core.scans.dicom_pairs import choose_mr, read_pair, read_pet
from mfdiff_core.scans.pairing_config import PairingConfig

pydicom = pytest.importorskip("pydicom")

MakeDicom = Callable[..., Path]
MakeHead = Callable[..., Volume]
SMALL = ((16, 18, 9), np.diag([-10.0, 9.0, 16.0, 1.0]))


def oblique(volume: Volume) -> Volume:
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return volume.moved(turn)


def by_axes(volume: Volume, axes: tuple[int, int, int]) -> Volume:
    """The same image stored in another order of axes, as sagittal or coronal series are."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = volume.affine[:3, list(axes)], volume.affine[:3, 3]
    return Volume(np.ascontiguousarray(volume.data.transpose(axes)), affine)


@pytest.mark.parametrize("kind", ["axial", "oblique", "sagittal", "coronal"])
def test_series_is_read_in_space_with_the_slope_of_each_slice(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead, kind: str
) -> None:
    head = make_head("pet", SMALL)
    shapes = {"oblique": oblique(head), "sagittal": by_axes(head, (1, 2, 0))}
    volume = shapes.get(kind, by_axes(head, (0, 2, 1)) if kind == "coronal" else head)
    (series,) = find_series(make_dicom(tmp_path / "a", volume))
    read = series.volume()
    steps = volume.data.max(axis=(0, 1)) / 30000
    if np.allclose(read.affine, volume.affine, atol=1e-3):
        assert (np.abs(read.data - volume.data).max(axis=(0, 1)) <= 0.501 * steps + 1e-4).all()
    again = resample_to(read, volume).data
    assert again == pytest.approx(volume.data, abs=1.0)
    assert axial_slices(read).shape == axial_slices(volume).shape


def test_slices_are_sorted_by_place_not_by_name(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    (series,) = find_series(make_dicom(tmp_path / "a", make_head("pet", SMALL)))
    heights = [float(head.ImagePositionPatient[2]) for head in series.heads[0]]
    assert heights == sorted(heights, reverse=True)  # along the normal, here towards the feet
    assert [p.name for p in series.files[0]] != sorted(p.name for p in series.files[0])


def test_other_files_and_localizers_do_no_harm(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    folder = make_dicom(tmp_path / "a", make_head("mr", SMALL), "MR", number=2)
    (folder / "README.txt").write_text("hello")
    (folder / "broken").write_bytes(bytes(128) + b"DICM" + b"rubbish")
    (folder / "DICOMDIR").write_bytes(b"x")
    head = make_head("mr", SMALL)
    for name, axes in (("p", (0, 1, 2)), ("q", (1, 2, 0))):  # one series, two directions
        localizer = Volume(by_axes(head, axes).data[:, :, 3:5], by_axes(head, axes).affine)
        make_dicom(tmp_path / "a" / name, localizer, "MR", number=1)
    (series,) = find_series(tmp_path / "a")
    assert series.number == "2"


def test_folder_without_slices_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputFault, match="no PT or MR series among 1 files"):
        find_series(tmp_path)
    with pytest.raises(InputFault, match="no such file"):
        find_series(tmp_path / "nowhere")


def test_missing_slice_is_noticed(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    make_dicom(tmp_path / "a", make_head("pet", SMALL), drop=(4,))
    with pytest.raises(InputFault, match=r"slice distances of 16\.00 to 32\.00 mm"):
        find_series(tmp_path / "a")


def test_slices_there_twice_are_noticed(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    import shutil

    folder = make_dicom(tmp_path / "a", make_head("pet", SMALL))
    shutil.copytree(folder, folder / "copy")
    with pytest.raises(InputFault, match="the same slices twice"):
        find_series(folder)
    next((folder / "copy").iterdir()).unlink()
    with pytest.raises(InputFault, match="1 to 2 images at one place"):
        find_series(folder)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"NumberOfFrames": "9"}, "enhanced multi-frame"),
        ({"SamplesPerPixel": 3}, "colour image"),
        ({"ImagePositionPatient": None}, "without position"),
        ({"ImageOrientationPatient": None}, "without position, orientation"),
    ],
)
def test_slices_that_make_no_volume_are_refused(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead, tags: dict[str, Any], words: str
) -> None:
    make_dicom(tmp_path / "a", make_head("pet", SMALL), tags=tags)
    with pytest.raises(InputFault, match=words):
        find_series(tmp_path / "a")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x28\x00\x11\x00US\x02", b"\x28\x00\x11\x00US\x03"),  # an odd length of Columns
        (b"\x28\x00\x30\x00DS", b"\x28\x00\x30\x00DD"),  # no such kind of value
    ],
)
def test_slice_with_damaged_header_is_missing_from_its_series_not_a_crash(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead, old: bytes, new: bytes
) -> None:
    folder = make_dicom(tmp_path / "a", make_head("pet", SMALL))
    path = sorted(folder.iterdir())[4]
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(InputFault, match="export the whole series again"):
        find_series(folder)


def test_pixels_that_cannot_be_decoded_are_told(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    folder = make_dicom(tmp_path / "a", make_head("pet", SMALL), tags={"PixelData": b"\0\0"})
    with pytest.raises(InputFault, match="pixels of slice 1 cannot be decoded"):
        find_series(folder)[0].volume()


@pytest.mark.parametrize("units", ["CNTS", "PROPCNTS", None])
def test_counts_are_no_activity(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead, units: str | None
) -> None:
    make_dicom(tmp_path / "a", make_head("pet", SMALL), tags={"Units": units})
    (series,) = find_series(tmp_path / "a")
    with pytest.raises(InputFault, match="export it in BQML"):
        check_units(series)


def test_dynamic_series_is_not_one_image(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    (series,) = find_series(make_dicom(tmp_path / "a", make_head("pet", SMALL), frames=3))
    assert (series.num_frames, len(series.files[0])) == (3, 9)
    with pytest.raises(InputFault, match="3 images at each place"):
        read_pet(series)


def test_several_series_need_a_choice_by_number(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    for number in (3, 5):
        make_dicom(tmp_path / "a" / str(number), make_head("mr", SMALL), "MR", number=number)
    series = find_series(tmp_path / "a")
    with pytest.raises(InputFault, match=r"2 MR series \(numbers 3, 5\)"):
        only(series, "MR", "folder")
    with pytest.raises(InputFault, match="no PT series"):
        only(series, "PT", "folder")


def test_t1_is_told_from_other_mr_by_its_name(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    head = make_head("mr", SMALL)
    make_dicom(tmp_path / "a", head, "MR", number=3, tags={"SeriesDescription": "t2_space"})
    make_dicom(tmp_path / "b", head, "MR", number=4, tags={"SeriesDescription": "T1_mprage"})
    assert choose_mr(find_series(tmp_path)).number == "4"


# --- pairs ---------------------------------------------------------------------------------

CONFIG = PairingConfig(start_s=0, end_s=160, lpet_s={"16s": 16.0}, register=False)


def test_dynamic_series_becomes_windows(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    make_dicom(tmp_path / "pt", make_head("pet", SMALL), frames=10, duration_s=16)
    make_dicom(tmp_path / "mr", make_head("mr", SMALL), "MR", number=2)
    scan = read_pair(find_series(tmp_path), CONFIG)
    assert (len(scan.used["SPET"]), len(scan.used["16s"])) == (10, 1)
    assert scan.dose_mbq == pytest.approx(200)
    head = make_head("pet", SMALL)
    assert resample_to(scan.spet, head).data == pytest.approx(head.data, abs=1)


def test_short_and_long_series_are_low_dose_and_standard_dose(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    for number, seconds in ((1, 1800), (2, 120), (3, 16)):
        head = make_head("pet", SMALL, seed=number)
        make_dicom(tmp_path / str(number), head, number=number, duration_s=seconds)
    uncorrected = {"CorrectedImage": ["DECY"]}
    make_dicom(tmp_path / "nac", make_head("pet", SMALL), number=9, tags=uncorrected)
    make_dicom(tmp_path / "mr", make_head("mr", SMALL), "MR", number=4)
    scan = read_pair(find_series(tmp_path), CONFIG)
    assert sorted(scan.lpets) == ["120s", "16s"]
    head = make_head("pet", SMALL, seed=1)
    assert resample_to(scan.spet, head).data == pytest.approx(head.data, abs=1)


def test_one_static_pet_is_no_pair(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    make_dicom(tmp_path / "pt", make_head("pet", SMALL))
    make_dicom(tmp_path / "mr", make_head("mr", SMALL), "MR")
    with pytest.raises(InputFault, match="1 static PET series; a pair is"):
        read_pair(find_series(tmp_path), CONFIG)


def test_identity_is_the_id_and_else_the_name(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    (series,) = find_series(make_dicom(tmp_path / "a", make_head("pet", SMALL)))
    assert identity(series.first) == "MRN4711"
    series.first.PatientID = ""
    assert identity(series.first) == "DOE^JANE"


def test_studies_whose_patients_were_taken_out_are_different_people(
    tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead
) -> None:
    nobody = {"PatientName": "", "PatientID": ""}
    heads = []
    for study in ("1.2.3", "1.2.4"):
        tags = {"StudyInstanceUID": study}
        folder = make_dicom(tmp_path / study, make_head("pet", SMALL), patient=nobody, tags=tags)
        heads.append(find_series(folder)[0].first)
    assert len({identity(head) for head in heads}) == 2
