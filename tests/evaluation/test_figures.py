from __future__ import annotations

import io
import sys

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from mfdiff_core.evaluation import figures
from mfdiff_core.evaluation.figures import Triplet, comparison_figure, contact_sheet

Image = npt.NDArray[np.float32]


def slices() -> tuple[Image, Image, Image]:
    r = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 22
    x_s = gaussian_filter(disc * r.uniform(5, 15, disc.shape), 1).astype(np.float32)
    x_p = (x_s + disc * r.standard_normal(disc.shape)).astype(np.float32)
    return x_p, disc.astype(np.float32), x_s


def pixels(png: bytes) -> npt.NDArray[np.float32]:
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))


def comparison() -> bytes:
    x_p, x_m, x_s = slices()
    panels = {"LPET": x_p, "a method with a rather long name": 0.5 * (x_p + x_s)}
    return comparison_figure(panels, x_s, x_m=x_m, voxel_mm=2.0, title="subject 1")


def test_comparison_has_a_column_per_image_and_two_rows() -> None:
    x_p, _, x_s = slices()
    two, three = (
        pixels(comparison_figure({str(i): x_p for i in range(n)}, x_s)).shape for n in (1, 2)
    )
    assert three[0] == two[0]
    assert three[1] - two[1] == pytest.approx(1.4 * 200, abs=1)  # a panel and its gap at 200 dpi


def test_drawing_twice_gives_the_same_bytes() -> None:
    assert comparison() == comparison()


def test_error_maps_share_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, tuple[float, float]]] = []
    show = figures._Page.show

    def spy(page: figures._Page, row: int, column: int, image: Image, *how: object) -> object:
        shown.append(how)  # type: ignore[arg-type]
        return show(page, row, column, image, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(figures._Page, "show", spy)
    comparison()
    errors = [limits for colours, limits in shown if colours == figures.ERROR_COLOURS]
    pets = [limits for colours, limits in shown if colours == figures.PET_COLOURS]
    assert len(errors) == 2
    assert len(set(errors)) == 1
    assert errors[0][0] == -errors[0][1]
    assert len(pets) == 3
    assert len(set(pets)) == 1


def test_error_maps_end_at_the_errors_of_the_lpet_however_bad_another_is() -> None:
    x_p, _, x_s = slices()
    alone = {"LPET": x_p - x_s}
    limit = figures._error_limit({**alone, "good": 0.1 * (x_p - x_s), "failed": 100 * x_s})
    assert (
        limit == figures._error_limit(alone) == pytest.approx(np.percentile(abs(x_p - x_s), 99.5))
    )


def test_arrows_are_drawn_in_the_upper_row_alone() -> None:
    x_p, _, x_s = slices()
    arrow = figures.Arrow(32, 32, "#00ff00")
    plain, pointed = (
        pixels(comparison_figure({"LPET": x_p}, x_s, arrows=arrows)) for arrows in ((), [arrow])
    )
    changed = np.flatnonzero((plain != pointed).any(axis=(1, 2)))
    assert len(changed)
    assert changed.max() < len(plain) / 2


def test_contact_sheet_has_a_row_per_setting() -> None:
    x_p, x_m, x_s = slices()
    row = Triplet(x_m, x_p, x_s)
    one, three = (
        pixels(contact_sheet(dict.fromkeys(names, row), voxel_mm=2.0)).shape
        for names in (("16s",), ("16s", "2min", "uld"))
    )
    assert three[0] > 2.5 * one[0]
    assert three[1] == one[1]


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        comparison_figure({}, slices()[2])


def test_many_methods_go_on_in_a_second_band() -> None:
    x_s, x_p, _ = slices()
    few, many = (
        pixels(comparison_figure({str(i): x_p for i in range(n)}, x_s)).shape for n in (8, 16)
    )
    assert many[1] == few[1]
    assert many[0] > 1.9 * few[0]


def test_figures_leave_matplotlib_state_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    comparison()
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
