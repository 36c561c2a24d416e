"""PT and MR series of one patient as a pair: one dynamic PET, or a short and a long one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mfdiff_core.data.image_checks import without_negatives
from mfdiff_core.data.volumes import Volume
from mfdiff_core.faults import fault
from mfdiff_core.scans.dicom import DicomSeries, check_units, only
from mfdiff_core.scans.dose import Dose, decay, injected_dose, plain_name
from mfdiff_core.scans.dynamic import DynamicPet
from mfdiff_core.scans.pairing import PairedScan, pair
from mfdiff_core.scans.pairing_config import PairingConfig
from mfdiff_core.scans.timing import Timing, clock_s, in_order

_T1_WORDS = ("t1", "mprage", "bravo", "tfl3d")


def read_pair(series: Sequence[DicomSeries], config: PairingConfig) -> PairedScan:
    """LPETs, SPET and MR of one patient.

    Raises:
        InputFault: no pair can be made of the series, or one cannot be read.
    """
    t1 = choose_mr(series)
    pets = corrected([each for each in series if each.modality == "PT"])
    dynamic = [each for each in pets if each.num_frames > 1]
    if dynamic:
        pet = open_dynamic(only(dynamic, "PT", "DICOM folder"))
        return pair(pet, t1.volume(), config, {})
    return _static(pets, t1, config)


def choose_mr(series: Sequence[DicomSeries]) -> DicomSeries:
    """The MR to use: the only one, or the only one that calls itself T1.

    Raises:
        InputFault: none, or several that could be meant.
    """
    found = [each for each in series if each.modality == "MR"]
    if not found:
        raise fault("no-mr", "DICOM folder")
    named = [each for each in found if any(word in _names(each) for word in _T1_WORDS)]
    return only(named if len(found) > 1 and named else found, "MR", "DICOM folder")


def corrected(pets: Sequence[DicomSeries]) -> list[DicomSeries]:
    """Attenuation-corrected series, where the headers tell them from others."""
    with_attenuation = [e for e in pets if "ATTN" in (e.first.get("CorrectedImage") or [])]
    return with_attenuation or list(pets)


def read_pet(series: DicomSeries) -> Volume:
    """A static PET, its unit checked, small negatives set to 0.

    Raises:
        InputFault: it cannot be used.
    """
    check_units(series)
    volume = series.volume()
    data, notes = without_negatives(series.where, volume.data)
    return Volume(data, volume.affine, volume.header, notes)


def open_dynamic(series: DicomSeries) -> DynamicPet:
    """A dynamic series with the times of its frames.

    Raises:
        InputFault: unit, times or dose that cannot be used.
    """
    unit, facts = check_units(series), _facts(series)
    clocks = [clock_s(frame[0].get("AcquisitionTime")) for frame in series.heads]
    durations = [_duration_s(frame[0]) for frame in series.heads]
    known = [clock for clock in clocks if clock is not None]
    if len(known) < len(clocks) or not all(durations):
        raise fault("no-times", series.where)
    starts = tuple((clock - known[0]) % 86_400 for clock in known)
    frames = in_order([Timing(starts, tuple(durations))], series.where)
    dose = injected_dose(facts, series.where)
    tracer = plain_name(facts["TracerName"])
    return DynamicPet((series,), frames, decay(facts), dose, unit, series.where, tracer=tracer)


def _static(pets: Sequence[DicomSeries], t1: DicomSeries, config: PairingConfig) -> PairedScan:
    """The longest PET is the SPET; shorter ones of the same frame of reference are LPETs."""
    by_length = sorted(pets, key=lambda each: _duration_s(each.first))
    if len(by_length) < 2:
        raise fault("no-pair", "DICOM folder", reason=f"{len(by_length)} static PET series")
    long = by_length.pop()
    place = long.first.get("FrameOfReferenceUID")
    short = [each for each in by_length if each.first.get("FrameOfReferenceUID") == place]
    lengths = [f"{_duration_s(each.first):g}s" for each in [*short, long]]
    if not short or len(set(lengths)) < len(lengths):
        shown = ", ".join(lengths)
        reason = f"PET series of {shown} in one frame of reference"
        raise fault("no-pair", "DICOM folder", reason=reason)
    dose = injected_dose(_facts(long), long.where)
    if dose is None and not config.without_dose:
        raise fault("no-dose", long.where)
    return _paired(long, dict(zip(lengths, short, strict=False)), t1, dose)


def _paired(
    long: DicomSeries, short: dict[str, DicomSeries], t1: DicomSeries, dose: Dose | None
) -> PairedScan:
    spet, mr = read_pet(long), t1.volume()
    lpets = {setting: read_pet(each) for setting, each in short.items()}
    for setting, lpet in lpets.items():
        if not lpet.same_grid(spet):
            detail = f"{lpet.data.shape} voxels against {spet.data.shape}"
            raise fault("grids-differ", short[setting].where, other=long.where, detail=detail)
    notes = tuple(note for image in (spet, *lpets.values()) for note in image.notes)
    mbq, source = (dose.mbq, dose.source) if dose else (float("nan"), "")
    tracer = plain_name(_facts(long)["TracerName"])
    return PairedScan(spet, lpets, mr, mbq, source, notes=notes, tracer=tracer)


def _facts(series: DicomSeries) -> dict[str, Any]:
    """What a sidecar would say."""
    drugs = series.first.get("RadiopharmaceuticalInformationSequence") or [{}]
    return {
        "RadionuclideTotalDose": drugs[0].get("RadionuclideTotalDose"),
        "RadionuclideHalfLife": drugs[0].get("RadionuclideHalfLife"),
        "TracerName": drugs[0].get("Radiopharmaceutical"),
        "ImageDecayCorrected": series.first.get("DecayCorrection") != "NONE",
    }


def _duration_s(head: Any) -> float:
    """ActualFrameDuration, which DICOM has in ms; 0 where it is not stated."""
    try:
        return float(head.get("ActualFrameDuration", 0) or 0) / 1000
    except (TypeError, ValueError):
        return 0.0


def _names(series: DicomSeries) -> str:
    keys = ("SeriesDescription", "ProtocolName", "SequenceName")
    return " ".join(str(series.first.get(key, "")) for key in keys).lower()
