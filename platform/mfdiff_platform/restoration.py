"""Restore NIfTI files with a bundle, showing progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mfdiff_core.bundle import load_bundle
from mfdiff_core.data.nifti import read_volume, write_volume
from mfdiff_core.evaluation.regions import activity_ratio
from mfdiff_core.restore import restore_volume
from mfdiff_platform.progress import task


@dataclass(frozen=True)
class Restoration:
    """What was done to a scan: slices restored, activity kept, notes on the input."""

    slices: int
    activity_ratio: float
    notes: tuple[str, ...]


def restore_files(bundle_dir: Path, pet: Path, mr: Path, out: Path, seed: int) -> Restoration:
    """Read PET and MR, restore, and write ``out`` on the PET's grid.

    Raises:
        DataError: an input file or the bundle is unusable; says which and what to do.
    """
    bundle = load_bundle(bundle_dir)
    lpet, t1 = read_volume(pet, "pet"), read_volume(mr, "mr")
    with task(f"Restoring {pet.name}", max(lpet.data.shape)) as shown:
        restored = restore_volume(bundle, lpet, t1, seed=seed, on_slice=shown.progress)
    write_volume(out, restored.pet)
    ratio = activity_ratio(restored.pet.data, lpet.data)
    return Restoration(restored.restored_slices, ratio, (*lpet.notes, *t1.notes))
