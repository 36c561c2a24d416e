"""A table of NIfTI pairs: subject, setting, lpet, mr, spet, and the dose where it is known."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mfdiff_core.data.nifti import read_volume
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import InputFault
from mfdiff_core.faults import fault
from mfdiff_core.scans.dose import PLAUSIBLE_MBQ
from mfdiff_core.scans.pairing import PairedScan

COLUMNS = ("subject", "setting", "lpet", "mr", "spet")
DOSE = "dose_mbq"


@dataclass(frozen=True)
class TableScan:
    """The rows of one subject that share a SPET and an MR."""

    subject: str
    row: int
    spet: Path
    mr: Path
    lpets: Mapping[str, Path]
    dose_mbq: float

    def read(self) -> PairedScan:
        """All images of the scan.

        Raises:
            InputFault: an image cannot be used, or LPET and SPET lie on different grids.
        """
        spet, mr = read_volume(self.spet, "pet"), read_volume(self.mr, "mr")
        lpets = {setting: read_volume(path, "pet") for setting, path in self.lpets.items()}
        for setting, lpet in lpets.items():
            _check_grid(self.lpets[setting], lpet, spet)
        notes = tuple(note for image in (spet, *lpets.values(), mr) for note in image.notes)
        source = "" if self.dose_mbq != self.dose_mbq else "table"
        return PairedScan(spet, lpets, mr, self.dose_mbq, source, notes=notes)


def read_table(path: Path) -> tuple[TableScan, ...]:
    """Scans of a CSV file with a header line; paths are relative to the file's folder.

    Raises:
        InputFault: the file is missing or no such table; names the row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            columns = reader.fieldnames or []
    except FileNotFoundError:
        raise fault("missing-file", path) from None
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise fault("table", path, reason=f"cannot be read as CSV ({reason})") from None
    missing = [name for name in COLUMNS if name not in columns]
    if missing or not rows:
        wanted = f"a row per pair with columns {', '.join(COLUMNS)} is needed"
        lacks = f"; {', '.join(missing)} is missing" if missing else "; there are no rows"
        raise fault("table", path, reason=wanted + lacks)
    return _scans(path, rows)


def _scans(path: Path, rows: list[dict[str, str]]) -> tuple[TableScan, ...]:
    scans: dict[tuple[str, str, str], TableScan] = {}
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, start=2):
        empty = [name for name in COLUMNS if not (row.get(name) or "").strip()]
        if empty:
            raise _refused(path, number, f"{', '.join(empty)} is empty; fill it in")
        subject, setting, lpet, mr, spet = (row[name].strip() for name in COLUMNS)
        if (subject, setting) in seen:
            raise _refused(path, number, "subject and setting stand there twice; keep one row")
        seen.add((subject, setting))
        known = scans.get((subject, mr, spet))
        lpets = {**(known.lpets if known else {}), setting: path.parent / lpet}
        dose_mbq = known.dose_mbq if known else _dose(path, number, row.get(DOSE))
        first = known.row if known else number
        scans[subject, mr, spet] = TableScan(
            subject, first, path.parent / spet, path.parent / mr, lpets, dose_mbq
        )
    return tuple(scans.values())


def _dose(path: Path, number: int, text: str | None) -> float:
    if not (text or "").strip():
        return float("nan")
    try:
        mbq = float(str(text))
    except ValueError:
        raise _refused(path, number, f"{DOSE} is no number; give MBq, or leave it empty") from None
    if not PLAUSIBLE_MBQ[0] <= mbq <= PLAUSIBLE_MBQ[1]:
        raise fault("dose", f"{path}: row {number}", mbq=f"{mbq:.4g}", key=DOSE, unit="MBq")
    return mbq


def _refused(path: Path, number: int, reason: str) -> InputFault:
    return fault("table", f"{path}: row {number}", reason=reason)


def _check_grid(path: Path, lpet: Volume, spet: Volume) -> None:
    if not lpet.same_grid(spet):
        same = lpet.data.shape == spet.data.shape
        detail = "their affines differ" if same else f"{lpet.data.shape}, {spet.data.shape}"
        raise fault("grids-differ", path, other="its SPET", detail=detail)
