from __future__ import annotations

import math

import numpy as np
import pytest

from mfdiff_core.physics.kinetics import (
    DECAY_PER_S,
    F18_HALF_LIFE_S,
    GREY,
    WHITE,
    Curve,
    ProtocolConfig,
    RateConstants,
    decay_correction,
    frame_activity,
    plasma_curve,
    tissue_curve,
)

RATES = RateConstants(k1=0.1, k2=0.13, k3=0.06, vb=0.0)
SECONDS = np.arange(6000.0)


def constant_plasma_tissue(rates: RateConstants, t_min: Curve) -> Curve:
    """Closed form of the tissue response to unit plasma from time zero on."""
    loss = rates.k2 + rates.k3
    free = rates.k1 / loss * (1 - np.exp(-loss * t_min))
    trapped = rates.k3 * rates.k1 / loss * (t_min - (1 - np.exp(-loss * t_min)) / loss)
    return np.asarray(free + trapped)


def test_constant_plasma_gives_the_closed_form() -> None:
    curve = tissue_curve(np.ones(6000), RATES)
    # the first sample rises from zero within one step, half of it is missing
    expected = constant_plasma_tissue(RATES, (SECONDS + 0.5) / 60)
    assert np.allclose(curve[60:], expected[60:], rtol=1e-4)


def test_exponential_plasma_gives_the_closed_form() -> None:
    rate, loss, t = 0.05, RATES.k2 + RATES.k3, SECONDS / 60
    free = RATES.k1 * (np.exp(-rate * t) - np.exp(-loss * t)) / (loss - rate)
    trapped = (
        RATES.k3
        * RATES.k1
        / (loss - rate)
        * ((1 - np.exp(-rate * t)) / rate - (1 - np.exp(-loss * t)) / loss)
    )
    curve = tissue_curve(np.exp(-rate * t), RATES)
    assert np.allclose(curve[600:], (free + trapped)[600:], rtol=2e-3)


def test_patlak_slope_is_the_influx_constant() -> None:
    plasma = plasma_curve(ProtocolConfig(kind="bolus", dose_mbq=200.0))
    tissue = tissue_curve(plasma, RATES)
    late = slice(2400, 5400, 60)
    stretched = np.cumsum(plasma)[late] / 60 / plasma[late]
    slope = np.polyfit(stretched, tissue[late] / plasma[late], 1)[0]
    assert slope == pytest.approx(RATES.influx, rel=0.02)


def test_blood_volume_mixes_tissue_and_plasma() -> None:
    plasma = plasma_curve(ProtocolConfig(kind="bolus", dose_mbq=200.0))
    with_blood = RateConstants(k1=0.1, k2=0.13, k3=0.06, vb=0.05)
    expected = 0.95 * tissue_curve(plasma, RATES) + 0.05 * plasma
    assert np.allclose(tissue_curve(plasma, with_blood), expected)


def test_response_is_linear_in_the_dose() -> None:
    one, two = (plasma_curve(ProtocolConfig(kind="bolus", dose_mbq=d)) for d in (100.0, 200.0))
    assert np.allclose(two, 2 * one)


def test_hybrid_is_half_bolus_half_infusion() -> None:
    curves = {
        kind: plasma_curve(ProtocolConfig(kind=kind, dose_mbq=240.0, infusion_end_s=3300.0))
        for kind in ("bolus", "infusion", "hybrid")
    }
    assert np.allclose(curves["hybrid"], (curves["bolus"] + curves["infusion"]) / 2)


def test_infusion_delivers_the_whole_dose() -> None:
    bolus, infusion = (
        plasma_curve(ProtocolConfig(kind=kind, dose_mbq=240.0, infusion_end_s=600.0))
        for kind in ("bolus", "infusion")
    )
    # long after a short infusion its centre of time is all that differs
    assert infusion[5700] == pytest.approx(bolus[5400], rel=0.01)


def test_protocols_order_plasma_as_expected() -> None:
    bolus, infusion = (
        plasma_curve(ProtocolConfig(kind=kind, dose_mbq=240.0, infusion_end_s=3300.0))
        for kind in ("bolus", "infusion")
    )
    assert bolus[60] > 20 * infusion[60]
    assert infusion[3200] > 1.5 * bolus[3200]
    assert (np.diff(infusion[100:3300]) > 0).all()
    assert (np.diff(infusion[3400:]) < 0).all()


def test_brain_uptake_after_a_bolus_is_that_of_real_scans() -> None:
    plasma = plasma_curve(ProtocolConfig(kind="bolus", dose_mbq=250.0))
    suv = 250e6 / 70e3
    grey, white = (tissue_curve(plasma, r)[3000] / suv for r in (GREY, WHITE))
    assert 5 < grey < 12
    assert 1.7 < grey / white < 2.6


def test_mean_over_a_frame_decays() -> None:
    flat = np.full(6000, 100.0)
    physical = frame_activity(flat, 0.0, 6000.0)
    expected = 100 * -math.expm1(-DECAY_PER_S * 6000) / (DECAY_PER_S * 6000)
    assert physical == pytest.approx(expected, rel=1e-3)


def test_decay_correction_restores_a_constant() -> None:
    for start, duration in ((0.0, 16.0), (1800.0, 1800.0), (5000.0, 900.0)):
        physical = frame_activity(np.full(6000, 7.0), start, duration)
        assert physical * decay_correction(start, duration) == pytest.approx(7.0, rel=1e-4)


def test_decay_correction_of_a_short_frame_at_one_half_life_is_two() -> None:
    assert decay_correction(F18_HALF_LIFE_S, 1e-3) == pytest.approx(2.0, rel=1e-5)


def test_frame_outside_the_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the curve"):
        frame_activity(np.ones(6000), 5900.0, 200.0)


def test_bad_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match="dose_mbq"):
        ProtocolConfig(kind="bolus", dose_mbq=0.0)
    with pytest.raises(ValueError, match="infusion_end_s"):
        ProtocolConfig(kind="infusion", dose_mbq=1.0, infusion_end_s=9000.0)
    with pytest.raises(ValueError, match="bolus_fraction"):
        ProtocolConfig(kind="hybrid", dose_mbq=1.0, bolus_fraction=1.5)
    with pytest.raises(ValueError, match="rate constants"):
        RateConstants(k1=-0.1, k2=0.1, k3=0.1, vb=0.0)
