"""FDG in brain tissue over time: plasma input of an administration protocol, tissue response.

Irreversible two-tissue compartment model (Sokoloff 1977, Phelps 1979): free tracer C1 and trapped
tracer C2,

    dC1/dt = K1 Cp - (k2 + k3) C1        dC2/dt = k3 C1        C = (1 - Vb) (C1 + C2) + Vb Cp.

All concentrations here are decay-corrected to the start of the scan, which is the start of the
administration; `frame_activity` and
`decay_correction` lead to physical activity and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

F18_HALF_LIFE_S = 6586.2  # as in the DICOM headers of the scanner
DECAY_PER_S = np.log(2) / F18_HALF_LIFE_S

Protocol = Literal["bolus", "infusion", "hybrid"]
Curve = NDArray[np.float64]

_STEP_S = 1.0
_DURATION_S = 6000.0  # the longest scan takes 95 minutes

# Response of plasma to a bolus, Feng, Huang and Wang 1993 (Int J Biomed Comput 32:95), model 2:
# (A1 t - A2 - A3) exp(-l1 t) + A2 exp(-l2 t) + A3 exp(-l3 t), t in minutes. Only its shape is used.
_A1, _A2, _A3 = 851.1225, 21.8798, 20.8113
_L1, _L2, _L3 = 4.1339, 0.1191, 0.0104
# Its size: plasma holds 2.0 times the mean body concentration (SUV 2) an hour after a bolus.
_PLASMA_SUV_AT_60_MIN = 2.0


@dataclass(frozen=True, kw_only=True)
class RateConstants:
    """Rate constants of one tissue: ``k1`` in mL/cm3/min, ``k2``, ``k3`` in 1/min.

    ``vb`` is the share of the tissue's volume that is blood.
    """

    k1: float
    k2: float
    k3: float
    vb: float

    def __post_init__(self) -> None:
        if min(self.k1, self.k2, self.k3, self.vb) < 0 or self.vb > 1:
            raise ValueError(f"rate constants must not be negative and vb at most 1, got {self}")

    @property
    def influx(self) -> float:
        """Net influx constant Ki = K1 k3 / (k2 + k3), the slope of the Patlak plot."""
        return self.k1 * self.k3 / (self.k2 + self.k3)


# Healthy volunteers: Phelps et al. 1979 (Ann Neurol 6:371), Huang et al. 1980 (Am J Physiol
# 238:E69); k4 (0.007 per minute) is left out as in every irreversible analysis.
GREY = RateConstants(k1=0.102, k2=0.130, k3=0.062, vb=0.05)
WHITE = RateConstants(k1=0.054, k2=0.109, k3=0.045, vb=0.03)


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How the dose is given, from time zero on.

    Args:
        kind: all at once ("bolus"), at a constant rate ("infusion"), or ``bolus_fraction`` at
            once and the rest at a constant rate ("hybrid").
        dose_mbq: total dose, decay-corrected to time zero.
        infusion_end_s: when the infusion stops; the whole dose has been given by then.
        bolus_fraction: for "hybrid".
    """

    kind: Protocol
    dose_mbq: float
    infusion_end_s: float = 5700.0
    bolus_fraction: float = 0.5

    def __post_init__(self) -> None:
        if self.dose_mbq <= 0:
            raise ValueError(f"dose_mbq must be positive, got {self.dose_mbq=}")
        if not 0 < self.infusion_end_s <= _DURATION_S:
            raise ValueError(
                f"infusion_end_s must lie in (0, {_DURATION_S}], got {self.infusion_end_s=}"
            )
        if not 0 <= self.bolus_fraction <= 1:
            raise ValueError(f"bolus_fraction must lie in [0, 1], got {self.bolus_fraction=}")


@lru_cache(maxsize=16)
def plasma_curve(protocol: ProtocolConfig, weight_kg: float = 70.0) -> Curve:
    """Plasma concentration in Bq/mL at every `_STEP_S`, decay-corrected."""
    bolus = _bolus_response(weight_kg) * protocol.dose_mbq
    at_once = {"bolus": 1.0, "infusion": 0.0, "hybrid": protocol.bolus_fraction}[protocol.kind]
    steps = np.arange(len(bolus)) * _STEP_S
    rate = (steps < protocol.infusion_end_s) / protocol.infusion_end_s
    infused = np.convolve(bolus, rate)[: len(bolus)] * _STEP_S
    return at_once * bolus + (1 - at_once) * infused


def _bolus_response(weight_kg: float) -> Curve:
    """Plasma Bq/mL per MBq injected."""
    t = np.arange(0, _DURATION_S, _STEP_S) / 60
    shape = _feng(t)
    body_bq_per_ml = 1e6 / (weight_kg * 1e3)
    return shape * (_PLASMA_SUV_AT_60_MIN * body_bq_per_ml / float(_feng(np.array(60.0))))


def _feng(t_min: Curve) -> Curve:
    rise = (_A1 * t_min - _A2 - _A3) * np.exp(-_L1 * t_min)
    return rise + _A2 * np.exp(-_L2 * t_min) + _A3 * np.exp(-_L3 * t_min)


def tissue_curve(plasma: Curve, rates: RateConstants) -> Curve:
    """Tissue concentration for a plasma curve, exact for a piecewise linear one.

    Args:
        plasma: Cp at every `_STEP_S` from time zero.
        rates: the tissue's rate constants.

    Returns:
        C at the same times, same unit.
    """
    dt = _STEP_S / 60
    loss = rates.k2 + rates.k3
    keep = np.exp(-loss * dt)
    # integral of exp(-loss (dt - s)) times a linear Cp over one step
    late = (dt - (1 - keep) / loss) / (loss * dt)
    early = (1 - keep) / loss - late
    drive = rates.k1 * (late * plasma + early * np.concatenate([[0.0], plasma[:-1]]))
    free = lfilter([1.0], [1.0, -keep], drive)
    # mass balance gives the integral of C1 exactly: C1 = K1 int Cp - loss int C1
    trapped = rates.k3 * (rates.k1 * _integral(plasma, dt) - free) / loss
    whole: Curve = (1 - rates.vb) * (free + trapped) + rates.vb * plasma
    return whole


def _integral(curve: Curve, dt: float) -> Curve:
    """Running integral, with the curve rising linearly from zero at one step before time zero."""
    total: Curve = np.cumsum((curve + np.concatenate([[0.0], curve[:-1]])) * (dt / 2))
    return total


def frame_activity(curve: Curve, start_s: float, duration_s: float) -> float:
    """Mean physical activity of a decay-corrected curve over a frame: what makes its counts.

    Raises:
        ValueError: the frame lies outside the curve.
    """
    at = np.arange(len(curve)) * _STEP_S
    inside = (at >= start_s) & (at < start_s + duration_s)
    if start_s + duration_s > len(curve) * _STEP_S or not inside.any():
        raise ValueError(f"the frame lies outside the curve, got {start_s=}, {duration_s=}")
    return float((curve[inside] * np.exp(-DECAY_PER_S * at[inside])).mean())


def decay_correction(start_s: float, duration_s: float) -> float:
    """Factor from the mean activity of a frame to activity at the start of the scan."""
    decayed = DECAY_PER_S * duration_s
    return float(np.exp(DECAY_PER_S * start_s) * decayed / -np.expm1(-decayed))
