"""Embedded anatomy: people made from the MNI152 tissue maps by seeded deformations.

Every subject is a random affine map of the template, a random smooth displacement on several
scales, its own tissue thresholds (cortical thickness, width of sulci) and its own shells of CSF,
skull, marrow, fat and skin. The set is MNI-derived; these are not measured people.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfdiff_core.physics.phantom import Anatomy, Bytes, Floats, Tissue, fine_axis
from mfdiff_core.physics.random_field import RandomField
from mfdiff_core.seeding import rng

_CENTRE_MNI_MM = (12.0, -18.0, 0.0)  # (z, y, x) at the centre of the field of view
_HULL_VOXEL_MM, _HULL_STEPS_PER_MM, _HULL_ZERO = 3.0, 4.0, 100.0
_LESION_GRID_MM = 4.0


@dataclass(frozen=True, kw_only=True)
class AnatomyConfig:
    """How the embedded subjects of a domain differ from the template and from each other.

    Args:
        prefix: subjects are called prefix-01, prefix-02...; a name is a person for ever.
        num_subjects: how many there are.
        scale: mean size relative to the template, and its standard deviation per axis.
        rotation_std_deg: standard deviation of the tilt about each axis.
        shear_std: standard deviation of the shears.
        warp_sigma_mm: scales of the smooth displacement; the first alone moves the skull.
        warp_rms_mm: its size per component on each scale.
        cortex: added to the grey-matter score; positive thickens the cortex.
        threshold_std: spread of the tissue thresholds between subjects.
        fold_std: spread of the CSF threshold within a subject, which makes sulci.
        csf_mm, skull_mm, fat_mm, skin_mm: mean thickness of the shells around the brain.
        shell_std: relative spread of those between subjects.
    """

    prefix: str = "mni"
    num_subjects: int = 20
    scale: tuple[float, float] = (0.97, 0.02)
    rotation_std_deg: float = 1.8
    shear_std: float = 0.02
    warp_sigma_mm: tuple[float, ...] = (24.0, 11.0, 4.0)
    warp_rms_mm: tuple[float, ...] = (2.2, 1.5, 0.6)
    cortex: float = 0.0
    threshold_std: float = 0.04
    fold_std: float = 0.11
    csf_mm: float = 2.4
    skull_mm: float = 6.1
    fat_mm: float = 1.6
    skin_mm: float = 3.0
    shell_std: float = 0.15

    def __post_init__(self) -> None:
        if self.num_subjects < 1:
            raise ValueError(f"num_subjects must be positive, got {self.num_subjects=}")
        if not 0.7 <= self.scale[0] <= 1.2:
            raise ValueError(f"mean scale must lie in [0.7, 1.2], got {self.scale=}")
        if len(self.warp_sigma_mm) != len(self.warp_rms_mm):
            raise ValueError(
                f"one warp_rms_mm per warp_sigma_mm, got {self.warp_rms_mm} for "
                f"{self.warp_sigma_mm}"
            )
        if not self.warp_sigma_mm or min(self.warp_sigma_mm) < 2:
            raise ValueError(f"scales of at least 2 mm are needed, got {self.warp_sigma_mm=}")


def mni_anatomy(config: AnatomyConfig, name: str, z_mm: Floats) -> Anatomy:
    """Slices of the embedded subject ``name``; the same person whatever slices are asked for."""
    person = _Person(config, name)
    axis = fine_axis()
    labels = np.concatenate([person.tissue(z_mm[i : i + 1], axis) for i in range(len(z_mm))])
    grid = np.arange(-100, 101, _LESION_GRID_MM, dtype=np.float32)
    coarse = person.tissue(grid, grid)
    white_mm = grid[np.argwhere(coarse == Tissue.WHITE)]
    return Anatomy(labels=labels, z_mm=z_mm, white_mm=white_mm)


class _Person:
    """Random draws of one subject, evaluated where needed."""

    def __init__(self, config: AnatomyConfig, name: str) -> None:
        self.config = config
        draw = rng(0, "anatomy", name)
        self.to_template = _affine(config, draw)
        self.warps = [RandomField(s, draw, num_fields=3) for s in config.warp_sigma_mm]
        self.folds = RandomField(4.0, draw, num_fields=2)
        self.shell = RandomField(30.0, draw)
        self.threshold = _moderate(draw, config.threshold_std, 3).astype(np.float32)
        widths = np.array([config.csf_mm, config.skull_mm, config.fat_mm, config.skin_mm])
        self.outer_mm = np.cumsum(widths * np.exp(_moderate(draw, config.shell_std, 4)))

    def tissue(self, z_mm: Floats, axis_mm: Floats) -> Bytes:
        """`Tissue` codes on the product grid, [len(z), len(axis), len(axis)]."""
        brain_mm, skull_mm = self._template_mm(z_mm, axis_mm)
        grey, white = _template().tissue(brain_mm)
        depth_mm = _template().hull(skull_mm) + self.shell(z_mm, axis_mm, axis_mm)[0]
        fold = self.config.fold_std * self.folds(z_mm, axis_mm, axis_mm)
        scores = np.stack(
            [
                1 - grey - white + self.threshold[0] + fold[0],
                grey + self.config.cortex + self.threshold[1],
                white + self.threshold[2] + 0.5 * fold[1],
            ]
        )
        brain = (scores.argmax(0) + Tissue.CSF).astype(np.uint8)
        brain[(grey + white < 0.02) & (brain != Tissue.CSF)] = Tissue.CSF
        return np.where(depth_mm < 0, brain, self._shells(depth_mm))

    def _shells(self, depth_mm: Floats) -> Bytes:
        csf, skull, fat, skin = self.outer_mm
        codes = np.array(
            [
                Tissue.CSF,
                Tissue.SKULL,
                Tissue.MARROW,
                Tissue.SKULL,
                Tissue.FAT,
                Tissue.SKIN,
                Tissue.BACKGROUND,
            ],
            np.uint8,
        )
        table = csf + (skull - csf) * np.array([0.0, 0.31, 0.67])  # diploe between the tables
        return codes[np.searchsorted([*table, skull, fat, skin], depth_mm)]

    def _template_mm(self, z_mm: Floats, axis_mm: Floats) -> tuple[Floats, Floats]:
        """MNI coordinates (z, y, x) of head points, each [3, len(z), len(axis), len(axis)].

        Brain tissue is displaced on all scales, skull and skin on the broadest only.
        """
        at = np.stack(np.meshgrid(z_mm, axis_mm, axis_mm, indexing="ij")).astype(np.float32)
        stages = []
        for warp, rms in zip(self.warps, self.config.warp_rms_mm, strict=True):
            at = at + np.float32(rms) * warp(z_mm, axis_mm, axis_mm)
            stages.append(at)
        return self._to_mni(stages[-1]), self._to_mni(stages[0])

    def _to_mni(self, head_mm: Floats) -> Floats:
        flipped = head_mm * np.array([1, -1, 1], np.float32)[:, None, None, None]  # rows run back
        centre = np.array(_CENTRE_MNI_MM, np.float32)[:, None, None, None]
        place: Floats = np.einsum("ij,jzyx->izyx", self.to_template, flipped, optimize=True)
        return place + centre


def _affine(config: AnatomyConfig, draw: np.random.Generator) -> NDArray[np.float32]:
    """Head to template: inverse of size, then shear and tilt."""
    size = config.scale[0] * (1 + _moderate(draw, config.scale[1], 3))
    matrix = np.diag(1 / size)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        angle = np.deg2rad(_moderate(draw, config.rotation_std_deg))
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        shear = np.eye(3)
        shear[first, second] = _moderate(draw, config.shear_std)
        matrix = turn @ shear @ matrix
    return matrix.astype(np.float32)


def _moderate(
    draw: np.random.Generator, std: float, size: int | None = None
) -> NDArray[np.float64]:
    """Normal draws without the tails: nobody is carved from a 3-sigma template."""
    return std * np.clip(draw.standard_normal(size), -1.8, 1.8)


class _Template:
    """Tissue maps of the package data as functions of MNI coordinates."""

    def __init__(self) -> None:
        path = resources.files("mfdiff_core.physics") / "data" / "mni152_tissue.npz"
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            maps = np.stack([data["grey"], data["white"]]).astype(np.float32) / 15
            depth = (data["hull"].astype(np.float32) - _HULL_ZERO) / _HULL_STEPS_PER_MM
            self._origin, self._hull_origin = data["origin_mm"], data["hull_origin_mm"]
        self._maps = torch.from_numpy(maps)[None]
        self._depth = torch.from_numpy(depth)[None, None]

    def tissue(self, where_mm: Floats) -> Floats:
        """Grey and white matter probability at points (z, y, x), [2, ...]."""
        return _sample(self._maps, where_mm, self._origin, 1.0, "zeros")

    def hull(self, where_mm: Floats) -> Floats:
        """Distance outside the brain's outline in mm, negative inside."""
        depth_mm: Floats = _sample(
            self._depth, where_mm, self._hull_origin, _HULL_VOXEL_MM, "border"
        )[0]
        return depth_mm


@lru_cache(maxsize=1)
def _template() -> _Template:
    return _Template()


def _sample(
    maps: Tensor, where_mm: Floats, origin_mm: Floats, voxel_mm: float, outside: str
) -> Floats:
    """Trilinear values of ``maps`` [1, C, D, H, W] at ``where_mm`` [3, ...] as [C, ...]."""
    sizes = np.array(maps.shape[2:], np.float32)[:, None, None, None]
    origin = np.asarray(origin_mm, np.float32)[:, None, None, None]
    unit = 2 * (where_mm - origin) / (voxel_mm * (sizes - 1)) - 1
    points = torch.from_numpy(np.ascontiguousarray(unit[::-1].transpose(1, 2, 3, 0)))[None]
    values = torch.nn.functional.grid_sample(
        maps, points, mode="bilinear", padding_mode=outside, align_corners=True
    )
    return values[0].numpy()
