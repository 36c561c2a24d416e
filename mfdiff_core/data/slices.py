"""Slices on disk: one Arrow IPC file per shard, memory-mapped, viewed without a copy.

A row holds one triplet (x_p, x_m, x_s) of float32 images divided by their scales, the maps of
tissue and lesions where the slice was simulated, and what is known about it. Shards of simulated
sets made so also hold what each LPET was reconstructed from: measured data y, divided by the scale
of the PET, and factors AN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mfdiff_core.errors import DataError
from mfdiff_core.files import atomic_path

SCHEMA_VERSION = 2
PET_LESION, MR_LESION = 1, 2
"""Bits of the lesion map."""

_TEXTS = ("domain", "setting", "subject", "protocol")
_INTEGERS = ("slice_index", "rotation_index")
_REALS = ("voxel_mm", "scale", "mr_scale", "num_counts", "dose_mbq")
_IMAGES = ("x_p", "x_m", "x_s")
_MAPS = ("tissue", "lesions")
SINOGRAMS = ("y", "factors")


@dataclass(frozen=True)
class SliceInfo:
    """What is known about one slice besides its images.

    ``scale`` times a PET pixel gives physical units back, ``mr_scale`` does so for the MR. In sets
    of intensity "own_maximum" ``scale`` is the LPET's alone, and the SPET's is lost.
    ``num_counts`` and ``dose_mbq`` are NaN where unknown. ``protocol`` says how the tracer was
    given, such as ``bolus``; empty where unknown.
    """

    domain: str
    setting: str
    subject: str
    slice_index: int
    rotation_index: int
    voxel_mm: float
    scale: float
    mr_scale: float
    num_counts: float = float("nan")
    dose_mbq: float = float("nan")
    protocol: str = ""

    @property
    def key(self) -> str:
        """Name of the slice, unique within its dataset; keys its restoration noise."""
        return f"{self.subject}/{self.setting}/{self.slice_index}/{self.rotation_index}"


@dataclass(frozen=True)
class SliceRecord:
    """One slice: its facts, its float32 [H, W] images, its uint8 [H, W] maps (zeros if unknown).

    ``sinogram`` holds y and AN, float32 [2, views, bins], in all slices of a shard or in none.
    """

    info: SliceInfo
    x_p: npt.NDArray[np.float32]
    x_m: npt.NDArray[np.float32]
    x_s: npt.NDArray[np.float32]
    tissue: npt.NDArray[np.uint8]
    lesions: npt.NDArray[np.uint8]
    sinogram: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Shard:
    """A mapped shard: ``infos`` by row and ``arrays[name]`` [N, H, W] as views of the file.

    ``arrays`` has `SINOGRAMS` [N, views, bins] too where the set carries them.
    """

    infos: tuple[SliceInfo, ...]
    arrays: dict[str, npt.NDArray[Any]]


def sinogram_size(shard: Shard) -> tuple[int, int] | None:
    """Views and bins of the sinograms in a shard; None where it holds none."""
    if SINOGRAMS[0] not in shard.arrays:
        return None
    _, views, bins = shard.arrays[SINOGRAMS[0]].shape
    return views, bins


def schema(image_size: int, sinogram: tuple[int, int] | None = None) -> pa.Schema:
    """Arrow schema of a shard of ``image_size`` x ``image_size`` slices.

    Args:
        image_size: rows and columns.
        sinogram: views and bins, where the slices carry sinograms.
    """
    num_pixels = image_size * image_size
    fields = [pa.field(name, pa.string(), nullable=False) for name in _TEXTS]
    fields += [pa.field(name, pa.int32(), nullable=False) for name in _INTEGERS]
    fields += [pa.field(name, pa.float64(), nullable=False) for name in _REALS]
    fields += [_pixels(name, pa.float32(), num_pixels) for name in _IMAGES]
    fields += [_pixels(name, pa.uint8(), num_pixels) for name in _MAPS]
    facts = {"mfdiff.schema": str(SCHEMA_VERSION), "mfdiff.image_size": str(image_size)}
    if sinogram is not None:
        fields += [_pixels(name, pa.float32(), sinogram[0] * sinogram[1]) for name in SINOGRAMS]
        facts["mfdiff.sinogram"] = f"{sinogram[0]}x{sinogram[1]}"
    return pa.schema(fields, metadata=facts)


def _pixels(name: str, dtype: pa.DataType, num_pixels: int) -> pa.Field:
    item = pa.field("item", dtype, nullable=False)
    return pa.field(name, pa.list_(item, num_pixels), nullable=False)


def write_shard(path: Path, records: Sequence[SliceRecord]) -> None:
    """Write ``records`` to ``path`` as one record batch, atomically.

    Raises:
        DataError: no records, or images that are not square, equal in size and finite.
    """
    if not records:
        raise DataError(f"{path.name}: a shard needs at least one slice")
    first = records[0]
    for record in records:
        _check(record, first)
    layout = schema(len(first.x_p), _shape(first.sinogram))
    columns: list[pa.Array] = []
    for field in layout:
        if pa.types.is_fixed_size_list(field.type):
            stacked = np.stack([_pixels_of(record, field.name) for record in records])
            dtype = np.uint8 if field.name in _MAPS else np.float32
            flat = pa.array(np.ascontiguousarray(stacked, dtype=dtype).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
        else:
            values = [getattr(record.info, field.name) for record in records]
            columns.append(pa.array(values, type=field.type))
    batch = pa.record_batch(columns, schema=layout)
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def _shape(sinogram: npt.NDArray[np.float32] | None) -> tuple[int, int] | None:
    return None if sinogram is None else (sinogram.shape[1], sinogram.shape[2])


def _pixels_of(record: SliceRecord, name: str) -> npt.NDArray[Any]:
    if name not in SINOGRAMS:
        image: npt.NDArray[Any] = getattr(record, name)
        return image
    assert record.sinogram is not None, "the schema has these columns only where they are"
    sinogram: npt.NDArray[np.float32] = record.sinogram[SINOGRAMS.index(name)]
    return sinogram


def _check(record: SliceRecord, first: SliceRecord) -> None:
    image_size = len(first.x_p)
    for name in _IMAGES + _MAPS:
        image = getattr(record, name)
        if image.shape != (image_size, image_size):
            raise DataError(
                f"slice {record.info.key}: {name} is {image.shape}, expected"
                f" ({image_size}, {image_size}); all images of a dataset are square and equal"
            )
    for name in _IMAGES:
        if not np.isfinite(getattr(record, name)).all():
            raise DataError(f"slice {record.info.key}: {name} has NaN or infinite pixels")
    if _shape(record.sinogram) != _shape(first.sinogram):
        raise DataError(
            f"slice {record.info.key}: sinogram {_shape(record.sinogram)}, the shard's first slice"
            f" has {_shape(first.sinogram)}; all slices of a dataset carry equal ones, or none"
        )


def read_shard(path: Path) -> Shard:
    """Map ``path`` into memory and view its rows without copying.

    Raises:
        DataError: the file is missing, is not a shard of this schema, or is cut short.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        image_size = int(reader.schema.metadata[b"mfdiff.image_size"])
        sinogram = _size(reader.schema.metadata.get(b"mfdiff.sinogram"))
        if not reader.schema.equals(schema(image_size, sinogram), check_metadata=True):
            raise DataError(f"{path}: not a slice shard of schema version {SCHEMA_VERSION}")
        if reader.num_record_batches != 1:
            raise DataError(f"{path}: {reader.num_record_batches} record batches, expected 1")
        batch = reader.get_batch(0)
        batch.validate(full=True)  # a damaged offset would take the process down when followed
        return _view(batch, image_size, sinogram)
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard") from None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as fault:
        raise DataError(f"{path}: not a readable slice shard ({fault})") from None


def _size(text: bytes | None) -> tuple[int, int] | None:
    if text is None:
        return None
    views, bins = text.split(b"x")
    return int(views), int(bins)


def _view(batch: pa.RecordBatch, image_size: int, sinogram: tuple[int, int] | None) -> Shard:
    facts = batch.select([*_TEXTS, *_INTEGERS, *_REALS]).to_pylist()
    infos = tuple(SliceInfo(**row) for row in facts)
    shapes = dict.fromkeys(_IMAGES + _MAPS, (image_size, image_size))
    shapes |= dict.fromkeys(SINOGRAMS, sinogram) if sinogram else {}
    arrays = {
        name: batch.column(name).flatten().to_numpy(zero_copy_only=True).reshape(-1, *shape)
        for name, shape in shapes.items()
    }
    return Shard(infos, arrays)
