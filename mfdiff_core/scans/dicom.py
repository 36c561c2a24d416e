"""DICOM folders: PT and MR series found by their headers, read with the slope of each slice.

Messages name a series by number and a file by its place in it, never by what a patient is called.
Needs pydicom.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfdiff_core.data.image_checks import Affine, Voxels, check_affine, check_values
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import DataError, InputFault
from mfdiff_core.faults import fault
from mfdiff_core.scans.timing import clock_s

MODALITIES = ("PT", "MR")
ACTIVITY_UNITS = ("BQML", "GML")
"""Bq/mL, and g/mL for SUV by body weight; counts have no scale that a model could use."""

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_MM, _SAME_COSINE = 0.05, 1e-4
_SENSELESS = (
    OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    RuntimeError, struct.error,
)  # fmt: skip
_TAGS = (
    "Modality", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID",
    "SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "PatientID",
    "IssuerOfPatientID", "PatientName", "PatientWeight", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames",
    "InstanceNumber", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
    "FrameReferenceTime", "ActualFrameDuration", "Units", "DecayCorrection", "CorrectedImage",
    "RadiopharmaceuticalInformationSequence", "SamplesPerPixel", "SUVType",
)  # fmt: skip


@dataclass(frozen=True)
class DicomSeries:
    """One series: its files by frame and slice, and the header of its first file.

    Attributes:
        number: SeriesNumber, for messages.
        modality: ``PT`` or ``MR``.
        first: pydicom dataset of the first file, without pixels.
        heads: headers [frame][slice], frames in the order of time, slices along the normal.
        files: the file of each header.
        affine: voxel indices (column, row, slice) to RAS millimetres.
    """

    number: str
    modality: str
    first: Any
    heads: tuple[tuple[Any, ...], ...]
    files: tuple[tuple[Path, ...], ...]
    affine: Affine

    @property
    def where(self) -> str:
        """Name for messages."""
        return f"{self.modality} series {self.number}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return int(self.first.Columns), int(self.first.Rows), len(self.files[0])

    @property
    def num_frames(self) -> int:
        """Images at each place."""
        return len(self.files)

    @property
    def header(self) -> Mapping[str, Any]:
        """No NIfTI fields: a DICOM series is placed by its affine."""
        return {}

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, Voxels]]:
        """Frames ``wanted`` with their numbers, in ascending order.

        Raises:
            InputFault: a slice cannot be decoded or holds NaN.
        """
        for index in sorted(set(wanted)):
            slices = [self._slice(path, place) for place, path in enumerate(self.files[index])]
            yield index, np.stack(slices, axis=-1)

    def volume(self) -> Volume:
        """The series as one image.

        Raises:
            InputFault: it is dynamic, or its values cannot be used.
        """
        if self.num_frames > 1:
            raise fault("dicom-frames", self.where, frames=self.num_frames)
        ((_, data),) = self.read([0])
        check_values(self.where, data)
        return Volume(data, self.affine)

    def _slice(self, path: Path, place: int) -> Voxels:
        """One slice [columns, rows] in its units."""
        try:
            dataset = pydicom().dcmread(path)
            stored = dataset.pixel_array
            slope = float(dataset.get("RescaleSlope", 1) or 1)
            intercept = float(dataset.get("RescaleIntercept", 0) or 0)
        except _damage():
            reason = f"the pixels of slice {place + 1} cannot be decoded; export uncompressed"
            raise fault("dicom-kind", self.where, reason=reason) from None
        return np.asarray(stored.T * slope + intercept, dtype=np.float32)


def pydicom() -> Any:
    """The module pydicom.

    Raises:
        DataError: it is not installed; says how.
    """
    try:
        import pydicom as module
    except ImportError:
        raise DataError("DICOM needs pydicom: pip install pydicom, or convert to NIfTI") from None
    return module


def _damage() -> tuple[type[Exception], ...]:
    """What pydicom raises where bytes make no sense, at the latest when an element is looked at."""
    errors = pydicom().errors
    return (*_SENSELESS, errors.InvalidDicomError, errors.BytesLengthException)


Member = tuple[Any, Path]
"""Header and file of one slice."""


def find_members(root: Path) -> list[list[Member]]:
    """PT and MR slices below ``root`` by series, whatever the files are called.

    Other files are ignored, and nothing is checked yet.

    Raises:
        InputFault: there are none.
    """
    found: dict[str, list[Member]] = defaultdict(list)
    num_files = 0
    for path in _files(root):
        num_files += 1
        head = _head(path)
        if head is not None and head.get("Modality") in MODALITIES and "Rows" in head:
            found[str(head.get("SeriesInstanceUID"))].append((head, path))
    if not found:
        raise fault("no-dicom", root, modality="PT or MR", files=num_files)
    return list(found.values())


def build_series(groups: Sequence[Sequence[Member]]) -> list[DicomSeries]:
    """Series of checked slices.

    An MR that is no volume, such as a localizer in three directions, is passed over if another MR
    is one.

    Raises:
        InputFault: a PET, or every MR, has missing, doubled or uneven slices.
    """
    series, odd = [], []
    for members in groups:
        try:
            series.append(_checked(list(members)))
        except InputFault as reason:
            if members[0][0].Modality == "PT":
                raise
            odd.append(reason)
    if odd and not any(each.modality == "MR" for each in series):
        raise odd[0]
    return sorted(series, key=lambda each: (each.modality, each.number))


def find_series(root: Path) -> list[DicomSeries]:
    """The usable series below ``root``; see `find_members` and `build_series`."""
    return build_series(find_members(root))


def identity(head: Any) -> str:
    """Who the patient is; for pseudonyms alone, never written.

    Where ID and name were taken out, each study is a patient of its own.
    """
    keys = ("PatientID", "IssuerOfPatientID")
    known = "/".join(str(head.get(key, "") or "") for key in keys).strip("/")
    return known or str(head.get("PatientName", "") or head.get("StudyInstanceUID", ""))


def only(series: Sequence[DicomSeries], modality: str, where: object) -> DicomSeries:
    """The one series of a modality.

    Raises:
        InputFault: there is none, or there are several.
    """
    chosen = [each for each in series if each.modality == modality]
    if not chosen:
        count = sum(len(frame) for each in series for frame in each.files)
        raise fault("no-dicom", where, modality=modality, files=count)
    if len(chosen) > 1:
        numbers = ", ".join(each.number for each in chosen)
        raise fault("several-series", where, count=len(chosen), modality=modality, numbers=numbers)
    return chosen[0]


def check_units(series: DicomSeries) -> str:
    """The unit of a PET, ``Bq/mL`` or ``g/mL``.

    Raises:
        InputFault: counts, or no unit.
    """
    units = str(series.first.get("Units", "") or "not stated")
    if units not in ACTIVITY_UNITS:
        raise fault("dicom-units", series.where, units=units)
    return {"BQML": "Bq/mL", "GML": "g/mL"}[units]


def _files(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise fault("missing-file", root)
    for folder, _, names in sorted(os.walk(root)):
        yield from (Path(folder) / name for name in sorted(names) if name != "DICOMDIR")


def _head(path: Path) -> Any | None:
    """Header of a DICOM file; None for any other file, and for one whose header is damaged."""
    try:
        head = pydicom().dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        head.decode()
        str(head.file_meta)  # elements are made of bytes when they are looked at
        for _ in head.iterall():
            pass
    except _damage():
        return None
    return head


def _checked(members: list[Member]) -> DicomSeries:
    """A series, and values in its headers that are none as the fault that they are."""
    try:
        return _series(members)
    except _damage():
        where = f"{members[0][0].Modality} series"
        raise fault("dicom-slices", where, reason="headers with impossible values") from None


def _series(members: list[Member]) -> DicomSeries:
    first = members[0][0]
    where = f"{first.Modality} series {first.get('SeriesNumber', '?')}"
    if any(int(head.get("NumberOfFrames", 1) or 1) > 1 for head, _ in members):
        reason = "an enhanced multi-frame object; export it as classic single-frame slices"
        raise fault("dicom-kind", where, reason=reason)
    if int(first.get("SamplesPerPixel", 1) or 1) != 1:
        raise fault("dicom-kind", where, reason="a colour image; export the original series")
    places = _places([head for head, _ in members], where)
    frames = _frames(members, places, where)
    heads = tuple(tuple(head for head, _ in frame) for frame in frames)
    files = tuple(tuple(path for _, path in frame) for frame in frames)
    affine = _affine(heads[0], where)
    return DicomSeries(
        str(first.get("SeriesNumber", "?")), str(first.Modality), heads[0][0], heads, files, affine
    )


def _places(heads: Sequence[Any], where: str) -> list[float]:
    """Each slice's height along the normal; refuses mixed geometry."""
    first = heads[0]
    try:
        cosines = np.array(first.ImageOrientationPatient, dtype=float)
        normal = np.cross(cosines[:3], cosines[3:])
        heights = []
        for head in heads:
            same = np.abs(np.array(head.ImageOrientationPatient, dtype=float) - cosines).max()
            spacing = np.abs(np.array(head.PixelSpacing, float) - np.array(first.PixelSpacing))
            sizes = (head.Rows, head.Columns) != (first.Rows, first.Columns)
            if same > _SAME_COSINE or spacing.max() > 1e-3 or sizes:
                reason = "slices of different orientation or size"
                raise fault("dicom-slices", where, reason=reason)
            heights.append(float(normal @ np.array(head.ImagePositionPatient, dtype=float)))
    except (AttributeError, TypeError, ValueError):
        reason = "slices without position, orientation or pixel size"
        raise fault("dicom-slices", where, reason=reason) from None
    return heights


def _frames(members: list[Member], heights: list[float], where: str) -> list[list[Member]]:
    """Files by frame and slice: at each height, images in the order of time."""
    order = np.argsort(heights, kind="stable")
    stacks: list[list[Member]] = []
    levels: list[float] = []
    for index in order:
        if not levels or heights[index] - levels[-1] > _SAME_MM:
            levels.append(heights[index])
            stacks.append([])
        stacks[-1].append(members[index])
    counts = {len(stack) for stack in stacks}
    if len(counts) > 1:
        reason = f"{min(counts)} to {max(counts)} images at one place: missing or doubled slices"
        raise fault("dicom-slices", where, reason=reason)
    gaps = np.diff(levels)
    if len(levels) < 2:
        raise fault("dicom-slices", where, reason="a single slice where a volume is meant")
    if gaps.max() - gaps.min() > max(_SAME_MM, 0.02 * float(np.median(gaps))):
        reason = f"slice distances of {gaps.min():.2f} to {gaps.max():.2f} mm: slices are missing"
        raise fault("dicom-slices", where, reason=reason)
    for stack in stacks:
        stack.sort(key=lambda member: _moment(member[0]))
    if len({_moment(head) for head, _ in stacks[0]}) < len(stacks[0]):
        raise fault("dicom-slices", where, reason="the same slices twice")
    return [[stack[frame] for stack in stacks] for frame in range(len(stacks[0]))]


def _moment(head: Any) -> tuple[str, float, float]:
    """What orders the images at one place."""
    reference = float(head.get("FrameReferenceTime", 0) or 0)
    clock = clock_s(head.get("AcquisitionTime")) or 0.0
    return str(head.get("AcquisitionDate", "") or ""), clock, reference


def _affine(heads: Sequence[Any], where: str) -> Affine:
    first = heads[0]
    cosines = np.array(first.ImageOrientationPatient, dtype=float)
    row_mm, column_mm = (float(value) for value in first.PixelSpacing)
    start, end = (np.array(head.ImagePositionPatient, dtype=float) for head in (first, heads[-1]))
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * column_mm
    affine[:3, 1] = cosines[3:] * row_mm
    affine[:3, 2] = (end - start) / (len(heads) - 1)
    affine[:3, 3] = start
    ras: Affine = _LPS @ affine
    check_affine(where, ras)
    return ras
