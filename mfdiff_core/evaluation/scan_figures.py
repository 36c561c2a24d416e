"""Pictures of whole scans: three orthogonal views, registration overlays, frames in time.

Every function returns the bytes of a PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from mfdiff_core.data.image_checks import Affine
from mfdiff_core.data.plane_fit import head_mask
from mfdiff_core.data.volumes import Volume, resample
from mfdiff_core.evaluation.canvas import (
    ACCENT,
    INK,
    LABEL_PT,
    MUTED,
    SECOND,
    TITLE_PT,
    add_panel,
    colour_bar,
    new_figure,
    style_axes,
    to_png,
)
from mfdiff_core.physics.psf import FWHM_PER_SIGMA

Kind = Literal["pet", "mr", "spread", "difference"]
Views = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]

_COLOURS = {"pet": "inferno", "mr": "gray", "spread": "viridis", "difference": "RdBu_r"}
_VIEWS = ("axial", "coronal", "sagittal")
_SIZE, _VOXEL_MM = 160, 1.5  # a cube of 240 mm
_LINES_FWHM_MM = 10.0  # of the filter before level lines are drawn: those of noise are speckles
_PANEL_IN, _GAP_IN, _MARGIN_IN, _TITLE_IN, _BAR_IN = 1.5, 0.04, 0.28, 0.24, 0.7


@dataclass(frozen=True)
class Column:
    """One image of a page: its name, the volume and how it is coloured."""

    name: str
    volume: Volume
    kind: Kind
    unit: str = ""


def orthogonal_figure(columns: Sequence[Column], centre_of: Volume) -> bytes:
    """Axial, coronal and sagittal views through the middle of the head, one column per image.

    Args:
        columns: images in the order shown; those of kind "pet" share one scale.
        centre_of: the PET whose head is looked at.
    """
    affine = _around_head(centre_of)
    drawn_from = [_views(column.volume, affine) for column in columns]
    limits = [_limits(v, column.kind) for v, column in zip(drawn_from, columns, strict=True)]
    pet_limit = max(
        (top for (_, top), column in zip(limits, columns, strict=True) if column.kind == "pet"),
        default=1.0,
    )
    step = _PANEL_IN + _BAR_IN
    height = 3 * (_PANEL_IN + _GAP_IN) + _TITLE_IN
    figure = new_figure(_MARGIN_IN + len(columns) * step, height)
    for index, (column, views) in enumerate(zip(columns, drawn_from, strict=True)):
        shown = (0.0, pet_limit) if column.kind == "pet" else limits[index]
        left = _MARGIN_IN + index * step
        for row, image in enumerate(views):
            drawn = _show(figure, left, row, image, _COLOURS[column.kind], shown)
        _text(figure, left + _PANEL_IN / 2, height - 0.18, column.name, TITLE_PT, INK)
        bar = (left + _PANEL_IN + 0.04, _PANEL_IN + _GAP_IN + 0.2, 0.06, _PANEL_IN - 0.4)
        colour_bar(figure, drawn, bar, column.unit)
    _view_names(figure)
    return to_png(figure)


def overlay_figure(pet: Volume, mrs: Mapping[str, Volume]) -> bytes:
    """The PET's outline and level lines on the MR in three views, one row per MR.

    Args:
        pet: what the MR should lie on; a Gaussian of 10 mm FWHM is applied before lines are drawn.
        mrs: MR by name, such as before and after registration.
    """
    affine = _around_head(pet)
    activity = _views(_smoothed(pet), affine)
    top = _limits(activity, "pet")[1]
    levels = [0.25 * top, 0.6 * top]
    height = len(mrs) * (_PANEL_IN * 1.3 + _GAP_IN) + _TITLE_IN
    figure = new_figure(_MARGIN_IN + 3 * (_PANEL_IN * 1.3 + _GAP_IN), height)
    for row, (name, mr) in enumerate(mrs.items()):
        anatomy = _views(mr, affine)
        limits = _limits(anatomy, "mr")
        for column, (image, lines) in enumerate(zip(anatomy, activity, strict=True)):
            side = _PANEL_IN * 1.3
            left = _MARGIN_IN + column * (side + _GAP_IN)
            bottom = height - _TITLE_IN - (row + 1) * (side + _GAP_IN)
            axes = add_panel(figure, left, bottom, side, side)
            axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
            if lines.max() > levels[0]:
                axes.contour(lines, levels, colors=["#ffb000", "#ff5a36"], linewidths=0.6)
            if row == 0:
                _text(figure, left + side / 2, height - 0.18, _VIEWS[column], TITLE_PT, INK)
        _text(figure, 0.14, bottom + side / 2, name, TITLE_PT, INK, rotation=90)
    return to_png(figure)


def _smoothed(pet: Volume) -> Volume:
    voxels_mm = np.linalg.norm(pet.affine[:3, :3], axis=0)
    sigma = _LINES_FWHM_MM / FWHM_PER_SIGMA / voxels_mm
    return pet.with_data(gaussian_filter(pet.data, sigma))


def frames_figure(
    frames: Sequence[tuple[float, float]], used: Mapping[str, Sequence[tuple[float, float]]]
) -> bytes:
    """Frames in time, and which of them make which image.

    Args:
        frames: (start, end) of every frame in seconds.
        used: the same for the frames of each image, by its name.
    """
    rows = {"all frames": frames, **used}
    figure = new_figure(7.0, 0.55 + 0.26 * len(rows))
    height = float(figure.get_size_inches()[1])
    axes = add_panel(figure, 1.1, 0.42, 5.75, height - 0.5)
    axes.set_axis_on()
    style_axes(axes)
    for row, (name, spans) in enumerate(rows.items()):
        colour = MUTED if row == 0 else (ACCENT if row == 1 else SECOND)
        bars = [(start / 60, (end - start) / 60) for start, end in spans]
        axes.broken_barh(bars, (-row - 0.35, 0.7), facecolors=colour, linewidth=0)
        axes.text(-0.01, -row, name, transform=axes.get_yaxis_transform(), ha="right", va="center",
                  size=LABEL_PT, color=INK)  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_xlabel("minutes after time zero", size=LABEL_PT, color=MUTED)
    return to_png(figure)


def _around_head(pet: Volume) -> Affine:
    """Grid of a cube about the middle of the head along RAS axes."""
    head = head_mask(pet.data)
    index = [_middle(head.sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    centre = pet.affine[:3, :3] @ index + pet.affine[:3, 3]
    affine = np.diag([_VOXEL_MM, _VOXEL_MM, _VOXEL_MM, 1.0])
    affine[:3, 3] = centre - _VOXEL_MM * (_SIZE - 1) / 2
    return affine


def _middle(profile: npt.NDArray[Any]) -> float:
    rows = np.flatnonzero(profile > 0.05 * profile.max())
    return float(rows[0] + rows[-1]) / 2 if len(rows) else (len(profile) - 1) / 2


def _views(volume: Volume, affine: Affine) -> Views:
    """Axial with the nose up, coronal, sagittal with the nose to the left; right is right."""
    axial, coronal, sagittal = (_plane(volume, affine, axis) for axis in (2, 1, 0))
    return axial[:, ::-1].T, coronal[:, ::-1].T, sagittal[::-1, ::-1].T


def _plane(volume: Volume, affine: Affine, axis: int) -> npt.NDArray[np.float32]:
    """The middle plane of the cube across one axis; the voxels are shown as they are."""
    place = affine.copy()
    place[:3, 3] += place[:3, axis] * (_SIZE // 2)
    shape = tuple(1 if each == axis else _SIZE for each in range(3))
    return resample(volume, place, shape, voxel=volume.affine).squeeze(axis)


def _limits(views: Views, kind: Kind) -> tuple[float, float]:
    values = np.abs(np.concatenate([view.ravel() for view in views]))
    seen = values[values > 0]
    top = float(np.percentile(seen, 99.5)) if len(seen) else 1.0
    return (-top if kind == "difference" else 0.0), top


def _show(
    figure: Any,
    left: float,
    row: int,
    image: npt.NDArray[np.float32],
    colours: str,
    limits: tuple[float, float],
) -> Any:
    bottom = (2 - row) * (_PANEL_IN + _GAP_IN)
    axes = add_panel(figure, left, bottom, _PANEL_IN, _PANEL_IN)
    low, high = limits
    return axes.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="bilinear")


def _view_names(figure: Any) -> None:
    for row, name in enumerate(_VIEWS):
        bottom = (2 - row) * (_PANEL_IN + _GAP_IN)
        _text(figure, 0.14, bottom + _PANEL_IN / 2, name, LABEL_PT, MUTED, rotation=90)


def _text(figure: Any, x_in: float, y_in: float, text: str, size: float, colour: str,
          rotation: float = 0) -> None:  # fmt: skip
    width, height = figure.get_size_inches()
    style = {"ha": "center", "va": "center" if rotation else "bottom", "size": size}
    figure.text(x_in / width, y_in / height, text, color=colour, rotation=rotation, **style)
