"""BIDS folders: participants, PET series and T1, sidecars by inheritance. No index, no library.

Only folders of the participants asked for are looked into, so a large dataset costs nothing.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfdiff_core.data.nifti import check_present
from mfdiff_core.faults import fault

_SUFFIXES = (".nii.gz", ".nii")
_UNCORRECTED = "nac"  # reconstructions without attenuation correction: rec-nacdyn, rec-nacstat
_DYNAMIC = "acdyn"
_SHOWN_LABELS = 12


@dataclass(frozen=True)
class BidsScan:
    """One session of one participant: the runs of its PET in order, and its T1.

    Attributes:
        root: the dataset.
        label: the participant, without ``sub-``.
        session: without ``ses-``; empty where there are no sessions.
        pets: the runs of one PET series.
        t1: the MR.
        columns: the participant's row of participants.tsv.
        notes: what was chosen among several.
    """

    root: Path
    label: str
    session: str
    pets: tuple[Path, ...]
    t1: Path
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """``sub-01`` or ``sub-01_ses-02``: how its derivatives are called."""
        return f"sub-{self.label}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def folder(self) -> Path:
        """``sub-01`` or ``sub-01/ses-02``, relative to a dataset."""
        return Path(*self.stem.split("_"))


def labels(root: Path, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Participant labels of a dataset, or those ``asked`` for, with or without ``sub-``.

    Raises:
        InputFault: there are no participants, or not that one.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.name.startswith("sub-"))
    except FileNotFoundError:
        raise fault("missing-file", root) from None
    except OSError as reason:
        raise fault("unreadable", root, reason=reason.strerror) from None
    found = [name[4:] for name in names if (root / name).is_dir()]
    if not found:
        raise fault("no-bids", root)
    wanted = [label.removeprefix("sub-") for label in asked] or found
    for label in wanted:
        if label not in found:
            some = ", ".join(found[:_SHOWN_LABELS]) + (" ..." if len(found) > _SHOWN_LABELS else "")
            raise fault("no-subject", f"{root}: sub-{label}", labels=some)
    return tuple(dict.fromkeys(wanted))


def participants(root: Path) -> dict[str, dict[str, str]]:
    """Rows of participants.tsv by label; empty where there is none.

    Raises:
        InputFault: it is there and cannot be read.
    """
    path = root / "participants.tsv"
    if not path.is_symlink() and not path.exists():
        return {}
    check_present(path)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return {
        str(row.get("participant_id", "")).removeprefix("sub-"): {
            str(key): str(value).strip() for key, value in row.items() if key
        }
        for row in rows
    }


def find_scans(
    root: Path, label: str, pet_filter: str = "", columns: Mapping[str, str] | None = None
) -> tuple[BidsScan, ...]:
    """The sessions of a participant that have a PET.

    Args:
        root: the dataset.
        label: without ``sub-``.
        pet_filter: entities that the PET's name must have, such as ``rec-acdyn``.
        columns: its row of participants.tsv.

    Raises:
        InputFault: no PET, several series, or no MR.
    """
    home = root / f"sub-{label}"
    sessions = sorted(path for path in home.glob("ses-*") if path.is_dir()) or [home]
    chosen = []
    for folder in sessions:
        pets = _series(folder / "pet", pet_filter, home)
        if not pets:
            continue
        session = folder.name.removeprefix("ses-") if folder != home else ""
        t1, notes = _t1(folder, home)
        chosen.append(BidsScan(root, label, session, pets, t1, columns or {}, notes))
    if not chosen:
        raise fault("no-pet", home)
    return tuple(chosen)


def sidecar(root: Path, image: Path) -> dict[str, Any]:
    """Sidecar values of an image: those of outer folders, overruled by inner and closer ones.

    Raises:
        InputFault: one of its sidecars is not JSON.
    """
    own = set(_stem(image.name).split("_"))
    folders = [root, *(root / part for part in _ancestors(root, image.parent))]
    values: dict[str, Any] = {}
    for folder in folders:
        found = [
            path
            for path in folder.glob(f"*{_kind(image.name)}.json")
            if set(path.name.removesuffix(".json").split("_")) <= own
        ]
        for path in sorted(found, key=lambda path: path.name.count("_")):
            values |= _json(path)
    return values


def entities(name: str) -> dict[str, str]:
    """``sub-01_run-2_pet.nii.gz`` as ``{"sub": "01", "run": "2"}``."""
    pairs = (part.partition("-") for part in _stem(name).split("_"))
    return {key: value for key, found, value in pairs if found}


def _series(folder: Path, pet_filter: str, home: Path) -> tuple[Path, ...]:
    """Runs of the one series to use: attenuation corrected, dynamic if there is such a one."""
    asked = set(filter(None, pet_filter.split("_")))
    groups: dict[str, list[Path]] = {}
    for path in _images(folder, "_pet"):
        if asked <= set(_stem(path.name).split("_")):
            groups.setdefault(_series_name(path.name), []).append(path)
    if not pet_filter:
        kept = {n: g for n, g in groups.items() if f"rec-{_UNCORRECTED}" not in n}
        groups = {n: g for n, g in kept.items() if f"rec-{_DYNAMIC}" in n} or kept
    if len(groups) > 1:
        names = sorted(groups)
        raise fault("several-pets", home, names=", ".join(names), example=names[0])
    return tuple(sorted(next(iter(groups.values())), key=_run)) if groups else ()


def _series_name(name: str) -> str:
    """Entities that tell series of one session apart."""
    parts = [f"{k}-{v}" for k, v in entities(name).items() if k not in ("sub", "ses", "run")]
    return "_".join(parts) or "pet"


def _run(path: Path) -> tuple[int, str]:
    run = entities(path.name).get("run", "0")
    return (int(run) if run.isdigit() else 0, path.name)


def _t1(folder: Path, home: Path) -> tuple[Path, tuple[str, ...]]:
    """The session's T1, else one of another session."""
    found = _images(folder / "anat", "_T1w")
    elsewhere = [p for s in sorted(home.glob("ses-*")) for p in _images(s / "anat", "_T1w")]
    found = found or _images(home / "anat", "_T1w") or elsewhere
    if not found:
        raise fault("no-mr", folder)
    notes = (f"first of {len(found)} T1 images used",) if len(found) > 1 else ()
    return found[0], notes


def _images(folder: Path, ending: str) -> list[Path]:
    """Images by name, also those whose content was not fetched."""
    if not folder.is_dir():
        return []
    endings = tuple(ending + suffix for suffix in _SUFFIXES)
    try:
        names = os.listdir(folder)
    except OSError as reason:
        raise fault("unreadable", folder, reason=reason.strerror) from None
    return sorted(folder / name for name in names if name.endswith(endings))


def _stem(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _kind(name: str) -> str:
    return _stem(name).rpartition("_")[2]


def _ancestors(root: Path, folder: Path) -> Iterable[Path]:
    """Folders below ``root`` down to ``folder``, outermost first."""
    relative = folder.relative_to(root)
    return reversed([relative, *list(relative.parents)[:-1]])


def _json(path: Path) -> dict[str, Any]:
    check_present(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as reason:  # not JSON, or not text
        raise fault("sidecar", path, reason=reason) from None
    return values if isinstance(values, dict) else {}
