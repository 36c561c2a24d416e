"""A restored PET as a derived DICOM series of the same study.

It keeps its patient, study and frame of reference, as it must, and has series and object UIDs of
its own. Each slice has its own slope, so a value is off by at most half a step of its slice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mfdiff_core.data.image_checks import Voxels
from mfdiff_core.data.volumes import Volume
from mfdiff_core.files import atomic_path
from mfdiff_core.scans.dicom import DicomSeries, pydicom

HIGHEST = 32767
"""Largest stored value: it fits signed and unsigned readers."""

SERIES_OFFSET = 9000
_CHARACTERS = 16  # of a decimal string
_DROPPED = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation",
    "PixelPaddingValue", "IconImageSequence", "RealWorldValueMappingSequence",
    "DigitalSignaturesSequence", "OriginalAttributesSequence", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip


def write_derived(
    folder: Path, source: DicomSeries, restored: Volume, *, key: Sequence[str], version: str
) -> None:
    """Write ``restored`` as a series of files into ``folder``, atomically.

    Args:
        folder: new folder.
        source: series of the low-dose PET, whose headers it takes over.
        restored: image on the grid of ``source.volume()``.
        key: what the result depends on (model, seed, ...). The same key and source give the same
            UIDs, so that sending a result twice does not double it.
        version: of this program.
    """
    uid = pydicom().uid.generate_uid
    parts = [str(source.first.SeriesInstanceUID), *key]
    series_uid = uid(entropy_srcs=parts)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for place, path in enumerate(source.files[0]):
            dataset = pydicom().dcmread(path)
            image = restored.data[:, :, place].T
            derived = _derived(dataset, image, version)
            derived.SeriesInstanceUID = series_uid
            derived.SOPInstanceUID = uid(entropy_srcs=[*parts, str(dataset.SOPInstanceUID)])
            derived.file_meta.MediaStorageSOPInstanceUID = derived.SOPInstanceUID
            name = temporary / f"restored-{place + 1:04d}.dcm"
            derived.save_as(name, enforce_file_format=True)


def slope_for(top: float) -> float:
    """The smallest slope, as a decimal string holds it, that stores ``top`` in 16 bits."""
    if not top > 0:
        return 1.0
    exact = top / HIGHEST
    digits = 9
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(exact)))
    return float(f"{math.ceil(exact * scale) / scale:.{digits}e}")


def _derived(source: Any, image: Voxels, version: str) -> Any:
    module = pydicom()
    derived = copy.deepcopy(source)
    derived.remove_private_tags()
    for keyword in _DROPPED:
        if keyword in derived:
            del derived[keyword]
    slope = slope_for(float(image.max()))
    stored = np.clip(np.rint(image / slope), 0, HIGHEST).astype("<u2")
    derived.RescaleSlope = module.valuerep.DSfloat(slope, auto_format=True)
    assert len(str(derived.RescaleSlope)) <= _CHARACTERS
    derived.RescaleIntercept = "0"
    derived.BitsAllocated = derived.BitsStored = 16
    derived.HighBit, derived.PixelRepresentation = 15, 0
    derived.SamplesPerPixel, derived.PhotometricInterpretation = 1, "MONOCHROME2"
    derived.PixelData = np.ascontiguousarray(stored).tobytes()
    derived["PixelData"].VR = "OW"
    derived.file_meta.TransferSyntaxUID = module.uid.ExplicitVRLittleEndian
    _describe(derived, source, version)
    return derived


def _describe(derived: Any, source: Any, version: str) -> None:
    """Say that the image is derived, from what, and by what."""
    module = pydicom()
    kind = [str(part) for part in source.get("ImageType", ["ORIGINAL", "PRIMARY"])]
    derived.ImageType = ["DERIVED", "PRIMARY" if len(kind) < 2 else kind[1], *kind[2:]]
    number = int(source.get("SeriesNumber") or 0) + SERIES_OFFSET
    derived.SeriesNumber = str(number)
    derived.SeriesDescription = "Restored PET (research only)"
    derived.DerivationDescription = f"restored by mfdiff-platform {version}; not for diagnosis"
    reference = module.Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    derived.SourceImageSequence = [reference]
    equipment = module.Dataset()
    equipment.Manufacturer = "mfdiff-platform"
    equipment.ManufacturerModelName = "MFdiff restoration"
    equipment.SoftwareVersions = version
    equipment.ContributionDescription = "restoration of low-dose PET"
    purpose = module.Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    known = list(derived.get("ContributingEquipmentSequence", []))
    derived.ContributingEquipmentSequence = [*known, equipment]
