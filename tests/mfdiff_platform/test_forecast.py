from __future__ import annotations

import math

import pytest

from mfdiff_platform.forecast import Forecast


@pytest.fixture
def forecast() -> Forecast:
    """One trial came from 20 to 26, one from 24 to 28."""
    known = Forecast()
    known.learn("two_stage", {4: 20.0, 8: 23.0}, 26.0)
    known.learn("two_stage", {4: 24.0, 8: 27.0}, 28.0)
    return known


@pytest.mark.parametrize(
    ("score", "gain"), [(20.0, 6.0), (22.0, 5.0), (24.0, 4.0), (10.0, 6.0), (30.0, 4.0)]
)
def test_gain_lies_between_those_of_the_trials_that_stood_above_and_below(
    forecast: Forecast, score: float, gain: float
) -> None:
    assert forecast.gain("two_stage", 4, score) == pytest.approx(gain)


def test_each_rung_has_gains_of_its_own(forecast: Forecast) -> None:
    assert forecast.gain("two_stage", 8, 23.0) == pytest.approx(3.0)


def test_what_is_not_known_gains_nothing(forecast: Forecast) -> None:
    assert forecast.gain("internal", 4, 22.0) == 0.0
    assert forecast.gain("two_stage", 2, 22.0) == 0.0


def test_trials_that_stood_alike_gain_what_they_did_on_average(forecast: Forecast) -> None:
    forecast.learn("two_stage", {4: 24.0}, 26.0)
    assert forecast.gain("two_stage", 4, 24.0) == pytest.approx(3.0)
    assert forecast.gain("two_stage", 4, 23.999) == pytest.approx(3.0, abs=0.01)


def test_order_of_learning_does_not_matter(forecast: Forecast) -> None:
    again = Forecast()
    again.learn("two_stage", {4: 24.0, 8: 27.0}, 28.0)
    again.learn("two_stage", {4: 20.0, 8: 23.0}, 26.0)
    found = [again.gain("two_stage", 4, score) for score in (19.0, 21.5, 25.0)]
    assert found == [forecast.gain("two_stage", 4, score) for score in (19.0, 21.5, 25.0)]


def test_trial_that_ended_worse_than_it_was_gained_nothing() -> None:
    known = Forecast()
    known.learn("internal", {4: 25.0}, 24.0)
    assert known.gain("internal", 4, 25.0) == 0.0


def test_trial_that_diverged_at_its_end_teaches_nothing(forecast: Forecast) -> None:
    forecast.learn("internal", {4: 25.0}, math.nan)
    assert forecast.gain("internal", 4, 25.0) == 0.0
    assert forecast.best == 28.0
