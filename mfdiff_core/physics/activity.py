"""Activity per tissue: fixed relative values, or Bq/mL from FDG kinetics over a frame."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mfdiff_core.physics.acquisition import FrameConfig
from mfdiff_core.physics.kinetics import (
    GREY,
    WHITE,
    Curve,
    RateConstants,
    frame_activity,
    plasma_curve,
    tissue_curve,
)
from mfdiff_core.physics.phantom import Floats, Tissue, TissueValues
from mfdiff_core.seeding import rng

# Distribution volumes of tissues without much trapping: extracellular space, blood in vessels.
_TO_PLASMA = TissueValues(
    csf=0.05,
    grey=0.0,
    white=0.0,
    fat=0.15,
    muscle=0.5,
    skin=0.5,
    skull=0.25,
    vessels=1.0,
    connective=0.4,
    dura=0.5,
    marrow=0.6,
)


@dataclass(frozen=True, kw_only=True)
class ActivityConfig:
    """What is in the tissues.

    Args:
        fixed: relative activity, for acquisitions with given counts.
        grey, white: rate constants of the two brain tissues, for frames of a dynamic scan.
        to_plasma: activity of every other tissue relative to plasma, which it follows in time.
        rates_std: spread of K1 and k3 between subjects, relative.
        dose_std: spread of the injected dose between subjects, relative.
    """

    fixed: TissueValues
    grey: RateConstants = GREY
    white: RateConstants = WHITE
    to_plasma: TissueValues = _TO_PLASMA
    rates_std: float = 0.1
    dose_std: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.rates_std < 0.3 or not 0 <= self.dose_std < 0.3:
            raise ValueError(
                f"spreads must lie in [0, 0.3), got {self.rates_std=}, {self.dose_std=}"
            )


def activity_table(
    config: ActivityConfig, frame: FrameConfig | None, key: tuple[int, str]
) -> Floats:
    """Mean physical activity per `Tissue`, [12]: relative, or in Bq/mL over a frame.

    Args:
        config: tissues.
        frame: window of a dynamic scan, or None for the fixed values.
        key: seed and subject; a subject keeps its rate constants in every frame and protocol.
    """
    if frame is None:
        return config.fixed.table()
    draw = rng(key[0], "kinetics", key[1])
    k1, k3 = 1 + config.rates_std * draw.standard_normal(2).clip(-2.5, 2.5)
    dose = 1 + config.dose_std * float(draw.standard_normal())
    plasma = plasma_curve(frame.protocol) * dose
    table = config.to_plasma.table() * _mean(plasma, frame)
    for tissue, rates in ((Tissue.GREY, config.grey), (Tissue.WHITE, config.white)):
        own = dataclasses.replace(rates, k1=rates.k1 * k1, k3=rates.k3 * k3)
        table[tissue] = _mean(tissue_curve(plasma, own), frame)
    return table.astype(np.float32)


def _mean(curve: Curve, frame: FrameConfig) -> float:
    return frame_activity(curve, frame.start_s, frame.duration_s)
