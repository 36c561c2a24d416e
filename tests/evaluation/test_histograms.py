from __future__ import annotations

import numpy as np

from mfdiff_core.evaluation.histograms import BINS, HIGHEST, Images, histogram_chart, shares

EDGES = np.linspace(0, HIGHEST, BINS + 1)


def test_shares_are_percentages_of_all_pixels() -> None:
    values = np.random.default_rng(0).random(1000).astype(np.float32)
    assert np.isclose(shares(values, EDGES).sum(), 100)


def test_pixels_beyond_the_axis_count_in_its_last_bin() -> None:
    values = np.array([0.01, 5.0, 9.0, 0.01], dtype=np.float32)
    assert shares(values, EDGES)[[0, -1]].tolist() == [50, 50]


def test_setting_without_pixels_is_a_flat_line() -> None:
    assert not shares(np.zeros(0, dtype=np.float32), EDGES).any()


def test_chart_is_the_same_for_the_same_images() -> None:
    images = np.random.default_rng(0).random((2, 8, 8)).astype(np.float32)
    kinds: dict[str, Images] = {"LPET": images, "SPET": images / np.float32(2), "T1": images}
    settings = {"ld": kinds, "uld": kinds}
    first = histogram_chart(settings)
    assert first.startswith(b"\x89PNG")
    assert first == histogram_chart(settings)
