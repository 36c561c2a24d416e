from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.errors import InputFault
from mfdiff_core.scans.dose import decay, image_unit, injected_dose, plain_name


def test_header_dose_goes_before_the_typed_one_and_the_difference_is_told() -> None:
    """ds002898: the typed doses are permuted between subjects."""
    sidecar = {
        "RadionuclideTotalDose": 249_800_000.0,
        "InjectedRadioactivity": "222.264",
        "InjectedRadioactivityUnit": "MBq",
    }
    dose = injected_dose(sidecar, "pet")
    assert dose is not None
    assert dose.mbq == pytest.approx(249.8)
    assert dose.source == "RadionuclideTotalDose"
    assert "says 222.3 MBq" in dose.notes[0]


@pytest.mark.parametrize("key", ["InjectedRadioactivityUnits", "InjectedRadioactivityUnit"])
@pytest.mark.parametrize(("unit", "value"), [("MBq", 200), ("kBq", 2e5), ("Bq", 2e8)])
def test_typed_dose_is_read_in_its_unit_under_both_keys(key: str, unit: str, value: float) -> None:
    dose = injected_dose({"InjectedRadioactivity": value, key: unit}, "pet")
    assert dose is not None
    assert dose.mbq == pytest.approx(200)


@pytest.mark.parametrize(
    "sidecar", [{}, {"InjectedRadioactivity": 200}, {"RadionuclideTotalDose": "n/a"}]
)
def test_dose_that_is_not_stated_is_unknown(sidecar: dict[str, Any]) -> None:
    assert injected_dose(sidecar, "pet") is None


@pytest.mark.parametrize(
    "sidecar",
    [
        {"RadionuclideTotalDose": 249.8},
        {"RadionuclideTotalDose": 0},
        {"InjectedRadioactivity": 2e8, "InjectedRadioactivityUnits": "MBq"},
    ],
)
def test_dose_in_the_wrong_unit_is_refused(sidecar: dict[str, Any]) -> None:
    with pytest.raises(InputFault, match="not plausible"):
        injected_dose(sidecar, "pet")


def test_half_life_is_never_made_up() -> None:
    assert decay({}).half_life_s is None
    assert decay({"RadionuclideHalfLife": 6586.2}).half_life_s == 6586.2
    assert not decay({"ImageDecayCorrected": False}).corrected


@pytest.mark.parametrize("key", ["Unit", "Units"])
def test_unit_is_found_under_the_key_of_today_and_of_yesterday(key: str) -> None:
    assert image_unit({key: "Bq/ml"}) == "Bq/ml"


@pytest.mark.skipif("MFDIFF_TEST_DATA" not in os.environ, reason="needs the public sidecars")
def test_real_sidecars_have_their_header_doses() -> None:
    root = Path(os.environ["MFDIFF_TEST_DATA"]) / "openneuro"
    found = {}
    for path in sorted(root.glob("*/sub-*/pet/*_pet.json")):
        dose = injected_dose(json.loads(path.read_text()), path)
        assert dose is not None
        found[path.name] = round(dose.mbq, 1)
    assert found["sub-01_task-rest_pet.json"] == 249.8
    assert found["sub-20_task-rest_pet.json"] == 229.9
    assert found["sub-01_task-checkerboard_run-1_pet.json"] == 252.9


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("FDG", "FDG"),
        ("[18F]FDG", "[18F]FDG"),
        ("a<b>\n|c", "a b c"),
        (None, ""),
        ("x" * 99, "x" * 60),
    ],
)
def test_tracer_is_told_in_letters_that_fit_a_card(stated: str | None, name: str) -> None:
    assert plain_name(stated) == name
