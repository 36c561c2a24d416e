"""SUV by body weight, when the header holds all that it takes; never from a guessed constant."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

LONGEST_UPTAKE_S = 24 * 3600.0
WEIGHT_KG = (1.0, 400.0)
CLOCKS_AGREE_S = 5.0


class Suv(NamedTuple):
    """SUV per image unit, None if it cannot be known; ``reason`` says why."""

    factor: float | None
    reason: str = ""


def suv_factor(head: Any) -> Suv:
    """What a Bq/mL voxel is multiplied by to give SUV (g/mL).

    Args:
        head: header of the series' first file, as pydicom reads it.
    """
    if head.get("Units") == "GML":
        by_weight = head.get("SUVType") in (None, "", "BW")
        return Suv(1.0) if by_weight else Suv(None, "SUV by another measure than body weight")
    if head.get("Units") != "BQML":
        return Suv(None, "the unit is not Bq/mL")
    drug = (head.get("RadiopharmaceuticalInformationSequence") or [{}])[0]
    weight_kg = _number(head.get("PatientWeight"))
    dose_bq = _number(drug.get("RadionuclideTotalDose"))
    half_life_s = _number(drug.get("RadionuclideHalfLife"))
    if weight_kg is None or not WEIGHT_KG[0] <= weight_kg <= WEIGHT_KG[1]:
        return Suv(None, "no plausible weight")
    if dose_bq is None or not 1e6 <= dose_bq <= 2e9:
        return Suv(None, "no plausible dose in Bq")
    if half_life_s is None or half_life_s <= 0:
        return Suv(None, "no half-life")
    decayed = _decayed(head, drug, half_life_s)
    if isinstance(decayed, str):
        return Suv(None, decayed)
    return Suv(weight_kg * 1000 / (dose_bq * decayed))


def _decayed(head: Any, drug: Any, half_life_s: float) -> float | str:
    """Share of the dose left at the time the image is corrected to, or why it is not known."""
    correction = head.get("DecayCorrection")
    if correction == "ADMIN":
        return 1.0
    if correction != "START":
        return "decay correction is neither to the start nor to the administration"
    injected = _moment(drug.get("RadiopharmaceuticalStartDateTime")) or _on_day(
        head.get("SeriesDate"), drug.get("RadiopharmaceuticalStartTime")
    )
    started = _on_day(head.get("SeriesDate"), head.get("SeriesTime"))
    if injected is None or started is None:
        return "no times of injection and series"
    measured = _on_day(head.get("AcquisitionDate"), head.get("AcquisitionTime"))
    if measured is not None and (started - measured).total_seconds() > CLOCKS_AGREE_S:
        return "the series is dated after its acquisition, so its time is no start of the scan"
    uptake_s = (started - injected).total_seconds()
    if not 0 <= uptake_s <= LONGEST_UPTAKE_S:
        return f"the clocks put the injection {-uptake_s / 60:.0f} min after the series start"
    return float(2 ** (-uptake_s / half_life_s))


def _on_day(day: Any, time: Any) -> datetime | None:
    return _moment(f"{day or ''}{time or ''}") if day and time else None


def _moment(text: Any) -> datetime | None:
    """``20180824120544.00`` as a time."""
    digits = str(text or "").partition(".")[0].partition("+")[0]
    try:
        return datetime.strptime(digits[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
