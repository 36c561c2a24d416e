"""Dose, half-life, unit and names of a PET, from its sidecar; nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mfdiff_core.faults import fault
from mfdiff_core.scans.frames import Decay

PLAUSIBLE_MBQ = (1.0, 2000.0)
_IN_MBQ = {"bq": 1e-6, "kbq": 1e-3, "mbq": 1.0}
_AGREE = 0.01
_LONGEST_TRACER = 60


@dataclass(frozen=True)
class Dose:
    """Injected activity, where it was found, and what contradicts it."""

    mbq: float
    source: str
    notes: tuple[str, ...] = ()


def injected_dose(sidecar: Mapping[str, Any], where: object) -> Dose | None:
    """The injected dose; None where there is none.

    ``RadionuclideTotalDose`` (Bq) comes from the scanner's own header and goes first:
    ``InjectedRadioactivity`` was typed in afterwards, in at least one public set for the wrong
    subjects.

    Raises:
        InputFault: a dose that is not plausible, as of MBq where Bq is meant.
    """
    header = _number(sidecar.get("RadionuclideTotalDose"))
    typed = _typed(sidecar)
    if header is not None:
        mbq = _plausible(header * 1e-6, "RadionuclideTotalDose", "Bq", where)
        notes: tuple[str, ...] = ()
        if typed is not None and abs(typed / mbq - 1) > _AGREE:
            notes = (f"InjectedRadioactivity says {typed:.1f} MBq; the header's dose is used",)
        return Dose(mbq, "RadionuclideTotalDose", notes)
    if typed is None:
        return None
    unit = _unit(sidecar, "InjectedRadioactivity")
    mbq = _plausible(typed, "InjectedRadioactivity", unit, where)
    return Dose(mbq, "InjectedRadioactivity")


def decay(sidecar: Mapping[str, Any]) -> Decay:
    """Half-life and decay correction as the sidecar states them; corrected unless it denies it."""
    corrected = sidecar.get("ImageDecayCorrected")
    half_life = _number(sidecar.get("RadionuclideHalfLife"))
    return Decay(half_life if half_life and half_life > 0 else None, corrected is not False)


def image_unit(sidecar: Mapping[str, Any]) -> str:
    """Unit of the voxels, under the key of today or of yesterday; empty if it is not stated."""
    return str(sidecar.get("Units") or sidecar.get("Unit") or "")


def plain_name(stated: Any) -> str:
    """A tracer or protocol as the files name it, in letters that fit a model card; "" if none."""
    return " ".join(re.sub(r"[^\w\[\]()^+., -]", " ", str(stated or "")).split())[:_LONGEST_TRACER]


def _typed(sidecar: Mapping[str, Any]) -> float | None:
    value = _number(sidecar.get("InjectedRadioactivity"))
    factor = _IN_MBQ.get(_unit(sidecar, "InjectedRadioactivity").lower())
    return None if value is None or factor is None else value * factor


def _unit(sidecar: Mapping[str, Any], key: str) -> str:
    return str(sidecar.get(f"{key}Units") or sidecar.get(f"{key}Unit") or "")


def _plausible(mbq: float, key: str, unit: str, where: object) -> float:
    low, high = PLAUSIBLE_MBQ
    if not low <= mbq <= high:
        raise fault("dose", where, mbq=f"{mbq:.4g}", key=key, unit=unit)
    return mbq


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
