from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdiff_core.data.volumes import Volume
from mfdiff_core.scans.dicom import find_series
from mfdiff_core.scans.suv import suv_factor

pytest.importorskip("pydicom")

SMALL = ((8, 8, 3), np.diag([-18.0, 18.0, 18.0, 1.0]))


@pytest.fixture
def head(tmp_path: Path, make_dicom: Callable[..., Path], make_head: Callable[..., Volume]) -> Any:
    (series,) = find_series(make_dicom(tmp_path / "a", make_head("pet", SMALL)))
    return series.first


def test_suv_is_activity_over_what_is_left_of_the_dose_per_gram(head: Any) -> None:
    """70 kg, 200 MBq injected an hour before the series started."""
    left_bq = 200e6 * 2 ** (-3600 / 6586.2)
    assert suv_factor(head).factor == pytest.approx(70_000 / left_bq)


def test_images_corrected_to_the_administration_need_no_clock(head: Any) -> None:
    head.DecayCorrection = "ADMIN"
    assert suv_factor(head).factor == pytest.approx(70_000 / 200e6)


def test_images_in_suv_by_weight_are_suv(head: Any) -> None:
    head.Units = "GML"
    assert suv_factor(head).factor == 1
    head.SUVType = "LBM"
    assert suv_factor(head).factor is None


@pytest.mark.parametrize(
    ("where", "keyword", "value", "reason"),
    [
        ("head", "PatientWeight", None, "weight"),
        ("head", "PatientWeight", "0", "weight"),
        ("head", "Units", "CNTS", "unit"),
        ("head", "DecayCorrection", "NONE", "decay correction"),
        ("head", "SeriesTime", None, "no times"),
        ("head", "SeriesTime", "130000", "dated after its acquisition"),
        ("drug", "RadionuclideTotalDose", None, "dose"),
        ("drug", "RadionuclideTotalDose", "200", "dose in Bq"),
        ("drug", "RadionuclideHalfLife", None, "half-life"),
        ("drug", "RadiopharmaceuticalStartTime", None, "no times"),
        ("drug", "RadiopharmaceuticalStartTime", "122600", "26 min after the series start"),
    ],
)
def test_without_one_of_its_facts_there_is_no_suv(
    head: Any, where: str, keyword: str, value: str | None, reason: str
) -> None:
    target = head if where == "head" else head.RadiopharmaceuticalInformationSequence[0]
    setattr(target, keyword, value)
    found = suv_factor(head)
    assert found.factor is None
    assert reason in found.reason
