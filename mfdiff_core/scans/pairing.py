"""From a dynamic PET and its MR to low-dose and standard-dose images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mfdiff_core.data.volumes import Volume
from mfdiff_core.faults import fault
from mfdiff_core.scans.dynamic import DynamicPet
from mfdiff_core.scans.frames import Window, central, choose
from mfdiff_core.scans.pairing_config import PairingConfig, Rule
from mfdiff_core.scans.registration import Registration, register
from mfdiff_core.scans.timing import Frame

ULTRA_LOW_DOSE_MBQ = 180.0
"""Header dose up to which a scan of ds002898 counts as ultra-low dose; one subject has 167.6."""

PROTOCOLS = {"B": "bolus", "I": "infusion", "BI": "hybrid"}
"""Column ``group`` of ds003397 to setting."""

SPET = "SPET"
_COVERED = 0.95


@dataclass(frozen=True)
class PairedScan:
    """LPETs by setting, SPET and MR of one session, in one space.

    Attributes:
        spet: standard-dose PET.
        lpets: low-dose PET by setting.
        mr: the MR, moved to the PET (or the other way round for ``grid: mr``).
        dose_mbq: injected dose, NaN if unknown.
        dose_source: where the dose was found.
        frames: all frames of the PET; ``used`` are those of each image by name.
        notes: what a physicist should know.
        tracer: as the files name it, empty if unknown.
        protocol: how it was given, such as ``bolus``; empty if unknown.
    """

    spet: Volume
    lpets: Mapping[str, Volume]
    mr: Volume
    dose_mbq: float = float("nan")
    dose_source: str = ""
    frames: tuple[Frame, ...] = ()
    used: Mapping[str, tuple[Frame, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tracer: str = ""
    protocol: str = ""


def pair(
    pet: DynamicPet, mr: Volume, config: PairingConfig, columns: Mapping[str, str]
) -> PairedScan:
    """Windows of a dynamic PET as LPETs and SPET; not registered yet.

    Args:
        pet: all its frames.
        mr: the T1.
        config: which windows.
        columns: the participant's columns, for the rule "group".

    Raises:
        InputFault: no dose, no group, or frames that do not cover a window.
    """
    if pet.dose is None and not config.without_dose:
        raise fault("no-dose", pet.where)
    if not pet.frames:
        raise fault("no-times", pet.where)
    used = {SPET: choose(pet.frames, config.window, pet.where)}
    for name, duration_s in config.lpet_s.items():
        setting = _setting(name, config.rule, pet, columns)
        used[setting] = central(pet.frames, config.window, duration_s, pet.where)
    images = pet.average(used)
    notes = (*pet.notes, *_coverage(used[SPET], config.window), *images[SPET].notes, *mr.notes)
    if pet.decay.half_life_s is None:
        notes = (*notes, "no half-life: frames averaged by their duration alone")
    return PairedScan(
        spet=images.pop(SPET),
        lpets=images,
        mr=mr,
        dose_mbq=pet.dose.mbq if pet.dose else float("nan"),
        dose_source=pet.dose.source if pet.dose else "",
        frames=pet.frames,
        used=used,
        notes=notes,
        tracer=pet.tracer,
        protocol=_group(columns) or pet.protocol,
    )


def registered(scan: PairedScan, config: PairingConfig) -> tuple[PairedScan, Registration]:
    """The scan with MR and PET brought together, once for all its images.

    What moves is what the slices are not cut from: the MR for ``grid: pet``, else the PET.

    Raises:
        InputFault: registration went astray.
        DataError: SimpleITK is missing.
    """
    found = register(scan.spet, scan.mr)
    if found.note:
        scan = replace(scan, notes=(*scan.notes, found.note))
    if config.grid == "pet":
        return replace(scan, mr=scan.mr.moved(found.matrix)), found
    back = np.linalg.inv(found.matrix).astype(np.float64)
    lpets = {name: lpet.moved(back) for name, lpet in scan.lpets.items()}
    return replace(scan, spet=scan.spet.moved(back), lpets=lpets), found


def _setting(name: str, rule: Rule, pet: DynamicPet, columns: Mapping[str, str]) -> str:
    if rule == "time":
        return name
    if rule == "dose":
        if pet.dose is None:
            raise fault("no-dose", pet.where)
        return "uld" if pet.dose.mbq <= ULTRA_LOW_DOSE_MBQ else "ld"
    protocol = _group(columns)
    if not protocol:
        raise fault("no-group", pet.where)
    return protocol


def _group(columns: Mapping[str, str]) -> str:
    """Protocol by the participant's group; empty without one."""
    return PROTOCOLS.get(columns.get("group", "").strip().upper(), "")


def _coverage(frames: tuple[Frame, ...], window: Window) -> tuple[str, ...]:
    covered = sum(frame.duration_s for frame in frames) / window.duration_s
    if covered >= _COVERED:
        return ()
    return (f"frames cover {covered:.0%} of the SPET's window ({len(frames)} frames)",)
