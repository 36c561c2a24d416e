from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdiff_core.data.volumes import Volume
from mfdiff_core.scans.derived import HIGHEST, slope_for, write_derived
from mfdiff_core.scans.dicom import DicomSeries, find_series

pydicom = pytest.importorskip("pydicom")

MakeDicom = Callable[..., Path]
MakeHead = Callable[..., Volume]
SMALL = ((16, 18, 9), np.diag([-10.0, 9.0, 16.0, 1.0]))


@pytest.fixture
def source(tmp_path: Path, make_dicom: MakeDicom, make_head: MakeHead) -> DicomSeries:
    (series,) = find_series(make_dicom(tmp_path / "in", make_head("pet", SMALL)))
    return series


def restored(source: DicomSeries) -> Volume:
    """Values over many decades, a slice of zeros among them."""
    volume = source.volume()
    data = volume.data * np.geomspace(1e-6, 100, volume.data.shape[2]).astype(np.float32)
    data[:, :, 4] = 0
    return volume.with_data(data)


def write(source: DicomSeries, folder: Path, key: str = "model") -> Volume:
    image = restored(source)
    write_derived(folder, source, image, key=[key], version="1.2.3")
    return image


def test_values_come_back_within_half_a_step_of_their_slice(
    source: DicomSeries, tmp_path: Path
) -> None:
    image = write(source, tmp_path / "out")
    (series,) = find_series(tmp_path / "out")
    read = series.volume()
    assert read.affine == pytest.approx(source.affine, abs=1e-6)
    for place in range(image.data.shape[2]):
        step = float(pydicom.dcmread(series.files[0][place]).RescaleSlope)
        error = np.abs(read.data[:, :, place] - image.data[:, :, place]).max()
        assert error <= 0.5 * step + 1e-7 * image.data[:, :, place].max()  # and float32's own
        if place != 4:
            assert step == pytest.approx(image.data[:, :, place].max() / HIGHEST, rel=1e-6)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "RLELossless"])
def test_source_in_another_transfer_syntax_is_no_other_image(
    source: DicomSeries, tmp_path: Path, syntax: str
) -> None:
    for path in source.files[0]:
        dataset = pydicom.dcmread(path)
        if syntax == "RLELossless":
            dataset.compress(pydicom.uid.RLELossless)
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        dataset.save_as(path, implicit_vr=syntax.startswith("Implicit"), enforce_file_format=True)
    (other,) = find_series(source.files[0][0].parent)
    image = write(other, tmp_path / "out")
    (series,) = find_series(tmp_path / "out")
    steps = [float(pydicom.dcmread(path).RescaleSlope) for path in series.files[0]]
    error = np.abs(series.volume().data - image.data).max(axis=(0, 1))
    assert (error <= 0.5 * np.array(steps) + 1e-7 * image.data.max(axis=(0, 1))).all()


@pytest.mark.parametrize("top", [1e-12, 0.3, 1.0, 32767.0, 123456.789, 9.99999999e9])
def test_slope_holds_the_maximum_and_fits_its_field(top: float) -> None:
    slope = slope_for(top)
    assert top / slope <= HIGHEST + 1e-6
    assert slope == pytest.approx(top / HIGHEST, rel=1e-7)
    assert float(str(pydicom.valuerep.DSfloat(slope, auto_format=True))) >= slope * (1 - 1e-9)


def headers(folder: Path) -> list[Any]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def test_series_is_a_new_one_of_the_same_study_and_place(
    source: DicomSeries, tmp_path: Path
) -> None:
    write(source, tmp_path / "out")
    old, new = headers(source.files[0][0].parent), headers(tmp_path / "out")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "Units", "SOPClassUID"):
        assert {d[keyword].value for d in new} == {d[keyword].value for d in old}
    assert len({d.SeriesInstanceUID for d in new}) == 1
    assert {d.SeriesInstanceUID for d in new}.isdisjoint({d.SeriesInstanceUID for d in old})
    assert len({d.SOPInstanceUID for d in new}) == len(new) == len(old)
    assert {d.SOPInstanceUID for d in new}.isdisjoint({d.SOPInstanceUID for d in old})
    for dataset in new:
        assert dataset.ImageType[0] == "DERIVED"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID in {
            d.SOPInstanceUID for d in old
        }
        assert not any(element.tag.is_private for element in dataset)
        assert "not for diagnosis" in dataset.DerivationDescription


def test_same_result_has_the_same_uids_and_another_model_others(
    source: DicomSeries, tmp_path: Path
) -> None:
    for name, key in (("a", "model"), ("b", "model"), ("c", "other")):
        write(source, tmp_path / name, key)
    first, again, other = (headers(tmp_path / name)[0].SeriesInstanceUID for name in "abc")
    assert first == again != other


def test_failed_write_leaves_no_series(source: DicomSeries, tmp_path: Path) -> None:
    image = restored(source)
    source.files[0][5].write_bytes(b"gone")
    with pytest.raises(pydicom.errors.InvalidDicomError):
        write_derived(tmp_path / "out", source, image, key=["model"], version="1.2.3")
    assert not (tmp_path / "out").exists()


def test_simple_itk_reads_the_series_alike(source: DicomSeries, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    write(source, tmp_path / "out")
    (series,) = find_series(tmp_path / "out")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "out"))
    image = sitk.ReadImage(names, sitk.sitkFloat64)
    assert pytest.approx(series.volume().data, rel=1e-5) == sitk.GetArrayFromImage(image).T
    assert np.array(image.GetOrigin()) == pytest.approx(
        np.array([-1, -1, 1]) * series.affine[:3, 3], abs=1e-4
    )


def test_dcm2niix_reads_the_series_alike(source: DicomSeries, tmp_path: Path) -> None:
    import subprocess

    import nibabel

    converter = pytest.importorskip("dcm2niix")
    write(source, tmp_path / "out")
    (tmp_path / "nii").mkdir()
    command = [converter.bin, "-z", "n", "-f", "a", "-o", tmp_path / "nii", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    image = nibabel.load(tmp_path / "nii" / "a.nii")
    volume = find_series(tmp_path / "out")[0].volume()
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.data, volume.affine))
    read = nibabel.as_closest_canonical(image)
    assert read.affine == pytest.approx(turned.affine, abs=1e-3)
    assert read.get_fdata() == pytest.approx(turned.get_fdata(), rel=1e-4, abs=1e-3)
