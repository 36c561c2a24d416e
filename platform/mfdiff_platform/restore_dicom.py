"""Restore a DICOM series: a derived series that keeps its patient, and a page that names none."""

from __future__ import annotations

from pathlib import Path

import mfdiff_core
from mfdiff_core.data.nifti import write_volume
from mfdiff_core.scans.derived import write_derived
from mfdiff_core.scans.dicom import check_units, find_series, identity, only
from mfdiff_core.scans.dicom_pairs import choose_mr, read_pet
from mfdiff_core.scans.pseudonyms import pseudonym
from mfdiff_core.scans.suv import suv_factor
from mfdiff_platform.restoration import RestoredScan, Restorer
from mfdiff_platform.restore_page import write_scan_page

SERIES, PAGE, SPREAD = "restored", "restored.html", "uncertainty.nii.gz"


def restore_dicom(
    pet: Path, mr: Path, out: Path, restorer: Restorer, salt: bytes
) -> tuple[RestoredScan, str]:
    """Restore the PET of one folder with the MR of another (or the same) into ``out``.

    Args:
        pet: folder with one PT series.
        mr: folder with the T1.
        out: gets the folder ``restored`` with the derived series, a page, and with several
            samples their standard deviation as NIfTI.
        restorer: the model.
        salt: of the pseudonym, by which the page calls the patient.

    Returns:
        What was restored, and the pseudonym.

    Raises:
        InputFault: a series is missing, incomplete or not in activity units.
    """
    series = only(find_series(pet), "PT", pet)
    t1 = choose_mr(find_series(mr))
    unit = check_units(series)
    subject = pseudonym(salt, f"dicom/{identity(series.first)}")
    lpet = read_pet(series)
    suv = suv_factor(series.first)
    notes = () if suv.factor is not None else (f"no SUV: {suv.reason}",)
    done = restorer.restore(lpet, t1.volume(), f"Restoring {subject}", notes)
    if restorer.options.samples and restorer.options.samples > 1:
        write_volume(out / SPREAD, done.result.spread)
    title, model = f"Subject {subject}", restorer.model_name
    write_scan_page(out / PAGE, title, model, done, unit, suv.factor)
    version = mfdiff_core.__version__
    write_derived(out / SERIES, series, done.result.pet, key=restorer.key, version=version)
    return done, subject
