"""NIfTI volumes: read and checked, resampled, cut into axial slices, written without patient text.

Orientation comes from the affine alone. A flip baked into the voxels cannot be seen: a brain is
nearly symmetric.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform

from mfdiff_core.errors import DataError
from mfdiff_core.files import write_bytes

Voxels = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Modality = Literal["pet", "mr"]

MAX_NEGATIVE_SHARE = 0.1  # of a PET's absolute activity; filters cause a few percent
MAX_SATURATED_SHARE = 1e-5  # of a 16-bit PET's voxels, at the limit of the format
MAX_SHEAR = 1e-3  # cosine between two voxel axes that should be at right angles
ZOOM_RANGE_MM = (0.1, 20.0)  # voxel edges outside are taken for a wrong unit
MAX_VOXELS = 500_000_000  # larger than any 3-D scan; a header that claims more is damaged

_GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_MM_OR_UNKNOWN = (0, 2)  # NIfTI codes of the unit of length
_SAME_GRID_MM = 1e-4


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D image in space.

    Args:
        data: float32 [X, Y, Z] in the file's axis order.
        affine: [4, 4], voxel indices to RAS millimetres.
        header: the geometry fields of the file it came from, as NIfTI has them; kept so that a
            result can be written on exactly the same grid. Empty for a volume made here.
        notes: sentences on what was changed while reading.
    """

    data: Voxels
    affine: Affine
    header: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def zooms_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel along the axes of ``data``."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    def with_data(self, data: npt.NDArray[Any]) -> Volume:
        """Other values on the same grid.

        Raises:
            ValueError: the shape differs.
        """
        if data.shape != self.data.shape:
            raise ValueError(f"grid is {self.data.shape}, got {data.shape=}")
        return replace(self, data=np.asarray(data, dtype=np.float32), notes=())

    def same_grid(self, other: Volume) -> bool:
        """Whether both have the same shape and every voxel lies within 1e-4 mm of its like."""
        if self.data.shape != other.data.shape:
            return False
        difference = np.abs(self.affine - other.affine)
        extent = np.array([*self.data.shape, 1])
        return bool((difference @ extent).max() <= _SAME_GRID_MM)


def read_volume(path: Path, modality: Modality) -> Volume:
    """Read one 3-D NIfTI file, compressed or not, whatever its name says.

    Args:
        path: the file.
        modality: a PET must be mostly positive; its small negatives become 0, with a note.

    Raises:
        DataError: the file is missing, not fetched, not NIfTI, damaged, not one 3-D image, or
            holds values or a geometry that cannot be used; the sentence says what to do.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    image_class, opener = _sniff(path)
    damage = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)
    try:
        with opener(path, "rb") as stream:
            image = image_class.from_stream(stream)
            header = image.header
            _check_header(path, header)
            data = np.array(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
            num_saturated = _num_saturated(image)
    except damage as fault:
        raise DataError(f"{path}: damaged or cut short ({fault}); copy it again") from None
    affine = np.asarray(image.affine, dtype=np.float64)
    _check_affine(path, affine)
    _check_values(path, data)
    notes: tuple[str, ...] = ()
    if modality == "pet":
        _check_saturation(path, num_saturated, data.size)
        data, notes = _without_negatives(path, data)
    fields = {name: np.array(header[name]) for name in _GRID_FIELDS}
    fields["pixdim"] = np.append(header["pixdim"][:4], [1, 1, 1, 1])  # no frame times
    fields["xyzt_units"] = np.array(int(header["xyzt_units"]) & 7)
    return Volume(data, affine, fields, notes)


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


def resample_to(moving: Volume, fixed: Volume, order: int = 1) -> Volume:
    """``moving`` on the grid of ``fixed``, by their affines; no registration.

    Outside the field of view of ``moving`` the result is 0. On one and the same grid the voxels
    are copied bit for bit.

    Args:
        order: spline order, 0 (labels) to 3; orders above 1 overshoot at edges.
    """
    if moving.same_grid(fixed):
        return fixed.with_data(moving.data.copy())
    matrix = _snap(np.linalg.inv(moving.affine) @ fixed.affine)
    data = affine_transform(
        moving.data,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=fixed.data.shape,
        order=order,
        mode="grid-constant",
    )
    return fixed.with_data(data)


def axial_slices(volume: Volume) -> Voxels:
    """View of ``volume`` as axial slices [Z, H, W], in the orientation of the training slices.

    Slices run from the feet to the head, rows from anterior to posterior (nose up), columns from
    the patient's left to right, as those of the simulated phantoms do.
    Oblique volumes are turned by whole axes only; nothing is interpolated.
    """
    axes, flips = _to_axial(volume.affine)
    return np.flip(volume.data.transpose(axes), flips)


def from_axial_slices(slices: npt.NDArray[Any], volume: Volume) -> Volume:
    """Exact inverse of `axial_slices`: slices [Z, H, W] on the grid of ``volume``."""
    axes, flips = _to_axial(volume.affine)
    data = np.flip(slices, flips).transpose(np.argsort(axes))
    return volume.with_data(np.ascontiguousarray(data, dtype=np.float32))


def axial_zooms_mm(volume: Volume) -> tuple[float, float, float]:
    """Edges of a voxel along the axes of `axial_slices`: slice distance, row, column."""
    axes, _ = _to_axial(volume.affine)
    z, row, column = (volume.zooms_mm[axis] for axis in axes)
    return z, row, column


def fit_grid(
    slices: npt.NDArray[Any],
    voxel_mm: tuple[float, float],
    target_voxel_mm: tuple[float, float],
    shape: tuple[int, int],
) -> Voxels:
    """Slices [N, H, W] on another pixel size and image size, about the same centre.

    It is its own inverse in geometry: `fit_grid(fitted, target_voxel_mm, voxel_mm, (H, W))` puts
    every pixel back where it was. Equal pixel sizes (to 1/20 pixel over the image) crop and pad
    with zeros, bit for bit. Otherwise each target pixel is a triangle-weighted mean as wide as
    the larger of both pixels: linear interpolation upwards, averaging downwards.

    Args:
        voxel_mm, target_voxel_mm: pixel edges along rows and columns, of source and target.
        shape: (H, W) of the target.
    """
    fitted = np.asarray(slices, dtype=np.float32)
    for axis in (0, 1):
        ratio = target_voxel_mm[axis] / voxel_mm[axis]
        fitted = _fit_axis(fitted, axis + 1, ratio, shape[axis])
    return fitted


def _sniff(path: Path) -> tuple[Any, Callable[..., Any]]:
    """Image class and opener of ``path``, by its content rather than its name."""
    import nibabel as nib

    start = _first_bytes(path)
    opener: Callable[..., Any] = open
    if start[:2] == b"\x1f\x8b":
        opener = gzip.open
        try:
            with gzip.open(path) as stream:
                start = stream.read(512)
        except (OSError, EOFError, zlib.error) as fault:
            raise DataError(f"{path}: damaged gzip file ({fault}); copy it again") from None
    if start[344:347] == b"n+1":
        return nib.Nifti1Image, opener
    if start[4:7] == b"n+2":
        return nib.Nifti2Image, opener
    raise DataError(f"{path}: {_what_else(start)}")


def _first_bytes(path: Path) -> bytes:
    """First 512 bytes of ``path``; says what to do when there are none."""
    if path.is_symlink() and not path.exists():
        raise DataError(_not_fetched(path, os.readlink(path)))
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the name and that the disk is mounted")
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror}); check its rights") from None
    if re.match(rb"(/annex/objects/|(\.\./)*\.git/annex/objects/|version https://git-lfs)", start):
        raise DataError(_not_fetched(path, start.decode(errors="replace").split("\n")[0]))
    return start


def _not_fetched(path: Path, target: str) -> str:
    if "annex/objects/" not in target and "git-lfs" not in target:
        return f"{path}: link to a file that does not exist; restore the file or remove the link"
    size = re.search(r"-s(\d+)-", target)
    megabytes = f" ({int(size[1]) / 1e6:.1f} MB)" if size else ""
    command = "git lfs pull" if "git-lfs" in target else f"datalad get {path.name}"
    return f"{path}: content not fetched{megabytes}; run `{command}` in {path.parent}"


def _what_else(start: bytes) -> str:
    if start[128:132] == b"DICM":
        return "a DICOM file, not NIfTI; convert the series first, for example with dcm2niix"
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        return "the header of a two-file NIfTI (.hdr/.img); save it as one .nii file"
    return "not a NIfTI file" if start else "an empty file; copy it again"


def _check_header(path: Path, header: Any) -> None:
    """Refuse what is not one 3-D scalar image with a known place in space."""
    shape = header.get_data_shape()
    dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind == "c":
        raise DataError(f"{path}: holds colours or complex values; save it as one scalar image")
    sizes = "x".join(map(str, shape))
    if len(shape) < 3 or any(size > 1 for size in shape[3:]):
        raise DataError(
            f"{path}: {len(shape)}-D ({sizes}) where one 3-D volume is meant; "
            "extract one frame or average the frames first"
        )
    if math.prod(shape) > MAX_VOXELS:
        raise DataError(f"{path}: claims {sizes} voxels; the header is damaged, copy it again")
    if not header["qform_code"] and not header["sform_code"]:
        raise DataError(
            f"{path}: qform and sform codes are both 0, so left and right are unknown; "
            "convert it again from DICOM, or set the sform if you know it"
        )
    if int(header["xyzt_units"]) & 7 not in _MM_OR_UNKNOWN:
        raise DataError(f"{path}: lengths are not in millimetres; convert the header to mm")


def _check_affine(path: Path, affine: Affine) -> None:
    axes = affine[:3, :3]
    zooms = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or zooms.min() == 0 or abs(np.linalg.det(axes / zooms)) < 0.5:
        raise DataError(f"{path}: singular affine; convert the image again from its source")
    low, high = ZOOM_RANGE_MM
    if zooms.min() < low or zooms.max() > high:
        sizes = " x ".join(f"{zoom:.4g}" for zoom in zooms)
        raise DataError(f"{path}: voxels of {sizes} mm are not plausible; check the header's units")
    cosines = (axes / zooms).T @ (axes / zooms) - np.eye(3)
    if np.abs(cosines).max() > MAX_SHEAR:
        raise DataError(f"{path}: sheared affine; resample the image to right-angled voxels first")


def _check_values(path: Path, data: Voxels) -> None:
    num_bad = int(data.size - np.isfinite(data).sum())
    if num_bad:
        raise DataError(
            f"{path}: {num_bad} of {data.size} voxels are NaN or infinite; "
            "export it again, or set them to 0 if they lie outside the field of view"
        )
    if data.size == 0 or data.min() == data.max():
        raise DataError(f"{path}: every voxel has the same value; the image is empty")


def _num_saturated(image: Any) -> int:
    """Stored 16-bit values at the upper limit of their format."""
    dtype = image.get_data_dtype()
    if dtype.kind not in "iu" or dtype.itemsize != 2:
        return 0
    return int((np.asarray(image.dataobj.get_unscaled()) == np.iinfo(dtype).max).sum())


def _check_saturation(path: Path, num_saturated: int, num_voxels: int) -> None:
    if num_saturated > max(1, MAX_SATURATED_SHARE * num_voxels):
        raise DataError(
            f"{path}: {num_saturated} voxels sit at the 16-bit limit, so high activity was cut "
            "off; export it again with a larger scale factor or as float32"
        )


def _without_negatives(path: Path, data: Voxels) -> tuple[Voxels, tuple[str, ...]]:
    negative = data < 0
    num_negative = int(negative.sum())
    if not num_negative:
        return data, ()
    share = float(-data[negative].sum(dtype=np.float64) / np.abs(data).sum(dtype=np.float64))
    if share > MAX_NEGATIVE_SHARE:
        raise DataError(
            f"{path}: {share:.0%} of the activity is negative, so this is not a PET in activity "
            "units (overflow, difference or logarithm?); export it again"
        )
    note = f"{num_negative} negative voxels ({share:.2%} of the activity) set to 0"
    return np.where(negative, np.float32(0), data), (note,)


def _snap(matrix: Affine) -> Affine:
    """Round away what float32 headers leave beside whole numbers."""
    whole = np.round(matrix)
    return np.where(np.abs(matrix - whole) < 1e-6, whole, matrix)


def _to_axial(affine: Affine) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Voxel axes nearest to (head, posterior, right), and which of them to flip after."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    axis_of = {int(world): (axis, sign) for axis, (world, sign) in enumerate(orientation)}
    wanted = ((2, 1), (1, -1), (0, 1))  # RAS axes and directions of slices, rows, columns
    axes = tuple(axis_of[world][0] for world, _ in wanted)
    flips = tuple(i for i, (world, sign) in enumerate(wanted) if axis_of[world][1] != sign)
    return (axes[0], axes[1], axes[2]), flips


def _fit_axis(slices: Voxels, axis: int, ratio: float, size: int) -> Voxels:
    old = slices.shape[axis]
    if abs(np.log(ratio)) * max(old, size) < 0.05:
        return _crop_or_pad(slices, axis, size)
    weights = _axis_weights(old, size, ratio)
    fitted = weights @ slices if axis == 1 else slices @ weights.T
    return np.asarray(fitted, dtype=np.float32)


def _crop_or_pad(slices: Voxels, axis: int, size: int) -> Voxels:
    growth = size - slices.shape[axis]
    before = int(growth / 2)  # rounds towards zero both ways, so that it inverts itself
    if growth <= 0:
        return slices.take(range(-before, size - before), axis)
    padding = [(0, 0)] * slices.ndim
    padding[axis] = (before, growth - before)
    return np.pad(slices, padding)


def _axis_weights(old: int, new: int, ratio: float) -> Voxels:
    """Weights [new, old] of source pixels; what lies outside the source counts as 0."""
    centres = (np.arange(new) - (new - 1) / 2) * ratio + (old - 1) / 2
    width = max(1.0, ratio)
    low = min(0, int(np.floor(centres[0] - width)))
    high = max(old, int(np.ceil(centres[-1] + width)) + 1)
    distances = np.abs(np.arange(low, high) - centres[:, None])
    weights = np.clip(1 - distances / width, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, -low : old - low].astype(np.float32)
