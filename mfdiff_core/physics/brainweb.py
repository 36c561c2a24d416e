"""Reader of BrainWeb's 20 anatomical models (Cocosco 1997, Aubert-Broche 2006).

A file is a headerless little-endian uint16 array (z, y, x) of 0.5 mm voxels, usually gzipped. Its
values are 16 times the class plus, in some classes, low bits that carry nothing: the class is
``value >> 4``.
"""

from __future__ import annotations

import gzip
import re
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from mfdiff_core.errors import DataError
from mfdiff_core.physics.label_volume import LabelVolume
from mfdiff_core.physics.phantom import Anatomy, Bytes, Floats, Tissue

SHAPE = (362, 434, 362)
VOXEL_MM = 0.5
SUBJECT_IDS = (4, 5, 6, 18, 20, 38, *range(41, 55))

_NUM_BYTES = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2]
_NAMES = (
    (re.compile(r"subject_?(\d\d)\.(bin|raws|raw)(\.gz)?$"), False),
    (re.compile(r"brainWeb_subject_(\d+)\.(raws|raw|bin)(\.gz)?$"), True),  # index, not number
)


def find_brainweb(folder: Path) -> dict[str, Path]:
    """Subject name ("brainweb-04") to file, for every BrainWeb file in ``folder``, sorted.

    Known names: ``subject_04.bin.gz`` (cache of the brainweb package),
    ``brainWeb_subject_0.raws.gz`` (index into `SUBJECT_IDS`), both also unpacked.

    Raises:
        DataError: the folder does not exist, or no such file is in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of BrainWeb files")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = _subject_name(path.name)
        if name is not None:
            found.setdefault(name, path)
    if not found:
        raise DataError(
            f"{folder}: no BrainWeb files; expected names like subject_04.bin.gz or "
            "brainWeb_subject_0.raws.gz"
        )
    return dict(sorted(found.items()))


def _subject_name(filename: str) -> str | None:
    for pattern, is_index in _NAMES:
        match = pattern.fullmatch(filename)
        if match is None:
            continue
        number = int(match[1])
        if not is_index:
            return f"brainweb-{number:02d}"
        if number < len(SUBJECT_IDS):
            return f"brainweb-{SUBJECT_IDS[number]:02d}"
    return None


def read_brainweb(path: Path) -> Bytes:
    """`Tissue` codes [362, 434, 362] on axes (z, y, x): up, to the front, to the right.

    Raises:
        DataError: the file is missing, a truncated or damaged gzip, of the wrong size, or holds
            values that are no BrainWeb class.
    """
    raw = _unpacked(path)
    if len(raw) != _NUM_BYTES:
        raise DataError(
            f"{path}: {len(raw)} bytes unpacked, but a BrainWeb model has {_NUM_BYTES} "
            f"({' x '.join(map(str, SHAPE))} uint16)"
        )
    values = np.frombuffer(raw, "<u2")
    if values.max() >> 4 > max(Tissue):
        unknown = np.unique(values[values >> 4 > max(Tissue)])[:5]
        raise DataError(f"{path}: values {unknown.tolist()} are no BrainWeb class (0 to 11, x 16)")
    labels = (values >> 4).astype(np.uint8).reshape(SHAPE)
    if not (labels == Tissue.GREY).any():
        raise DataError(f"{path}: holds no grey matter; is it a BrainWeb label volume?")
    return labels


def _unpacked(path: Path) -> bytes:
    try:
        packed = path.read_bytes()
        return gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault})") from fault
    except (EOFError, zlib.error) as fault:
        raise DataError(f"{path}: truncated or damaged gzip ({fault})") from fault


def brainweb_anatomy(path: Path, z_mm: Floats) -> Anatomy:
    """Slices of a BrainWeb subject at heights ``z_mm`` above the centre of its volume."""
    return _volume(path).anatomy(z_mm)


@lru_cache(maxsize=1)
def _volume(path: Path) -> LabelVolume:
    """Kept because every worker simulates a subject's slices in one go, and settings share it."""
    return LabelVolume(read_brainweb(path), (VOXEL_MM, VOXEL_MM, VOXEL_MM))
