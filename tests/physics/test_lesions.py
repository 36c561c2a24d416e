from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mfdiff_core.physics.domains import recipe
from mfdiff_core.physics.head import Head, build_head
from mfdiff_core.physics.lesions import COLD, HOT, LesionConfig, draw_lesions
from mfdiff_core.physics.phantom import FINE_MM, FINE_PX, Anatomy, Floats, Tissue

HEIGHTS = np.arange(-20, 21, 2.0, dtype=np.float32)
CONTRAST = dataclasses.replace(recipe("phantom").contrast, mr_texture=0.0, mr_bias=0.0)


def white_ball() -> Anatomy:
    """White matter everywhere; lesions may lie on a few places."""
    places = np.array([[0, 0, 0], [4, 40, -30], [-8, -50, 20]], np.float32)
    labels = np.full((len(HEIGHTS), FINE_PX, FINE_PX), Tissue.WHITE, np.uint8)
    return Anatomy(labels=labels, z_mm=HEIGHTS, white_mm=places)


def head(config: LesionConfig, seed: int = 0) -> Head:
    return build_head(white_ball(), config, CONTRAST, (seed, "somebody"))


def table() -> Floats:
    return recipe("phantom").activity.fixed.table()


def test_lesions_of_pet_and_mr_are_independent() -> None:
    codes = draw_lesions(LesionConfig(), white_ball(), "pet", (0, "a"))
    assert not np.array_equal(codes, draw_lesions(LesionConfig(), white_ball(), "mr", (0, "a")))
    fewer_mr = LesionConfig(num_mr=0)
    assert np.array_equal(codes, draw_lesions(fewer_mr, white_ball(), "pet", (0, "a")))


def test_lesions_follow_seed_and_subject() -> None:
    draws = [
        draw_lesions(LesionConfig(), white_ball(), "pet", key)
        for key in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[3])


def test_a_lesion_is_a_sphere_of_the_drawn_size() -> None:
    config = LesionConfig(num_pet=1, num_mr=0, radius_mm=(7.0, 7.0), hot_fraction=1.0)
    codes = draw_lesions(config, white_ball(), "pet", (0, "a"))
    volume_ml = (codes == HOT).sum() * FINE_MM**2 * 2 / 1e3
    assert volume_ml == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.05)


def test_hot_fraction_of_the_lesions_is_hot() -> None:
    config = LesionConfig(num_pet=5, radius_mm=(1.0, 1.0), hot_fraction=0.6)
    places = np.array([[0, 30 * i, 40] for i in range(-3, 3)], np.float32)
    codes = [
        draw_lesions(config, dataclasses.replace(white_ball(), white_mm=places), "pet", (s, "a"))
        for s in range(5)
    ]
    painted = [int((c == code).sum()) for code in (HOT, COLD) for c in codes]
    assert min(painted) > 0


def test_activity_and_signal_of_lesions_are_the_recipes() -> None:
    subject = head(LesionConfig(num_pet=2, num_mr=2))
    activity, mr = subject.activity(table()), subject.mr()
    for code, pet_value, mr_value in ((HOT, 1.5 * 96, 1.5 * 154), (COLD, 0.5 * 32, 0.8 * 106)):
        assert np.allclose(activity[subject.pet_lesions == code], pet_value)
        assert np.allclose(mr[subject.mr_lesions == code], mr_value)
    assert np.allclose(activity[subject.pet_lesions == 0], 32)


def test_lesion_bits_tell_the_modalities_apart() -> None:
    subject = head(LesionConfig(num_pet=2, num_mr=3))
    bits = subject.lesion_bits()
    assert np.array_equal(bits & 1, subject.pet_lesions > 0)
    assert np.array_equal(bits & 2, 2 * (subject.mr_lesions > 0))


def test_no_white_matter_means_no_lesions() -> None:
    bare = dataclasses.replace(white_ball(), white_mm=np.empty((0, 3), np.float32))
    assert not draw_lesions(LesionConfig(), bare, "pet", (0, "a")).any()


def test_texture_varies_signal_as_configured() -> None:
    contrast = dataclasses.replace(CONTRAST, mr_texture=0.1, pet_texture=0.05)
    config = LesionConfig(num_pet=0, num_mr=0)
    subject = build_head(white_ball(), config, contrast, (0, "somebody"))
    mr, activity = subject.mr(), subject.activity(table())
    assert mr.std() / mr.mean() == pytest.approx(0.1, rel=0.1)
    assert activity.std() / activity.mean() == pytest.approx(0.05, rel=0.1)
    assert abs(np.corrcoef(mr[0].ravel(), activity[0].ravel())[0, 1]) < 0.1


def test_bad_lesions_are_refused() -> None:
    with pytest.raises(ValueError, match="num_pet=-1"):
        LesionConfig(num_pet=-1)
    with pytest.raises(ValueError, match="radius_mm"):
        LesionConfig(radius_mm=(8.0, 5.0))
    with pytest.raises(ValueError, match="hot_fraction"):
        LesionConfig(hot_fraction=1.2)
