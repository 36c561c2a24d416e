"""Any segmentation as a phantom: a volume of tissue labels, cut into slices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mfdiff_core.errors import DataError
from mfdiff_core.physics.phantom import Anatomy, Bytes, Floats, Tissue, fine_axis

_LESION_GRID_MM = 4.0
# Around a segmentation of the brain alone: outer radii of CSF, skull and skin in mm.
_SHELLS_MM = ((2.4, Tissue.CSF), (8.5, Tissue.SKULL), (13.0, Tissue.SKIN))
_BRAIN_TOP_MM = 70.0


class LabelVolume:
    """Tissue labels on axes (z, y, x): up, to the front, to the right.

    Args:
        labels: `Tissue` codes, [Z, Y, X]; outside the volume is air.
        voxel_mm: voxel size on the same axes.
        centre: index (z, y, x) at the centre of the field of view; the volume's by default.
    """

    def __init__(
        self,
        labels: Bytes,
        voxel_mm: tuple[float, float, float],
        centre: tuple[float, float, float] | None = None,
    ) -> None:
        self.labels = labels
        self.voxel_mm = np.array(voxel_mm)
        self.centre = (np.array(labels.shape) - 1) / 2 if centre is None else np.array(centre)

    def anatomy(self, z_mm: Floats) -> Anatomy:
        """Slices at heights ``z_mm``, by nearest neighbour."""
        axis = fine_axis()
        z, y, x = (self._nearest(i, at) for i, at in enumerate((z_mm, -axis, axis)))
        labels = self.labels[np.ix_(z.clip(0), y.clip(0), x.clip(0))]
        labels[z < 0] = labels[:, y < 0] = labels[:, :, x < 0] = Tissue.BACKGROUND
        return Anatomy(labels=labels, z_mm=z_mm, white_mm=self._white_mm())

    def _nearest(self, dimension: int, at_mm: Floats) -> NDArray[np.int64]:
        """Index along a dimension, -1 outside."""
        index = np.rint(at_mm / self.voxel_mm[dimension] + self.centre[dimension]).astype(np.int64)
        return np.where((index >= 0) & (index < self.labels.shape[dimension]), index, -1)

    def _white_mm(self) -> Floats:
        """White matter every 4 mm, in head coordinates (z, row, column)."""
        z, y, x = (max(1, round(_LESION_GRID_MM / v)) for v in self.voxel_mm)
        found = np.argwhere(self.labels[::z, ::y, ::x] == Tissue.WHITE) * (z, y, x)
        place: Floats = ((found - self.centre) * self.voxel_mm * (1, -1, 1)).astype(np.float32)
        return place


@lru_cache(maxsize=1)
def read_label_volume(path: Path, label_map: tuple[tuple[int, str], ...]) -> LabelVolume:
    """A NIfTI segmentation, centred on its brain; shells are added where it has no skull.

    Args:
        path: .nii or .nii.gz, any orientation.
        label_map: (value in the file, name of a `Tissue` in lower case); 0 is air unless it is
            named.

    Raises:
        DataError: the file cannot be read, is not 3-D, holds values that the map does not name,
            or no grey or white matter.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, ImageFileError) as fault:
        raise DataError(f"{path}: cannot be read as NIfTI ({fault})") from fault
    if values.ndim != 3:
        raise DataError(f"{path}: a label volume has three dimensions, got shape {values.shape}")
    named = [0, *(value for value, _ in label_map)]
    unknown = np.unique(values[~np.isin(values, named)])
    if unknown.size:
        shown = ", ".join(f"{value:g}" for value in unknown[:10])
        raise DataError(
            f"{path}: values {shown}{', ...' * (unknown.size > 10)} are not in the label map; name"
            " their tissue, or background if they are to be air"
        )
    labels = np.zeros(values.shape, np.uint8)
    for value, tissue in label_map:
        labels[values == value] = Tissue[tissue.upper()]
    brain = (labels == Tissue.GREY) | (labels == Tissue.WHITE)
    if not ((labels == Tissue.GREY).any() and (labels == Tissue.WHITE).any()):
        raise DataError(f"{path}: the label map finds no grey or no white matter in it")
    voxel_mm = tuple(float(v) for v in image.header.get_zooms()[2::-1])
    return _centred_head(labels.transpose(2, 1, 0), brain.transpose(2, 1, 0), voxel_mm)


def _centred_head(
    labels: Bytes, brain: NDArray[np.bool_], voxel_mm: tuple[float, ...]
) -> LabelVolume:
    """Head with the brain where BrainWeb's lies: its top 70 mm above the centre."""
    pad = [int(np.ceil(_SHELLS_MM[-1][0] / v)) + 1 for v in voxel_mm]
    widths = [(p, p) for p in pad]
    labels, brain = np.pad(labels, widths), np.pad(brain, widths)
    if not (labels == Tissue.SKULL).any():
        outside_mm = ndimage.distance_transform_edt(labels == Tissue.BACKGROUND, voxel_mm)
        inner = 0.0
        for outer, tissue in _SHELLS_MM:
            labels[(outside_mm > inner) & (outside_mm <= outer)] = tissue
            inner = outer
    where = np.argwhere(brain)
    low, high = where.min(0), where.max(0)
    _, y, x = (low + high) / 2
    z, dy, dx = voxel_mm
    return LabelVolume(labels, (z, dy, dx), (high[0] - _BRAIN_TOP_MM / z, y, x))


def check_label_map(label_map: Mapping[int, str]) -> tuple[tuple[int, str], ...]:
    """The map as pairs, sorted.

    Raises:
        ValueError: a name is no tissue; the known ones are listed.
    """
    known = [t.name.lower() for t in Tissue]
    unknown = sorted(set(label_map.values()) - set(known))
    if unknown:
        raise ValueError(f"unknown tissues {', '.join(unknown)}; known are {', '.join(known)}")
    return tuple(sorted(label_map.items()))
