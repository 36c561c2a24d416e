from __future__ import annotations

import dataclasses
from importlib import resources
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from mfdiff_core.physics.mni import AnatomyConfig, mni_anatomy
from mfdiff_core.physics.phantom import FINE_MM, Tissue
from mfdiff_core.physics.random_field import RandomField
from mfdiff_core.seeding import rng

HEIGHTS = np.array([6.1, 20.3, 34.5], np.float32)


@pytest.fixture(scope="module")
def people() -> list[NDArray[np.uint8]]:
    names = [f"mni-{i:02d}" for i in range(1, AnatomyConfig().num_subjects + 1)]
    return [mni_anatomy(AnatomyConfig(), name, HEIGHTS).labels for name in names]


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_subjects_differ_as_much_as_real_people(people: list[NDArray[np.uint8]]) -> None:
    grey = [labels == Tissue.GREY for labels in people]
    pairs = [dice(a, b) for a, b in combinations(grey, 2)]
    assert len(pairs) == 20 * 19 / 2
    assert min(pairs) > 0.50
    assert max(pairs) < 0.68


def test_a_slice_does_not_depend_on_which_others_are_asked_for() -> None:
    alone = mni_anatomy(AnatomyConfig(), "mni-03", HEIGHTS[1:2])
    among = mni_anatomy(AnatomyConfig(), "mni-03", HEIGHTS)
    assert np.array_equal(alone.labels[0], among.labels[1])
    assert np.array_equal(alone.white_mm, among.white_mm)


def test_tissue_volumes_are_human(people: list[NDArray[np.uint8]]) -> None:
    for labels in people:
        area_cm2 = np.bincount(labels.ravel(), minlength=12) * FINE_MM**2 / 100 / len(HEIGHTS)
        assert 45 < area_cm2[Tissue.GREY] < 100
        assert 45 < area_cm2[Tissue.WHITE] < 90
        assert 0.8 < area_cm2[Tissue.GREY] / area_cm2[Tissue.WHITE] < 1.8


def test_front_is_up(people: list[NDArray[np.uint8]]) -> None:
    # heads are broader behind the middle, over the parietal lobes
    behind = []
    for labels in people:
        width = (labels[0] > 0).sum(1)
        rows = np.flatnonzero(width)
        behind.append(rows[width[rows].argmax()] - rows.mean())
    assert np.mean(behind) * FINE_MM > 5


def test_head_is_closed_by_skull_and_skin(people: list[NDArray[np.uint8]]) -> None:
    for labels in people:
        for image in labels:
            head = ndimage.binary_fill_holes(image > 0)
            assert np.array_equal(head, image > 0)
            rim = head & ~ndimage.binary_erosion(head)
            assert (image[rim] == Tissue.SKIN).mean() > 0.99
            brain = np.isin(image, (Tissue.GREY, Tissue.WHITE))
            skull = np.isin(image, (Tissue.SKULL, Tissue.MARROW))
            assert (ndimage.binary_fill_holes(skull) & brain).sum() == brain.sum()


def test_head_fits_the_field_when_turned(people: list[NDArray[np.uint8]]) -> None:
    for labels in people:
        rows = np.argwhere(labels.any((0, 2)))
        columns = np.argwhere(labels.any((0, 1)))
        half = (labels.shape[1] - 1) / 2
        assert max(abs(rows - half).max(), abs(columns - half).max()) < half - 30


def test_lesion_places_lie_in_white_matter() -> None:
    heights = np.arange(-40, 61, 4.0, dtype=np.float32)
    anatomy = mni_anatomy(AnatomyConfig(), "mni-01", heights)
    centre = (anatomy.labels.shape[1] - 1) / 2
    inside = [p for p in anatomy.white_mm if p[0] in heights]
    assert len(inside) > 1000
    hits = [
        anatomy.labels[
            np.flatnonzero(heights == z)[0],
            round(r / FINE_MM + centre),
            round(c / FINE_MM + centre),
        ]
        for z, r, c in inside
    ]
    assert np.mean(np.array(hits) == Tissue.WHITE) > 0.8  # rounding to the fine grid moves edges


def test_thicker_cortex_means_more_grey_matter() -> None:
    thin, thick = (
        mni_anatomy(dataclasses.replace(AnatomyConfig(), cortex=c), "mni-01", HEIGHTS).labels
        for c in (-0.1, 0.1)
    )
    assert (thick == Tissue.GREY).sum() > 1.1 * (thin == Tissue.GREY).sum()


def test_random_field_has_unit_variance_and_its_scale() -> None:
    fields = RandomField(6.0, rng(0, "test"), num_fields=4)
    axis = np.arange(-110, 111, 2.0, dtype=np.float32)
    values = fields(np.array([0.0], np.float32), axis, axis)[:, 0]
    assert values.std() == pytest.approx(1.0, abs=0.1)
    shifted = np.mean(values[:, :, 3:] * values[:, :, :-3]) / np.mean(values**2)
    assert shifted == pytest.approx(np.exp(-((6 / 12) ** 2)), abs=0.06)


def test_template_is_small_plain_and_travels_with_its_notice() -> None:
    folder = resources.files("mfdiff_core.physics") / "data"
    asset = folder / "mni152_tissue.npz"
    assert len(asset.read_bytes()) < 1_500_000
    with asset.open("rb") as file, np.load(file, allow_pickle=False) as data:
        assert {data[name].dtype.kind for name in data.files} <= {"u", "f"}
    assert "Louis Collins, McConnell Brain Imaging Centre" in (folder / "NOTICE.md").read_text()


def test_bad_anatomy_is_refused() -> None:
    with pytest.raises(ValueError, match="warp_rms_mm"):
        AnatomyConfig(warp_rms_mm=(1.0,))
    with pytest.raises(ValueError, match="scale"):
        AnatomyConfig(scale=(2.0, 0.1))
    with pytest.raises(ValueError, match="num_subjects"):
        AnatomyConfig(num_subjects=0)
