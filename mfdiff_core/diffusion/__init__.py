"""The diffusion process (Sec. 3.2); it knows no network."""

from mfdiff_core.diffusion.noise import Noise, NoiseSource
from mfdiff_core.diffusion.process import (
    DiffusionConfig,
    DiffusionProcess,
    from_diffusion,
    to_diffusion,
)
from mfdiff_core.diffusion.samplers import SamplerConfig, SampleResult, sample
from mfdiff_core.diffusion.schedule import NoiseSchedule

__all__ = [
    "DiffusionConfig",
    "DiffusionProcess",
    "Noise",
    "NoiseSchedule",
    "NoiseSource",
    "SampleResult",
    "SamplerConfig",
    "from_diffusion",
    "sample",
    "to_diffusion",
]
