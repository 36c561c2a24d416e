"""Pictures of whole scans: three orthogonal views, registration overlays, frames in time.

Every function returns the bytes of a PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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

Kind = Literal["pet", "mr", "spread", "difference"]
Cube = npt.NDArray[np.float32]

_COLOURS = {"pet": "inferno", "mr": "gray", "spread": "viridis", "difference": "RdBu_r"}
_VIEWS = ("axial", "coronal", "sagittal")
_CUBE_MM, _VOXEL_MM = 240.0, 1.5
_PANEL_IN, _GAP_IN, _MARGIN_IN, _TITLE_IN, _BAR_IN = 1.5, 0.04, 0.28, 0.24, 0.55


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
    affine, size = _around_head(centre_of)
    cubes = [resample(column.volume, affine, size) for column in columns]
    pets = [cube for cube, column in zip(cubes, columns, strict=True) if column.kind == "pet"]
    pet_limit = max((float(np.percentile(cube, 99.9)) for cube in pets), default=1.0)
    step = _PANEL_IN + _BAR_IN
    height = 3 * (_PANEL_IN + _GAP_IN) + _TITLE_IN
    figure = new_figure(_MARGIN_IN + len(columns) * step, height)
    for index, (column, cube) in enumerate(zip(columns, cubes, strict=True)):
        limits = (0.0, pet_limit) if column.kind == "pet" else _limits(cube, column.kind)
        left = _MARGIN_IN + index * step
        for row, image in enumerate(_views(cube)):
            drawn = _show(figure, left, row, image, _COLOURS[column.kind], limits)
        _text(figure, left + _PANEL_IN / 2, height - 0.18, column.name, TITLE_PT, INK)
        bar = (left + _PANEL_IN + 0.04, _PANEL_IN + _GAP_IN + 0.2, 0.06, _PANEL_IN - 0.4)
        colour_bar(figure, drawn, bar, column.unit)
    _view_names(figure)
    return to_png(figure)


def overlay_figure(pet: Volume, mrs: Mapping[str, Volume]) -> bytes:
    """The PET's outline and level lines on the MR in three views, one row per MR.

    Args:
        pet: what the MR should lie on.
        mrs: MR by name, such as before and after registration.
    """
    affine, size = _around_head(pet)
    cube = resample(pet, affine, size)
    levels = [0.25 * np.percentile(cube, 99.9), 0.6 * np.percentile(cube, 99.9)]
    height = len(mrs) * (_PANEL_IN * 1.3 + _GAP_IN) + _TITLE_IN
    figure = new_figure(_MARGIN_IN + 3 * (_PANEL_IN * 1.3 + _GAP_IN), height)
    for row, (name, mr) in enumerate(mrs.items()):
        shown = resample(mr, affine, size)
        limits = _limits(shown, "mr")
        for column, (image, lines) in enumerate(zip(_views(shown), _views(cube), strict=True)):
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


def _around_head(pet: Volume) -> tuple[Affine, tuple[int, int, int]]:
    """A cube about the middle of the head along RAS axes: its affine and size."""
    head = head_mask(pet.data)
    index = [_middle(head.sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    centre = pet.affine[:3, :3] @ index + pet.affine[:3, 3]
    size = round(_CUBE_MM / _VOXEL_MM)
    affine = np.diag([_VOXEL_MM, _VOXEL_MM, _VOXEL_MM, 1.0])
    affine[:3, 3] = centre - _VOXEL_MM * (size - 1) / 2
    return affine, (size, size, size)


def _middle(profile: npt.NDArray[Any]) -> float:
    rows = np.flatnonzero(profile > 0.05 * profile.max())
    return float(rows[0] + rows[-1]) / 2 if len(rows) else (len(profile) - 1) / 2


def _views(cube: Cube) -> tuple[Cube, Cube, Cube]:
    """Axial with the nose up, coronal, sagittal with the nose to the left; right is right."""
    x, y, z = (size // 2 for size in cube.shape)
    axial, coronal = cube[:, ::-1, z].T, cube[:, y, ::-1].T
    return axial, coronal, cube[x, ::-1, ::-1].T


def _limits(cube: Cube, kind: Kind) -> tuple[float, float]:
    seen = np.abs(cube[cube != 0])
    top = float(np.percentile(seen, 99.5)) if len(seen) else 1.0
    return (-top if kind == "difference" else 0.0), top


def _show(
    figure: Any, left: float, row: int, image: Cube, colours: str, limits: tuple[float, float]
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
