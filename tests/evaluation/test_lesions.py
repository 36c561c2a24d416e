"""Lesions painted by hand on a flat head, so that every contrast is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mfdiff_core.data.slices import MR_LESION, PET_LESION
from mfdiff_core.evaluation.lesions import (
    INVENTED_ABOVE,
    null_excesses,
    score_lesions,
    summarise_lesions,
)

Images = npt.NDArray[Any]
SIZE = 40
BACKGROUND = 100.0


def spot(row: int, column: int, radius: float = 2.5) -> Images:
    y, x = np.mgrid[:SIZE, :SIZE]
    mask: Images = (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return mask


def flat(*spots: tuple[Images, float]) -> Images:
    """One slice [1, H, W] of even activity with spots of given contrast."""
    image = np.full((1, SIZE, SIZE), BACKGROUND)
    for mask, contrast in spots:
        image[0][mask] *= 1 + contrast
    return image


PET_SPOT, MR_SPOT, BOTH_SPOT = spot(10, 10), spot(10, 28), spot(28, 12)


@pytest.fixture
def lesions() -> Images:
    bits = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    bits[0][PET_SPOT] = PET_LESION
    bits[0][MR_SPOT] = MR_LESION
    bits[0][BOTH_SPOT] = PET_LESION | MR_LESION
    return bits


@pytest.fixture
def x_s() -> Images:
    return flat((PET_SPOT, 0.6), (BOTH_SPOT, -0.4))


def test_recovery_is_the_share_of_contrast_that_is_left(lesions: Images, x_s: Images) -> None:
    restored = 3 * flat((PET_SPOT, 0.3), (BOTH_SPOT, -0.4), (MR_SPOT, 0.25))
    scores = {score.kind: score for score in score_lesions(restored, x_s, lesions, ["a"])}
    assert scores["PET-only"].recovery == pytest.approx(0.5)
    assert scores["PET and MR"].recovery == pytest.approx(1.0)
    assert scores["MR-only"].excess == pytest.approx(0.25)
    assert math.isnan(scores["MR-only"].recovery)
    assert {score.subject for score in scores.values()} == {"a"}


@pytest.mark.parametrize(("kept", "lost_share"), [(0.6, 0.0), (0.31, 0.0), (0.29, 1.0), (0, 1.0)])
def test_lesion_with_less_than_half_its_contrast_is_lost(
    lesions: Images, x_s: Images, kept: float, lost_share: float
) -> None:
    restored = flat((PET_SPOT, kept), (BOTH_SPOT, -0.4))
    found = summarise_lesions(score_lesions(restored, x_s, lesions, ["a"]))
    assert found is not None
    assert (found.num_pet_only, found.lost_share) == (1, lost_share)


@pytest.mark.parametrize(("wiped", "lost_share"), [("surroundings", 0.0), ("everything", 1.0)])
def test_every_method_is_judged_by_the_same_lesions_whatever_it_wipes_out(
    lesions: Images, x_s: Images, wiped: str, lost_share: float
) -> None:
    restored = np.where(PET_SPOT, x_s, 0) if wiped == "surroundings" else np.zeros_like(x_s)
    found = summarise_lesions(score_lesions(restored, x_s, lesions, ["a"]))
    assert found is not None
    assert (found.num_pet_only, found.lost_share) == (1, lost_share)
    assert (found.num_both, found.num_mr_only) == (1, 1)


@pytest.mark.parametrize(("brought", "share"), [(0.0, 0.0), (0.15, 0.0), (0.3, 1.0), (-0.3, 1.0)])
def test_structure_of_the_mr_that_shows_in_the_pet_is_invented(
    lesions: Images, x_s: Images, brought: float, share: float
) -> None:
    restored = flat((PET_SPOT, 0.6), (BOTH_SPOT, -0.4), (MR_SPOT, brought))
    null = null_excesses(restored, x_s, lesions)
    found = summarise_lesions(score_lesions(restored, x_s, lesions, ["a"]), null)
    assert found is not None
    assert (found.num_mr_only, found.invented_share) == (1, share)
    assert found.threshold == INVENTED_ABOVE


def test_noise_where_there_is_no_lesion_raises_the_threshold() -> None:
    generator = np.random.default_rng(0)
    lesions = np.zeros((20, SIZE, SIZE), dtype=np.uint8)
    lesions[:, MR_SPOT] = MR_LESION
    x_s = np.full((20, SIZE, SIZE), BACKGROUND)
    restored = x_s * (1 + generator.normal(0, 1.0, x_s.shape)).clip(0)
    null = null_excesses(restored, x_s, lesions)
    found = summarise_lesions(score_lesions(restored, x_s, lesions, ["a"] * 20), null)
    assert found is not None
    assert len(null) == 20
    assert found.threshold == pytest.approx(2 * math.sqrt(np.mean(np.square(null))))
    assert found.threshold > INVENTED_ABOVE
    assert found.invented_share <= 0.2


@pytest.mark.parametrize(("lesion", "invented"), [(BACKGROUND, 1.0), (0.0, 0.0)])
def test_structure_of_the_mr_on_black_is_invented_and_black_alone_is_not(
    lesions: Images, x_s: Images, lesion: float, invented: float
) -> None:
    for around in (0.0, 1e-9):
        restored = np.where(MR_SPOT | PET_SPOT, lesion, around)[None]
        found = summarise_lesions(score_lesions(restored, x_s, lesions, ["a"]))
        assert found is not None
        assert found.invented_share == invented
        assert abs(found.mean_recovery) < 10  # no single ring decides the mean of a table


def test_the_spet_alone_says_where_there_is_no_activity() -> None:
    lesions = np.zeros((2, SIZE, SIZE), dtype=np.uint8)
    lesions[:, MR_SPOT] = MR_LESION
    x_s = np.concatenate((flat(), 100 * flat()))  # each slice by its own maximum
    assert len(null_excesses(np.zeros_like(x_s), x_s, lesions)) == 2


def test_mirror_image_that_meets_a_lesion_is_no_null(x_s: Images, lesions: Images) -> None:
    lesions[0][MR_SPOT[:, ::-1]] = PET_LESION
    assert null_excesses(x_s, x_s, lesions) == []


@pytest.mark.parametrize(("activity", "expected"), [(0.09, 0), (0.11, 1)])
def test_mirror_image_without_activity_is_no_null(activity: float, expected: int) -> None:
    lesions = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    lesions[0][MR_SPOT] = MR_LESION
    x_s = flat((MR_SPOT[:, ::-1], activity - 1))
    assert len(null_excesses(x_s, x_s, lesions)) == expected


def test_spots_too_small_and_lesions_the_spet_hides_are_not_judged() -> None:
    lesions = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    lesions[0][spot(10, 10, 0.5)] = PET_LESION
    lesions[0][PET_SPOT[::-1]] = PET_LESION
    flat_head = flat()
    scores = score_lesions(flat_head, flat_head, lesions, ["a"])
    assert len(scores) == 1
    assert math.isnan(scores[0].recovery)
    assert summarise_lesions(scores) is None


def test_no_lesions_no_summary(x_s: Images) -> None:
    assert summarise_lesions(score_lesions(x_s, x_s, np.zeros_like(x_s, dtype=int), ["a"])) is None


def test_shapes_that_differ_are_refused(x_s: Images, lesions: Images) -> None:
    with pytest.raises(ValueError, match="must agree"):
        score_lesions(x_s, x_s, lesions[:, 1:], ["a"])
    with pytest.raises(ValueError, match="must agree"):
        score_lesions(x_s, x_s, lesions, [])
