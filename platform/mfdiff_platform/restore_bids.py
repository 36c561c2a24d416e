"""Restore a BIDS dataset, participant by participant, into BIDS derivatives.

Participants keep their labels, which are BIDS's own pseudonyms. Finished ones are skipped, and one
that cannot be used does not stop the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mfdiff_core
from mfdiff_core.data.nifti import check_present, read_volume, write_volume
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import DataError, InputFault
from mfdiff_core.files import read_json, write_json
from mfdiff_core.scans.bids import BidsScan, entities, find_scans, labels, sidecar
from mfdiff_core.scans.dynamic import DynamicPet, open_bids_pet
from mfdiff_core.scans.frames import Window, choose
from mfdiff_platform.progress import say
from mfdiff_platform.restoration import Restorer
from mfdiff_platform.restore_page import write_scan_page

DESCRIPTION = "dataset_description.json"
_KEPT = (
    "Modality", "Manufacturer", "ManufacturersModelName", "TracerName", "TracerRadionuclide",
    "RadionuclideHalfLife", "ModeOfAdministration", "ImageDecayCorrected",
    "ImageDecayCorrectionTime", "AttenuationCorrection", "ReconMethodName", "ReconFilterType",
    "ReconFilterSize",
)  # fmt: skip


@dataclass(frozen=True)
class Restored:
    """One session that was restored, or found finished (``skipped``)."""

    stem: str
    image: Path
    skipped: bool
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class BidsResult:
    """What `restore_bids` did; ``refused`` has the fault of each participant left out."""

    done: tuple[Restored, ...]
    refused: Mapping[str, InputFault]


def restore_bids(
    root: Path,
    out: Path,
    restorer: Restorer,
    *,
    asked: Sequence[str] = (),
    window: Window | None = None,
    pet_filter: str = "",
    overwrite: bool = False,
) -> BidsResult:
    """Restore participants of ``root`` into the derivative dataset ``out``.

    Args:
        root: BIDS dataset.
        out: derivative dataset; made, or gone on with.
        restorer: the model.
        asked: participant labels; all by default.
        window: frames of a dynamic PET to average; not needed for a static one.
        pet_filter: see `bids.find_scans`.
        overwrite: restore again what is finished.

    Raises:
        InputFault: no dataset there, or no such participant.
        DataError: ``out`` lies in ``root`` itself or is something else.
    """
    found = labels(root, asked)
    _check_out(root, out)
    done: list[Restored] = []
    refused: dict[str, InputFault] = {}
    for label in found:
        try:
            for scan in find_scans(root, label, pet_filter):
                done.append(_one(scan, out, restorer, window, overwrite))
        except InputFault as fault:
            refused[f"sub-{label}"] = fault
            say(f"sub-{label} left out: {fault}")
    return BidsResult(tuple(done), refused)


def _check_out(root: Path, out: Path) -> None:
    if out.resolve() == root.resolve():
        raise DataError(f"{out}: results would mix with the source; choose another folder")
    if not (out / DESCRIPTION).is_file():
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out}: not empty and no BIDS derivative; choose another folder")
        return
    if read_json(out / DESCRIPTION).get("DatasetType") != "derivative":
        raise DataError(f"{out}: a BIDS dataset, but no derivative; choose another folder")


def _one(
    scan: BidsScan, out: Path, restorer: Restorer, window: Window | None, overwrite: bool
) -> Restored:
    image = out / scan.folder / "pet" / f"{_name(scan)}_desc-restored_pet.nii.gz"
    meta = image.with_name(image.name.replace(".nii.gz", ".json"))
    key = [*restorer.key, "" if window is None else f"{window.start_s:g}:{window.end_s:g}"]
    if not overwrite and image.is_file() and meta.is_file():
        written = read_json(meta)
        if written.get("RestorationKey") == key:
            return Restored(scan.stem, image, True, written.get("Restoration", {}))
    check_present(scan.t1)
    pet = open_bids_pet(scan)
    lpet = _lpet(pet, window)
    mr = read_volume(scan.t1, "mr")
    result = restorer.restore(lpet, mr, f"Restoring {scan.stem}", pet.notes)
    _describe(out)
    meta.unlink(missing_ok=True)  # written last, it says that all is there
    page = out / f"{scan.stem}.html"
    write_scan_page(page, scan.stem, restorer.model_name, result, pet.unit)
    if restorer.options.samples and restorer.options.samples > 1:
        spread = image.with_name(image.name.replace("desc-restored", "desc-restoredSD"))
        write_volume(spread, result.result.spread)
    values = _sidecar(scan, pet, lpet, window) | {
        "Description": "Low-dose PET restored with the help of its MR; research use only",
        "RestorationModel": restorer.model_name,
        "RestorationKey": key,
        "Restoration": result.summary(),
    }
    write_volume(image, result.result.pet)
    write_json(meta, values)
    return Restored(scan.stem, image, False, result.summary())


def _lpet(pet: DynamicPet, window: Window | None) -> Volume:
    if window is None:
        return pet.only_image()
    return pet.average({"LPET": choose(pet.frames, window, pet.where)})["LPET"]


def _name(scan: BidsScan) -> str:
    """The PET's entities; those of the run only where there is one run."""
    parts = entities(scan.pets[0].name)
    if len(scan.pets) > 1:
        parts.pop("run", None)
    return "_".join(f"{key}-{value}" for key, value in parts.items())


def _sidecar(
    scan: BidsScan, pet: DynamicPet, lpet: Volume, window: Window | None
) -> dict[str, Any]:
    """What of the source's sidecar stays true, and names no person, place or day."""
    source = sidecar(scan.root, scan.pets[0])
    values = {key: source[key] for key in _KEPT if key in source}
    values["Sources"] = [f"bids:raw:{path.relative_to(scan.root).as_posix()}" for path in scan.pets]
    if pet.unit:
        values["Units"] = pet.unit
    if pet.dose is not None:
        values |= {"InjectedRadioactivity": pet.dose.mbq, "InjectedRadioactivityUnits": "MBq"}
    if window is not None:
        chosen = choose(pet.frames, window, pet.where)
        values["FrameTimesStart"] = [chosen[0].start_s]
        values["FrameDuration"] = [sum(frame.duration_s for frame in chosen)]
    return values


def _describe(out: Path) -> None:
    if (out / DESCRIPTION).is_file():
        return
    values = {
        "Name": "Restored PET",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "mfdiff-platform", "Version": mfdiff_core.__version__}],
    }
    write_json(out / DESCRIPTION, values)
