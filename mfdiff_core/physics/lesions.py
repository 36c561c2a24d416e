"""Lesions: spheres in the white matter, drawn independently for PET and for MR.

A lesion of one modality is therefore usually absent from the other: the case that shows whether
MR texture leaks into a restored PET image (paper Fig. 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mfdiff_core.physics.phantom import Anatomy, Bytes, Floats, fine_axis
from mfdiff_core.seeding import rng

HOT, COLD = 1, 2
_JITTER_MM = 2.0  # the places offered are 4 mm apart


@dataclass(frozen=True, kw_only=True)
class LesionConfig:
    """Numbers, sizes and strengths of lesions.

    Args:
        num_pet, num_mr: lesions per subject; few of them cut a given slice.
        radius_mm: range of radii.
        hot_fraction: share of hot lesions.
        pet_hot: activity relative to grey matter; pet_cold: relative to white matter.
        mr_hot: signal relative to white matter; mr_cold: relative to grey matter.
    """

    num_pet: int = 15
    num_mr: int = 15
    radius_mm: tuple[float, float] = (5.0, 8.0)
    hot_fraction: float = 0.6
    pet_hot: float = 1.5
    pet_cold: float = 0.5
    mr_hot: float = 1.5
    mr_cold: float = 0.8

    def __post_init__(self) -> None:
        if min(self.num_pet, self.num_mr) < 0:
            raise ValueError(
                f"numbers of lesions must not be negative, got {self.num_pet=}, {self.num_mr=}"
            )
        if not 0 < self.radius_mm[0] <= self.radius_mm[1]:
            raise ValueError(f"radius_mm must be a range above zero, got {self.radius_mm=}")
        if not 0 <= self.hot_fraction <= 1:
            raise ValueError(f"hot_fraction must lie in [0, 1], got {self.hot_fraction=}")


def draw_lesions(
    config: LesionConfig, anatomy: Anatomy, modality: str, key: tuple[int, str]
) -> Bytes:
    """Codes `HOT`, `COLD` or 0 per fine pixel, [slices, FINE_PX, FINE_PX].

    Args:
        config: numbers and sizes.
        anatomy: where the white matter is.
        modality: "pet" or "mr"; each has its own draw.
        key: seed and subject.
    """
    draw = rng(key[0], "lesions", modality, key[1])
    count = config.num_pet if modality == "pet" else config.num_mr
    codes = np.zeros_like(anatomy.labels)
    if len(anatomy.white_mm) == 0:
        return codes
    chosen = anatomy.white_mm[draw.integers(len(anatomy.white_mm), size=count)]
    centres = chosen + draw.uniform(-_JITTER_MM, _JITTER_MM, chosen.shape).astype(np.float32)
    radii = draw.uniform(*config.radius_mm, size=count)
    num_hot = round(config.hot_fraction * count)
    for i in range(count):
        _paint(codes, anatomy.z_mm, centres[i], radii[i], HOT if i < num_hot else COLD)
    return codes


def _paint(codes: Bytes, z_mm: Floats, centre: Floats, radius_mm: float, code: int) -> None:
    axis = fine_axis()
    for index, z in enumerate(z_mm):
        cut = radius_mm**2 - (z - centre[0]) ** 2
        if cut > 0:
            disc = (axis[:, None] - centre[1]) ** 2 + (axis - centre[2]) ** 2 <= cut
            codes[index][disc] = code
