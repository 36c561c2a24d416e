"""A coarse recipe: the real code on 32 x 32 pixels, a tenth of a second per subject."""

from __future__ import annotations

import pytest

from mfdiff_core.config import override
from mfdiff_core.physics.simulate import SimulationConfig, recipe

COARSE = {
    "grid.recon_px": 32,
    "grid.recon_mm": 4 * 2.08626,
    "grid.field_px": 32,
    "grid.output_px": 32,
    "scanner.num_bins": 32,
    "scanner.bin_mm": 4 * 2.08626,
    "scanner.num_views": 42,
    "slices.indices": (66, 74),
}


@pytest.fixture
def coarse_phantom() -> SimulationConfig:
    return override(recipe("phantom"), {**COARSE, "slices.num_rotations": 2})


@pytest.fixture
def coarse_ood3() -> SimulationConfig:
    return override(recipe("ood3"), {**COARSE, "slices.num_rotations": 1})
