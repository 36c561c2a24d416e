"""DICOM in, a derived DICOM series out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdiff_core.bundle import Provenance, save_bundle
from mfdiff_core.data.volumes import Volume
from mfdiff_core.model import RestorationModel
from mfdiff_core.scans.dicom import find_series
from mfdiff_platform.cli import run
from mfdiff_platform.workspace import ENVIRONMENT

pydicom = pytest.importorskip("pydicom")

GRID = ((26, 30, 14), np.diag([-7.0, 7.0, 12.0, 1.0]))
Output = pytest.CaptureFixture[str]


@pytest.fixture
def site(
    tmp_path: Path,
    tiny_model: RestorationModel,
    make_head: Callable[..., Volume],
    make_dicom: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A model and a patient's PT and MR folders."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "ws"))
    provenance = Provenance(
        domain="toy", strategy="pretrain", iterations=0, seed=0, data="x", voxel_mm=7.0
    )
    save_bundle(tmp_path / "bundle", tiny_model.config, tiny_model.state_dict(), provenance)
    make_dicom(tmp_path / "DOE_JANE" / "pt", make_head("pet", GRID))
    make_dicom(tmp_path / "DOE_JANE" / "mr", make_head("mr", GRID), "MR", number=2)
    return tmp_path


def restore(site: Path, output: Output, code: int, *options: str) -> Any:
    patient = site / "DOE_JANE"
    folders = ["--pet", patient / "pt", "--mr", patient / "mr", "--out", site / "out"]
    arguments = ["dicom", *folders, "--model", site / "bundle", "--no-register", *options]
    output.readouterr()
    assert run(["restore", *map(str, arguments), "--json"]) == code
    captured = output.readouterr()
    return json.loads(captured.out) if captured.out else captured.err


def test_restored_series_is_derived_from_the_pet_and_lies_on_its_grid(
    site: Path, capsys: Output
) -> None:
    made = restore(site, capsys, 0, "--samples", "2")
    assert made["slices"] > 8
    (source,) = find_series(site / "DOE_JANE" / "pt")
    (series,) = find_series(site / "out" / "restored")
    assert np.allclose(series.affine, source.affine, atol=1e-6)
    assert series.shape == source.shape
    first = pydicom.dcmread(series.files[0][0])
    assert first.ImageType[0] == "DERIVED"
    assert first.StudyInstanceUID == source.first.StudyInstanceUID
    assert first.PatientID == "MRN4711"
    assert not np.allclose(series.volume().data, source.volume().data)
    assert (site / "out" / "uncertainty.nii.gz").is_file()


def test_nothing_but_the_series_names_the_patient(site: Path, capsys: Output) -> None:
    made = restore(site, capsys, 0, "--samples", "2")
    assert re.fullmatch(r"p-[0-9a-f]{10}", made["subject"])
    others = [
        path
        for folder in (site / "out", site / "ws")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".dcm"
    ]
    assert len(others) >= 3
    for path in others:
        content = re.sub(rb"base64,[^']*'", b"", path.read_bytes())
        for word in (b"DOE", b"JANE", b"MRN4711", b"19700102", b"ACC0815"):
            assert word not in content, path
    page = (site / "out" / "restored.html").read_text()
    assert made["subject"] in page
    assert "highest SUV" in page


def test_suv_that_cannot_be_known_is_not_shown(
    site: Path,
    capsys: Output,
    make_head: Callable[..., Volume],
    make_dicom: Callable[..., Path],
) -> None:
    pt = site / "DOE_JANE" / "pt"
    make_dicom(pt, make_head("pet", GRID), tags={"PatientWeight": None})
    made = restore(site, capsys, 0)
    assert "no SUV: no plausible weight" in made["notes"]
    assert "highest SUV" not in (site / "out" / "restored.html").read_text()


def test_fault_names_the_series_not_the_patient(site: Path, capsys: Output) -> None:
    next((site / "DOE_JANE" / "pt").iterdir()).unlink()
    message = restore(site, capsys, 4)
    assert "PT series 1: " in message
    assert "MRN" not in message
    assert not (site / "out").exists()


def test_earlier_result_stays_unless_overwrite_is_given(site: Path, capsys: Output) -> None:
    restore(site, capsys, 0)
    before = {path.name for path in (site / "out" / "restored").iterdir()}
    assert "not empty; give --overwrite" in restore(site, capsys, 2)
    restore(site, capsys, 0, "--overwrite")
    assert {path.name for path in (site / "out" / "restored").iterdir()} == before
