"""Pictures of slices: methods side by side with their errors, and a data set at a glance.

All PET panels of a row share one scale and all error maps share another, so that what looks
different is different. Every function returns the bytes of a PNG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mfdiff_core.evaluation.canvas import (
    INK,
    LABEL_PT,
    MUTED,
    SMALL_PT,
    TITLE_PT,
    add_panel,
    colour_bar,
    new_figure,
    to_png,
)
from mfdiff_core.evaluation.metrics import MetricRow, evaluate_slices

Image = npt.NDArray[np.float32]

PET_COLOURS = "inferno"
MR_COLOURS = "gray"
ERROR_COLOURS = "RdBu_r"
ERROR_PERCENTILE = 99.5

_PANEL_IN, _GAP_IN, _MARGIN_IN = 1.35, 0.05, 0.08
_BAR_IN, _BAR_ROOM_IN = 0.07, 0.62
_TITLE_IN, _CAPTION_IN = 0.24, 0.26
_NAME_LENGTH = 18  # characters of a name that fit above a panel
_MOST_COLUMNS = 9  # more panels than these go on in a second band below


@dataclass(frozen=True, eq=False)
class Triplet:
    """MR, LPET and SPET of one slice [H, W]; both PET images in the same units."""

    x_m: Image
    x_p: Image
    x_s: Image


class Arrow(NamedTuple):
    """Points at a pixel of every panel, as the paper's Fig. 3 does at lesions."""

    row: float
    column: float
    colour: str


def comparison_figure(
    panels: Mapping[str, Image],
    x_s: Image,
    *,
    x_m: Image | None = None,
    unit: str = "kBq/mL",
    voxel_mm: float | None = None,
    title: str = "",
    arrows: Sequence[Arrow] = (),
) -> bytes:
    """One slice by several methods: images above, error maps below, PSNR and SSIM under each.

    Args:
        panels: LPET and restored images [H, W] by name, in the order shown.
        x_s: SPET, in the same units; it sets the scale of all PET panels.
        x_m: MR, shown first in a scale of its own.
        unit: unit of the PET images, written at the colour bars.
        voxel_mm: edge of a pixel; draws a bar of 5 cm.
        title: line above the figure.
        arrows: drawn in the upper row.

    Returns:
        PNG. Error maps show restored minus SPET on one scale, symmetric about 0, that ends at
        the 99.5th percentile of the first panel's, the LPET's: what is worse than it is saturated
        and leaves the others their contrast.

    Raises:
        ValueError: there are no panels.
    """
    if not panels:
        raise ValueError("a comparison needs at least one image, got panels={}")
    box = _head_box([x_s] if x_m is None else [x_s, x_m])
    columns = ([] if x_m is None else ["T1"]) + [*panels, "SPET"]
    bands = math.ceil(len(columns) / _MOST_COLUMNS)
    width = math.ceil(len(columns) / bands)
    page = _Page(width, 2 * bands, box, heading=bool(title), caption=True, band_rows=2)
    errors = {name: image - x_s for name, image in panels.items()}
    limit = _error_limit(errors)
    for place, name in enumerate(columns):
        row, column = 2 * (place // width), place % width
        page.name(column, name, row)
        if name == "T1" and x_m is not None:
            page.show(row, column, x_m, MR_COLOURS, _mr_range(x_m))
            continue
        image = panels.get(name, x_s)
        pet = page.show(row, column, image, PET_COLOURS, (0, float(x_s.max())))
        if name in panels:
            error = page.show(row + 1, column, errors[name], ERROR_COLOURS, (-limit, limit))
            page.caption(row + 1, column, _scores(evaluate_slices(image[None], x_s[None]).mean()))
    page.point(arrows)
    page.bar(0, pet, f"activity ({unit})")
    # Below the SPET there is no error map, so a single band has its bar there.
    beside = width - (2 if bands == 1 else 1)
    page.bar(1, error, f"restored − SPET ({unit})", column=beside, pointed=True)
    if voxel_mm:
        page.scale_bar(voxel_mm)
    page.heading(title)
    return to_png(page.figure)


def contact_sheet(
    rows: Mapping[str, Triplet], *, unit: str = "kBq/mL", voxel_mm: float | None = None
) -> bytes:
    """A data set at a glance: one row per setting; T1, LPET with its PSNR and SSIM, SPET.

    Args:
        rows: an example slice by setting; each row has its own activity scale.
        unit, voxel_mm: as for `comparison_figure`.
    """
    box = _head_box([image for row in rows.values() for image in (row.x_s, row.x_m)])
    page = _Page(3, len(rows), box, row_names=True, caption=True)
    for column, name in enumerate(("T1", "LPET", "SPET")):
        page.name(column, name)
    for index, (setting, row) in enumerate(rows.items()):
        page.row_name(index, setting)
        page.show(index, 0, row.x_m, MR_COLOURS, _mr_range(row.x_m))
        for column, image in ((1, row.x_p), (2, row.x_s)):
            pet = page.show(index, column, image, PET_COLOURS, (0, float(row.x_s.max())))
        page.caption(index, 1, _scores(evaluate_slices(row.x_p[None], row.x_s[None]).mean()))
        page.bar(index, pet, unit)
    if voxel_mm:
        page.scale_bar(voxel_mm)
    return to_png(page.figure)


class _Page:
    """A grid of equal panels, with room for names, captions and colour bars around it.

    Every ``band_rows`` rows there is room for captions and names between rows, as around them.
    """

    def __init__(
        self,
        num_columns: int,
        num_rows: int,
        box: tuple[slice, slice],
        *,
        heading: bool = False,
        row_names: bool = False,
        caption: bool = False,
        band_rows: int | None = None,
    ) -> None:
        self.box = box
        self.band_rows = band_rows or num_rows
        height = (box[0].stop - box[0].start) / (box[1].stop - box[1].start) * _PANEL_IN
        self.size = (_PANEL_IN, height)
        self.left = _MARGIN_IN + (0.3 if row_names else 0)
        self.bottom = _MARGIN_IN + (_CAPTION_IN if caption else 0)
        self.row_step = height + _GAP_IN + (_CAPTION_IN if row_names else 0)
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.heading_in = _TITLE_IN if heading else 0
        width = self.left + num_columns * (_PANEL_IN + _GAP_IN) + _BAR_ROOM_IN
        top = self.place(0, 0)[1] + height
        self.figure = new_figure(width, top + _TITLE_IN + self.heading_in)
        self.panels: dict[tuple[int, int], Any] = {}

    def place(self, row: int, column: int) -> tuple[float, float]:
        """Lower left corner of a panel in inches."""
        bands_below = (self.num_rows - 1) // self.band_rows - row // self.band_rows
        between = bands_below * (_TITLE_IN + _CAPTION_IN)
        return (
            self.left + column * (_PANEL_IN + _GAP_IN),
            self.bottom + (self.num_rows - 1 - row) * self.row_step + between,
        )

    def show(
        self, row: int, column: int, image: Image, colours: str, limits: tuple[float, float]
    ) -> Any:
        """Draw ``image`` cropped to the page's box; returns what a colour bar needs."""
        axes = add_panel(self.figure, *self.place(row, column), *self.size)
        self.panels[row, column] = axes
        low, high = limits
        return axes.imshow(
            image[self.box], cmap=colours, vmin=low, vmax=high, interpolation="bilinear"
        )

    def text(self, x_in: float, y_in: float, text: str, **style: Any) -> None:
        """Text at a place in inches."""
        width, height = self.figure.get_size_inches()
        self.figure.text(x_in / width, y_in / height, text, **style)

    def name(self, column: int, text: str, row: int = 0) -> None:
        """Name above a column."""
        x, y = self.place(row, column)
        x, y = x + self.size[0] / 2, y + self.size[1] + 0.07
        size = TITLE_PT * min(1, _NAME_LENGTH / len(text))
        self.text(x, y, text, ha="center", va="bottom", size=size, color=INK)

    def row_name(self, row: int, text: str) -> None:
        """Name left of a row, read from below."""
        y = self.place(row, 0)[1] + self.size[1] / 2
        style = {"ha": "right", "va": "center", "rotation": 90, "size": TITLE_PT, "color": INK}
        self.text(self.left - 0.1, y, text, **style)

    def caption(self, row: int, column: int, text: str) -> None:
        """Small text under a panel."""
        x, y = self.place(row, column)
        x, y = x + self.size[0] / 2, y - 0.05
        self.text(x, y, text, ha="center", va="top", size=LABEL_PT, color=MUTED)

    def bar(
        self,
        row: int,
        mappable: Any,
        text: str,
        column: int | None = None,
        *,
        pointed: bool = False,
    ) -> None:
        """Colour bar right of a panel, by default of the last one of its row."""
        x, y = self.place(row, self.num_columns - 1 if column is None else column)
        inset = 0.08 * self.size[1]
        place = (x + self.size[0] + 0.08, y + inset, _BAR_IN, self.size[1] - 2 * inset)
        colour_bar(self.figure, mappable, place, text, pointed=pointed)

    def scale_bar(self, voxel_mm: float) -> None:
        """Bar of 5 cm in the first panel."""
        length = 50 / voxel_mm / (self.box[1].stop - self.box[1].start)
        axes = self.panels[0, 0]
        inside = {"transform": axes.transAxes, "color": "white"}
        line = {"lw": 1.2, "solid_capstyle": "butt"}
        axes.plot([0.96 - length, 0.96], [0.04, 0.04], **inside, **line)
        text = {"size": SMALL_PT - 0.5, "ha": "center", "va": "bottom"}
        axes.text(0.96 - length / 2, 0.055, "5 cm", **inside, **text)

    def point(self, arrows: Sequence[Arrow]) -> None:
        """Arrows from the upper left in every panel of the first row of each band."""
        for (row, _), axes in self.panels.items():
            for arrow in arrows if row % self.band_rows == 0 else ():
                tip = (arrow.column - self.box[1].start, arrow.row - self.box[0].start)
                style = {"arrowstyle": "-|>", "color": arrow.colour, "lw": 1.0, "shrinkB": 3}
                axes.annotate("", tip, (-12, 12), textcoords="offset points", arrowprops=style)

    def heading(self, text: str) -> None:
        """Line above the whole figure, flush left."""
        top = float(self.figure.get_size_inches()[1])
        self.text(self.left, top - 0.06, text, ha="left", va="top", size=TITLE_PT, color=INK)


def _scores(row: MetricRow) -> str:
    return f"{row.psnr:.1f} dB   SSIM {row.ssim:.3f}"


def _mr_range(x_m: Image) -> tuple[float, float]:
    return 0.0, float(np.percentile(x_m, 99.8)) or 1.0


def _error_limit(errors: Mapping[str, Image]) -> float:
    first = next(iter(errors.values()))
    return float(np.percentile(np.abs(first), ERROR_PERCENTILE)) or 1.0


def _head_box(images: list[Image]) -> tuple[slice, slice]:
    """Rows and columns that hold the head in every image, with a margin of 4 %."""
    inside = np.any([image > 0.05 * image.max() for image in images], axis=0)
    return _extent(inside.any(axis=1)), _extent(inside.any(axis=0))


def _extent(occupied: npt.NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(occupied)
    if not len(places):
        return slice(0, len(occupied))
    margin = round(0.04 * len(occupied))
    return slice(max(0, places[0] - margin), min(len(occupied), places[-1] + 1 + margin))
