"""A zip file that carries files between sites: written with hashes, read with suspicion.

``archive.json`` comes first and lists every file with its size and SHA-256; files of equal content
lie in the zip once. Reading takes nothing on trust: only listed plain files of harmless kinds,
below the target folder, of the size and hash that the list says, and no more than fits the disk.
There is nothing in it that anybody would execute or unpickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from mfdiff_core.errors import DataError
from mfdiff_core.files import atomic_path, sha256_file

LIST = "archive.json"
FORMAT = 1
KINDS = frozenset({".json", ".yaml", ".txt", ".csv", ".png", ".webp", ".safetensors"})
"""File types that travel; what a browser or a loader would execute is made anew on arrival."""

MAX_FILES = 100_000
MAX_BYTES = 200 * 2**30
MAX_LIST_BYTES = 64 * 2**20
_MAX_NAME = 500
_CHUNK = 2**20


@dataclass(frozen=True)
class Archive:
    """An archive that was read and checked.

    Attributes:
        facts: what its writer said about it; JSON values.
        files: where its files are now, by their names in the archive.
    """

    facts: dict[str, Any]
    files: dict[str, Path]

    def below(self, folder: str) -> dict[str, Path]:
        """Files of ``folder``, named relative to it."""
        start = f"{folder}/"
        return {name[len(start) :]: p for name, p in self.files.items() if name.startswith(start)}


def write_archive(
    path: Path, kind: str, facts: Mapping[str, Any], files: Mapping[str, Path]
) -> None:
    """Write ``files`` by name to the zip ``path``, all or nothing.

    Args:
        path: the file to write.
        kind: what it is, checked when it is read.
        facts: JSON values that describe it.
        files: plain files of `KINDS` by their names inside.

    Raises:
        DataError: a file is a link or of a kind that does not travel.
    """
    for name, source in files.items():
        _check_name(name)
        if source.is_symlink() or not source.is_file():
            raise DataError(f"{source}: not a plain file, so it cannot be exported")
    listed = {
        name: {"bytes": source.stat().st_size, "sha256": sha256_file(source)}
        for name, source in files.items()
    }
    described = {"format": FORMAT, "kind": kind, "facts": dict(facts), "files": listed}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bag,
    ):
        bag.writestr(LIST, json.dumps(described, indent=1))
        for name in _first_of_each(listed):
            # Weights do not compress; the rest is small.
            weights = name.endswith(".safetensors")
            bag.write(files[name], name, zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED)


@contextmanager
def read_archive(path: Path, kind: str, scratch: Path) -> Iterator[Archive]:
    """Check and unpack an archive into a temporary folder below ``scratch``.

    Raises:
        DataError: not such an archive, damaged, or one that no export would write.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such archive")
    try:
        with zipfile.ZipFile(path) as bag, TemporaryDirectory(dir=scratch) as folder:
            described = _read_list(bag, kind, path)
            listed: dict[str, dict[str, Any]] = described["files"]
            _check_entries(bag, listed, path, Path(folder))
            places = _unpack(bag, listed, Path(folder), path)
            yield Archive(described["facts"], places)
    except (zipfile.BadZipFile, RuntimeError, EOFError) as fault:
        raise DataError(f"{path}: not a readable archive ({fault})") from None


def _first_of_each(listed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names under which distinct contents lie in the zip."""
    owners: dict[str, str] = {}
    for name, entry in listed.items():
        owners.setdefault(entry["sha256"], name)
    return list(owners.values())


def _read_list(bag: zipfile.ZipFile, kind: str, path: Path) -> dict[str, Any]:
    """The checked content of ``archive.json``."""
    try:
        with bag.open(LIST) as stream:
            text = stream.read(MAX_LIST_BYTES + 1)
        if len(text) > MAX_LIST_BYTES:
            raise DataError(f"{path}: {LIST} is larger than {MAX_LIST_BYTES} bytes")
        described = json.loads(text)
        files = described["files"]
        if described["format"] != FORMAT or described["kind"] != kind:
            raise DataError(f"{path}: not a {kind} archive of format {FORMAT}")
        if not isinstance(described["facts"], dict):
            raise TypeError("facts")
        for name, entry in files.items():
            _check_name(name)
            if not (type(entry["bytes"]) is int and entry["bytes"] >= 0):
                raise TypeError("bytes")
            bytes.fromhex(entry["sha256"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as fault:
        raise DataError(f"{path}: not an archive of this program ({fault})") from None
    result: dict[str, Any] = described
    return result


def _check_name(name: str) -> None:
    """Refuse names that leave the folder, hide, or are of a kind that does not travel."""
    parts = PurePosixPath(name).parts
    plain = (
        bool(parts)
        and name == "/".join(parts)
        and len(name) <= _MAX_NAME
        and not any(char in name for char in "\\:\0")
        and name.isprintable()
        and not any(part.startswith(".") for part in parts)
        and not name.startswith("/")
    )
    if not plain:
        raise DataError(f"{name[:80]!r}: no allowed name for a file in an archive")
    if PurePosixPath(name).suffix not in KINDS:
        raise DataError(f"{name[:80]!r}: files of this kind do not travel in archives")


def _check_entries(
    bag: zipfile.ZipFile, listed: Mapping[str, Mapping[str, Any]], path: Path, folder: Path
) -> None:
    """Hold the zip's own directory against the list, before a byte is unpacked."""
    entries = [entry for entry in bag.infolist() if entry.filename != LIST]
    expected = _first_of_each(listed)
    if len(entries) != len({entry.filename for entry in entries}) or len(entries) > MAX_FILES:
        raise DataError(f"{path}: too many entries, or two of one name")
    odd = {entry.filename for entry in entries} ^ set(expected)
    if odd:
        raise DataError(f"{path}: {LIST} and content disagree on {sorted(odd)[0][:80]!r}")
    for entry in entries:
        mode = entry.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise DataError(f"{path}: {entry.filename!r} is a link or a special file")
        if entry.flag_bits & 1:
            raise DataError(f"{path}: {entry.filename!r} is encrypted")
        if entry.file_size != listed[entry.filename]["bytes"]:
            raise DataError(f"{path}: {entry.filename!r} has another size than {LIST} says")
    total = sum(entry.file_size for entry in entries)
    free = shutil.disk_usage(folder).free
    if total > min(MAX_BYTES, free):
        raise DataError(f"{path}: unpacks to {total} bytes, {min(MAX_BYTES, free)} are allowed")


def _unpack(
    bag: zipfile.ZipFile, listed: Mapping[str, Mapping[str, Any]], folder: Path, path: Path
) -> dict[str, Path]:
    """Unpack each distinct content once; returns a place, by its own name, of every listed one."""
    first: dict[str, Path] = {}
    places: dict[str, Path] = {}
    for number, (name, entry) in enumerate(listed.items()):
        target, sha256 = folder / str(number) / PurePosixPath(name).name, entry["sha256"]
        target.parent.mkdir()
        if sha256 in first:
            os.link(first[sha256], target)
        elif _copy(bag, name, target, entry["bytes"]) != sha256:
            raise DataError(f"{path}: {name!r} does not match its hash: damaged archive")
        first.setdefault(sha256, target)
        places[name] = target
    return places


def _copy(bag: zipfile.ZipFile, name: str, target: Path, size: int) -> str:
    """Copy an entry of ``size`` bytes and return its hash; stops where it would be larger."""
    digest, left = hashlib.sha256(), size
    with bag.open(name) as source, target.open("wb") as out:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise DataError(f"{name!r} unpacks to more than it says")
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()
