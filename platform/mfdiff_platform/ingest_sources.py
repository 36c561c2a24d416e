"""Where `ingest` takes people from: each source lists them and reads one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mfdiff_core.data.nifti import check_present, read_volume
from mfdiff_core.files import read_json
from mfdiff_core.scans.bids import BidsScan, find_scans, labels, participants
from mfdiff_core.scans.dicom import Member, build_series, find_members, identity
from mfdiff_core.scans.dicom_pairs import read_pair
from mfdiff_core.scans.dynamic import open_bids_pet
from mfdiff_core.scans.pair_table import TableScan, read_table
from mfdiff_core.scans.pairing import PairedScan, pair
from mfdiff_core.scans.pairing_config import PairingConfig


@dataclass(frozen=True)
class Person:
    """One subject to take in.

    Attributes:
        identity: who it is, for the pseudonym; written nowhere.
        name: what the source calls it, for messages on the terminal alone.
        read: its scans, read when asked for.
    """

    identity: str
    name: str
    read: Callable[[PairingConfig], Sequence[PairedScan]]


def bids_people(root: Path, asked: Sequence[str] = (), pet_filter: str = "") -> list[Person]:
    """Participants of a BIDS dataset.

    Raises:
        InputFault: no dataset there, or no such participant.
    """
    found = labels(root, asked)
    columns = participants(root)
    dataset = _dataset_name(root)

    def person(label: str) -> Person:
        def read(config: PairingConfig) -> list[PairedScan]:
            scans = find_scans(root, label, pet_filter, columns.get(label))
            return [_read_bids(scan, config) for scan in scans]

        return Person(f"bids/{dataset}/{label}", f"sub-{label}", read)

    return [person(label) for label in found]


def table_people(path: Path) -> list[Person]:
    """Subjects of a table of NIfTI pairs.

    Raises:
        InputFault: the table is not understood.
    """
    scans: dict[str, list[TableScan]] = {}
    for scan in read_table(path):
        scans.setdefault(scan.subject, []).append(scan)

    def person(subject: str) -> Person:
        own = scans[subject]
        return Person(
            f"table/{subject}", f"row {own[0].row}", lambda _: [scan.read() for scan in own]
        )

    return [person(subject) for subject in scans]


def dicom_people(root: Path) -> list[Person]:
    """Patients of a folder of DICOM files.

    Raises:
        InputFault: no PT or MR slices.
    """
    patients: dict[str, list[list[Member]]] = {}
    for members in find_members(root):
        patients.setdefault(identity(members[0][0]), []).append(members)

    def person(number: int, who: str) -> Person:
        def read(config: PairingConfig) -> list[PairedScan]:
            return [read_pair(build_series(patients[who]), config)]

        return Person(f"dicom/{who}", f"patient {number}", read)

    return [person(number, who) for number, who in enumerate(patients, start=1)]


def _read_bids(scan: BidsScan, config: PairingConfig) -> PairedScan:
    check_present(scan.t1)  # a minute of PET is read before the MR is needed
    pet = open_bids_pet(scan)
    return pair(pet, read_volume(scan.t1, "mr"), config, scan.columns)


def _dataset_name(root: Path) -> str:
    """What tells sub-01 of one dataset from sub-01 of another."""
    path = root / "dataset_description.json"
    values = read_json(path) if path.is_file() else {}
    name = values.get("Name") if isinstance(values, dict) else None
    return str(name or root.resolve().name)
