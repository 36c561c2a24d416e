"""Drawing surface shared by figures and charts: one look, no global matplotlib state."""

from __future__ import annotations

import io
from typing import Any

DPI = 200
INK, MUTED, RULE = "#1a1a1a", "#6b6b6b", "#d0d0d0"
ACCENT, SECOND = "#1f5a94", "#b5482a"
TITLE_PT, LABEL_PT, SMALL_PT = 8.5, 7.5, 6.5


def new_figure(width_in: float, height_in: float) -> Any:
    """Empty white matplotlib figure on an Agg canvas of its own, apart from pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Any) -> bytes:
    """PNG bytes of ``figure``; the same drawing gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def add_panel(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place given in inches from the lower left corner, without frame or ticks."""
    page_width, page_height = figure.get_size_inches()
    place = (left / page_width, bottom / page_height, width / page_width, height / page_height)
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def style_axes(axes: Any) -> None:
    """Thin left and bottom lines, small grey tick labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(labelsize=SMALL_PT, color=RULE, labelcolor=MUTED, width=0.8, length=2.5)


def colour_bar(
    figure: Any,
    mappable: Any,
    place_in: tuple[float, float, float, float],
    text: str,
    *,
    pointed: bool = False,
) -> None:
    """Thin vertical colour bar at a place in inches (left, bottom, width, height).

    ``pointed`` gives it an arrow at either end: there are values beyond.
    """
    axes = add_panel(figure, *place_in)
    axes.set_axis_on()
    bar = figure.colorbar(mappable, cax=axes, extend="both" if pointed else "neither")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_PT, labelcolor=MUTED, color=RULE, width=0.6, length=2)
    bar.ax.yaxis.get_offset_text().set(size=SMALL_PT, color=MUTED)
    bar.locator = _few_ticks()
    bar.update_ticks()
    bar.set_label(text, size=SMALL_PT, color=MUTED)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
