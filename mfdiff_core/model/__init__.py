"""A restoration model: MFdiff or one of the systems it is compared with.

Reading order: `restoration_model` (what each of them is), `mfdiff_model`, `comparison_model`,
`config` (their settings and named sizes), `build`.
"""

from mfdiff_core.model.build import build_model, stage_depths
from mfdiff_core.model.comparison_model import NEEDS_SINOGRAMS, ComparisonModel
from mfdiff_core.model.config import (
    MODELS,
    PRESETS,
    AnyModelConfig,
    ModelConfig,
    averaging,
    preset,
)
from mfdiff_core.model.mfdiff_model import MFdiffModel
from mfdiff_core.model.restoration_model import Layout, RestorationModel, Restored

__all__ = [
    "MODELS",
    "NEEDS_SINOGRAMS",
    "PRESETS",
    "AnyModelConfig",
    "ComparisonModel",
    "Layout",
    "MFdiffModel",
    "ModelConfig",
    "RestorationModel",
    "Restored",
    "averaging",
    "build_model",
    "preset",
    "stage_depths",
]
