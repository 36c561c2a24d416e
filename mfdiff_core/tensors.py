"""Tensors on disk, as safetensors: a file that holds numbers and can execute nothing.

The format is eight bytes with the length of a header, little endian, the header as JSON, and the
numbers. The header gives the type and shape of each tensor and where behind it its bytes begin and
end. Read and written here, so that training needs no package for it; nothing of a file is believed
before the header accounts for every byte of it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np
import torch

from mfdiff_core.errors import DataError

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {kind: name for name, kind in TYPES.items()}
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100 * 2**20


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``tensors`` to ``path``; types that take more bytes first, then by name."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        kind, shape = _NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for name in order:
            file.write(_bytes_of(tensors[name].detach().cpu().contiguous()).data)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of ``path`` on the CPU, each with memory of its own.

    Raises:
        DataError: not a safetensors file, or a damaged one.
        OSError: unreadable.
    """
    with path.open("rb") as file:
        try:
            entries = _entries(file, path.stat().st_size)
        except (ValueError, RecursionError) as fault:
            raise DataError(f"{path}: unreadable weights ({fault})") from None
        tensors = {entry.name: torch.empty(entry.shape, dtype=entry.kind) for entry in entries}
        for entry in entries:
            file.readinto(_bytes_of(tensors[entry.name]).data)
    return tensors


class _Entry(NamedTuple):
    """A tensor in a header; ``start`` and ``end`` count from the end of the header."""

    name: str
    kind: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _entries(file: BinaryIO, size: int) -> list[_Entry]:
    """What a file of ``size`` bytes holds, in its order; the file is then at the numbers.

    Raises:
        ValueError: the header cannot be read, or does not account for every byte.
    """
    first = file.read(_LENGTH.size)
    length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else 0
    if not 2 <= length <= min(_LONGEST_HEADER, size - _LENGTH.size):
        raise ValueError(f"{size} bytes cannot begin with a header of {length}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no table")
    header.pop("__metadata__", None)
    entries = [_entry(name, described) for name, described in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise ValueError(f"{entry.name} begins at byte {entry.start}, expected {end}")
        end = entry.end
    if end != size - _LENGTH.size - length:
        raise ValueError(f"the header describes {end} bytes of {size - _LENGTH.size - length}")
    return entries


def _entry(name: str, described: Any) -> _Entry:
    """One tensor of a header.

    Raises:
        ValueError: type, shape and place are missing, of the wrong kind, or contradict each other.
    """
    fields = described if isinstance(described, dict) else {}
    kind = TYPES.get(str(fields.get("dtype")))
    shape, place = fields.get("shape"), fields.get("data_offsets")
    if kind is None or not _are_sizes(shape) or not _are_sizes(place) or len(place) != 2:
        raise ValueError(f"{name} is described as {str(described)[:200]}")
    if place[1] - place[0] != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{name} of shape {shape} does not fill bytes {place[0]} to {place[1]}")
    return _Entry(name, kind, tuple(shape), *place)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor."""
    memory: np.ndarray = tensor.reshape(-1).view(torch.uint8).numpy()
    return memory
