"""NIfTI files: read and checked, 4-D ones frame by frame, written without patient text.

Orientation comes from the affine alone. A flip baked into the voxels cannot be seen: a brain is
nearly symmetric.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mfdiff_core.data.image_checks import (
    MAX_VOXELS,
    Affine,
    Voxels,
    check_affine,
    check_saturation,
    check_shape,
    check_values,
    num_saturated,
    without_negatives,
)
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import DataError
from mfdiff_core.faults import fault
from mfdiff_core.files import write_bytes

Modality = Literal["pet", "mr"]

_GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_MM_OR_UNKNOWN = (0, 2)  # NIfTI codes of the unit of length
_DAMAGE = (OSError, EOFError, ValueError, OverflowError, zlib.error)
_POINTER = rb"(/annex/objects/|(\.\./)*\.git/annex/objects/|version https://git-lfs)"


def read_volume(path: Path, modality: Modality) -> Volume:
    """Read one 3-D NIfTI file, compressed or not, whatever its name says.

    Args:
        path: the file.
        modality: a PET must be mostly positive; its small negatives become 0, with a note.

    Raises:
        InputFault: the file is missing, not fetched, not NIfTI, damaged, not one 3-D image, or
            holds values or a geometry that cannot be used; the sentence says what to do.
    """
    image_class, opener = _sniff(path)
    with _damage_told(path), opener(path, "rb") as stream:
        image = image_class.from_stream(stream)
        header = image.header
        _check_header(path, header)
        check_shape(path, header.get_data_shape())
        data = np.array(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
        saturated = _num_saturated(image) if modality == "pet" else 0
    affine = np.asarray(image.affine, dtype=np.float64)
    check_affine(path, affine)
    check_values(path, data)
    notes: tuple[str, ...] = ()
    if modality == "pet":
        check_saturation(path, saturated, data.size)
        data, notes = without_negatives(path, data)
    return Volume(data, affine, _grid_fields(header), notes)


@dataclass(frozen=True)
class Frames:
    """A 4-D NIfTI file, opened but not read; a frame at a time fits where the whole does not.

    Attributes:
        path: the file.
        shape: [X, Y, Z] of a frame.
        num_frames: frames in the file; 1 for a 3-D one.
        affine: voxel indices to RAS millimetres.
        header: geometry fields, see `Volume`.
    """

    path: Path
    shape: tuple[int, int, int]
    num_frames: int
    affine: Affine
    header: dict[str, Any]
    _opener: Callable[..., Any]
    _dtype: np.dtype[Any]
    _offset: int
    _scale: tuple[float, float]

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, Voxels]]:
        """Frames ``wanted`` in ascending order with their numbers, read in one pass.

        Raises:
            InputFault: the file is cut short, or a frame holds NaN or infinity, or is cut off at
                the 16-bit limit.
        """
        size = math.prod(self.shape) * self._dtype.itemsize
        with _damage_told(self.path), self._opener(self.path, "rb") as stream:
            for index in sorted(set(wanted)):
                stream.seek(self._offset + index * size)
                yield index, self._frame(stream.read(size))

    def _frame(self, content: bytes) -> Voxels:
        stored = np.frombuffer(content, self._dtype).reshape(self.shape, order="F")
        check_saturation(self.path, num_saturated(stored), stored.size)
        data = stored.astype(np.float32)
        if self._scale != (1.0, 0.0):
            slope, intercept = self._scale
            data = data * np.float32(slope) + np.float32(intercept)
        num_bad = int(data.size - np.isfinite(data).sum())
        if num_bad:
            raise fault("not-finite", self.path, bad=num_bad, total=data.size)
        return data


def open_frames(path: Path) -> Frames:
    """Open a 3-D or 4-D PET by its header alone.

    Raises:
        InputFault: as `read_volume`, as far as the header tells.
    """
    image_class, opener = _sniff(path)
    with _damage_told(path), opener(path, "rb") as stream:
        header = image_class.header_class.from_fileobj(stream)
        _check_header(path, header)
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        slope, intercept = header.get_slope_inter()
        offset = int(header.get_data_offset())
    shape = header.get_data_shape()
    if not 3 <= len(shape) <= 4:
        raise fault("dimensions", path, ndim=len(shape), shape="x".join(map(str, shape)))
    check_shape(path, shape[:3])
    check_affine(path, affine)
    return Frames(
        path,
        (shape[0], shape[1], shape[2]),
        shape[3] if len(shape) == 4 else 1,
        affine,
        _grid_fields(header),
        opener,
        header.get_data_dtype(),
        offset,
        (float(1 if slope is None else slope), float(intercept or 0)),
    )


def write_volume(path: Path, volume: Volume) -> None:
    """Write ``volume`` atomically as float32 NIfTI-1, gzipped if the name ends with ``.gz``.

    Geometry fields are those of the file the grid came from; everything else in the header is
    fresh, so that no text of the source is carried over. The same volume gives the same bytes.

    Raises:
        ValueError: the name ends neither with ``.nii`` nor with ``.nii.gz``.
    """
    import nibabel as nib

    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"name must end with .nii or .nii.gz, got {path.name!r}")
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    image = nib.Nifti1Image(np.asarray(volume.data, dtype=np.float32), volume.affine, header)
    image.header.set_xyzt_units("mm")
    image.set_qform(volume.affine, code="scanner")
    image.set_sform(volume.affine, code="scanner")
    for name, value in volume.header.items():
        image.header[name] = value
    data = image.to_bytes()
    write_bytes(path, gzip.compress(data, 6, mtime=0) if path.name.endswith(".gz") else data)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its readers raise, as the one fault that it is."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        yield
    except (*_DAMAGE, ImageFileError, HeaderDataError, WrapStructError) as reason:
        raise fault("damaged", path, reason=reason) from None


def _sniff(path: Path) -> tuple[Any, Callable[..., Any]]:
    """Image class and opener of ``path``, by its content rather than its name."""
    import nibabel as nib

    start = _first_bytes(path)
    opener: Callable[..., Any] = open
    if start[:2] == b"\x1f\x8b":
        opener = gzip.open
        with _damage_told(path), gzip.open(path) as stream:
            start = stream.read(512)
    if start[344:347] == b"n+1":
        return nib.Nifti1Image, opener
    if start[4:7] == b"n+2":
        return nib.Nifti2Image, opener
    raise fault("not-nifti", path, found=_what_else(start))


def check_present(path: Path) -> None:
    """Refuse a file that is not there, was not fetched, or may not be read.

    Raises:
        InputFault: with the command that fetches it, where there is one.
    """
    _first_bytes(path)


def _first_bytes(path: Path) -> bytes:
    if path.is_symlink() and not path.exists():
        raise _not_fetched(path, os.readlink(path))
    if not path.is_file():
        raise fault("missing-file", path)
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as reason:
        raise fault("unreadable", path, reason=reason.strerror) from None
    if re.match(_POINTER, start):
        raise _not_fetched(path, start.decode(errors="replace").split("\n")[0])
    return start


def _not_fetched(path: Path, target: str) -> DataError:
    if "annex/objects/" not in target and "git-lfs" not in target:
        return fault("dangling-link", path)
    found = re.search(r"-s(\d+)-", target)
    size = f" ({int(found[1]) / 1e6:.1f} MB)" if found else ""
    command = "`git lfs pull` in its folder" if "git-lfs" in target else "`datalad get` on it"
    return fault("not-fetched", path, size=size, command=command)


def _what_else(start: bytes) -> str:
    if start[128:132] == b"DICM":
        return (
            "a DICOM file, not NIfTI; use `restore dicom` or `ingest dicom`, or convert the "
            "series with dcm2niix"
        )
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        return "the header of a two-file NIfTI (.hdr/.img); save it as one .nii file"
    return "not a NIfTI file" if start else "an empty file; copy it again"


def _check_header(path: Path, header: Any) -> None:
    """Refuse what is not a scalar image with a known place in space."""
    dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind == "c":
        raise fault("colours", path)
    shape = header.get_data_shape()
    if min(shape, default=1) < 1:
        raise fault("damaged", path, reason="the header claims an image without voxels")
    if math.prod(shape[:3]) > MAX_VOXELS:
        raise fault("too-large", path, shape="x".join(map(str, shape)))
    if not header["qform_code"] and not header["sform_code"]:
        raise fault("no-orientation", path)
    if header["qform_code"] and header["sform_code"]:
        hands = [np.linalg.det(form()[:3, :3]) for form in (header.get_qform, header.get_sform)]
        if hands[0] * hands[1] < 0:
            raise fault("left-right", path)
    if int(header["xyzt_units"]) & 7 not in _MM_OR_UNKNOWN:
        raise fault("not-mm", path)


def _grid_fields(header: Any) -> dict[str, Any]:
    fields = {name: np.array(header[name]) for name in _GRID_FIELDS}
    fields["pixdim"] = np.append(header["pixdim"][:4], [1, 1, 1, 1])  # no frame times
    fields["xyzt_units"] = np.array(int(header["xyzt_units"]) & 7)
    return fields


def _num_saturated(image: Any) -> int:
    """See `num_saturated`; only files that can be cut off are read a second time for it."""
    return (
        0 if image.get_data_dtype().itemsize != 2 else num_saturated(image.dataobj.get_unscaled())
    )
