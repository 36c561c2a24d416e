"""One subject ready for the scanner: tissue, lesions, texture and shading on the fine grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mfdiff_core.physics.lesions import COLD, HOT, LesionConfig, draw_lesions
from mfdiff_core.physics.phantom import Anatomy, Bytes, Floats, Tissue, TissueValues, fine_axis
from mfdiff_core.physics.random_field import RandomField
from mfdiff_core.seeding import rng

# Attenuation of 511 keV photons in 1/cm: bone 0.13, everything else but air as water.
MU_PER_CM = TissueValues(
    csf=0.0975,
    grey=0.0975,
    white=0.0975,
    fat=0.0975,
    muscle=0.0975,
    skin=0.0975,
    skull=0.13,
    vessels=0.0975,
    connective=0.0975,
    dura=0.0975,
    marrow=0.13,
)


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """What the tissues look like.

    Args:
        mr: MR signal per tissue, arbitrary units.
        mu_per_cm: linear attenuation per tissue.
        mr_texture: relative standard deviation of the MR texture; pet_texture: of the activity's.
        texture_sigma_mm: scale of both textures.
        mr_bias: relative standard deviation of the MR's smooth shading.
        pet_regional: the same for regional differences of the activity.
        regional_sigma_mm: scale of shading and regional differences.
        mr_noise: standard deviation of the MR's noise, in units of its white matter.
    """

    mr: TissueValues
    mu_per_cm: TissueValues = MU_PER_CM
    mr_texture: float = 0.065
    pet_texture: float = 0.0
    texture_sigma_mm: float = 2.1
    mr_bias: float = 0.03
    pet_regional: float = 0.0
    regional_sigma_mm: float = 30.0
    mr_noise: float = 0.01

    def __post_init__(self) -> None:
        for name in ("mr_texture", "pet_texture", "mr_bias", "pet_regional", "mr_noise"):
            if not 0 <= getattr(self, name) < 0.5:
                raise ValueError(f"{name} must lie in [0, 0.5), got {getattr(self, name)}")
        if min(self.texture_sigma_mm, self.regional_sigma_mm) < 1:
            raise ValueError("texture_sigma_mm and regional_sigma_mm must be at least 1 mm")


@dataclass(frozen=True)
class Head:
    """Fine maps [slices, FINE_PX, FINE_PX] of one subject in one dataset.

    Args:
        labels: `Tissue` codes.
        pet_lesions, mr_lesions: 0, `HOT` or `COLD`.
        pet_gain, mr_gain: texture and shading, factors around one.
    """

    labels: Bytes
    pet_lesions: Bytes
    mr_lesions: Bytes
    pet_gain: Floats
    mr_gain: Floats
    lesions: LesionConfig
    contrast: ContrastConfig

    def activity(self, table: Floats) -> Floats:
        """Activity for a table of activity per `Tissue`."""
        config = self.lesions
        values = (config.pet_hot * table[Tissue.GREY], config.pet_cold * table[Tissue.WHITE])
        return _painted(table[self.labels], self.pet_lesions, values) * self.pet_gain

    def mr(self) -> Floats:
        """MR signal without noise."""
        table, config = self.contrast.mr.table(), self.lesions
        values = (config.mr_hot * table[Tissue.WHITE], config.mr_cold * table[Tissue.GREY])
        return _painted(table[self.labels], self.mr_lesions, values) * self.mr_gain

    def mu_per_mm(self) -> Floats:
        """Linear attenuation; lesions attenuate like brain."""
        table: Floats = np.divide(self.contrast.mu_per_cm.table(), 10, dtype=np.float32)
        return table[self.labels]

    def lesion_bits(self) -> Bytes:
        """Bit 1 where PET has a lesion, bit 2 where MR has one."""
        return ((self.pet_lesions > 0) + 2 * (self.mr_lesions > 0)).astype(np.uint8)


def _painted(maps: Floats, codes: Bytes, values: tuple[float, float]) -> Floats:
    for code, value in zip((HOT, COLD), values, strict=True):
        maps[codes == code] = value
    return maps


def build_head(
    anatomy: Anatomy, lesions: LesionConfig, contrast: ContrastConfig, key: tuple[int, str]
) -> Head:
    """Adds lesions, texture and shading to an anatomy, drawn for ``key`` = (seed, subject)."""
    return Head(
        labels=anatomy.labels,
        pet_lesions=draw_lesions(lesions, anatomy, "pet", key),
        mr_lesions=draw_lesions(lesions, anatomy, "mr", key),
        pet_gain=_gain(
            anatomy, contrast, contrast.pet_texture, contrast.pet_regional, ("pet", *key)
        ),
        mr_gain=_gain(anatomy, contrast, contrast.mr_texture, contrast.mr_bias, ("mr", *key)),
        lesions=lesions,
        contrast=contrast,
    )


def _gain(
    anatomy: Anatomy,
    contrast: ContrastConfig,
    texture: float,
    shading: float,
    key: tuple[str, int, str],
) -> Floats:
    """Product of a fine and a broad random field around one, never negative."""
    modality, seed, subject = key
    axis = fine_axis()
    gain = np.ones_like(anatomy.labels, np.float32)
    for size, sigma_mm, name in (
        (texture, contrast.texture_sigma_mm, "texture"),
        (shading, contrast.regional_sigma_mm, "shading"),
    ):
        if size > 0:
            field = RandomField(sigma_mm, rng(seed, name, modality, subject))
            gain *= 1 + np.float32(size) * field(anatomy.z_mm, axis, axis)[0]
    return gain.clip(0)
