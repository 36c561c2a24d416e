"""What a simulated dataset is made of: one config, written to its manifest in full."""

from __future__ import annotations

from dataclasses import dataclass, field

from mfdiff_core.physics.acquisition import AcquisitionConfig, ScannerConfig
from mfdiff_core.physics.activity import ActivityConfig
from mfdiff_core.physics.head import ContrastConfig
from mfdiff_core.physics.lesions import LesionConfig
from mfdiff_core.physics.mni import AnatomyConfig
from mfdiff_core.physics.phantom import FINE_MM, FINE_PX
from mfdiff_core.physics.projector import Geometry


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Image grids, both multiples of the fine grid.

    Args:
        recon_px, recon_mm: grid of the reconstruction.
        field_px: its central part that is kept.
        output_px: rows and columns of the slices, over the same field; PET is interpolated
            linearly where this differs from ``field_px``, MR is made on this grid.
    """

    recon_px: int
    recon_mm: float
    field_px: int
    output_px: int

    def __post_init__(self) -> None:
        if self.field_px > self.recon_px:
            raise ValueError(f"field_px must not exceed recon_px, got {self.field_px=}")
        for name, mm in (("recon", self.recon_mm), ("output", self.output_mm)):
            ratio = mm / FINE_MM
            if round(ratio) < 1 or abs(ratio - round(ratio)) > 0.01 or FINE_PX % round(ratio):
                raise ValueError(f"{name} voxels must be a multiple of {FINE_MM:.5f} mm, got {mm}")

    @property
    def output_mm(self) -> float:
        """Voxel size of the slices."""
        return self.recon_mm * self.field_px / self.output_px


@dataclass(frozen=True, kw_only=True)
class SlicesConfig:
    """Which slices of the scanner's axial field, and how they are turned.

    Args:
        indices: planes of the scanner.
        num_planes: planes in all; the middle one lies at height zero.
        num_rotations: rotations per subject; the first is none, all slices share the others.
        max_rotation_deg: rotations are uniform in [-max, max], or [0, max] unless ``signed``.
    """

    indices: tuple[int, ...] = tuple(range(65, 85, 2))
    num_planes: int = 127
    num_rotations: int = 5
    max_rotation_deg: float = 15.0
    signed: bool = True

    def __post_init__(self) -> None:
        if not self.indices or not all(0 <= i < self.num_planes for i in self.indices):
            raise ValueError(f"indices must lie in [0, {self.num_planes}), got {self.indices}")
        if self.num_rotations < 1 or not 0 <= self.max_rotation_deg <= 15:
            raise ValueError(
                "num_rotations must be positive and max_rotation_deg in [0, 15], got "
                f"{self.num_rotations=}, {self.max_rotation_deg=}"
            )


@dataclass(frozen=True, kw_only=True)
class SettingConfig:
    """A pair to be made of every slice: the low-dose image and its target.

    Args:
        name: setting of the domain, for example "16s".
        low: acquisition of the LPET.
        standard: acquisition of the SPET; settings with the same one share the image.
    """

    name: str
    low: AcquisitionConfig
    standard: AcquisitionConfig


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """Everything that decides a simulated dataset but its seed."""

    domain: str
    settings: tuple[SettingConfig, ...]
    grid: GridConfig
    contrast: ContrastConfig
    activity: ActivityConfig
    scanner: ScannerConfig = field(default_factory=ScannerConfig)
    slices: SlicesConfig = field(default_factory=SlicesConfig)
    lesions: LesionConfig = field(default_factory=LesionConfig)
    anatomy: AnatomyConfig = field(default_factory=AnatomyConfig)

    def __post_init__(self) -> None:
        names = [s.name for s in self.settings]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"settings need distinct names, got {names}")
        by_name: dict[str, AcquisitionConfig] = {}
        for a in self.acquisitions:
            if by_name.setdefault(a.name, a) != a:
                raise ValueError(f"two different acquisitions are called {a.name!r}")
            views, subsets = self.scanner.num_views, a.recon.num_subsets
            if subsets > views:
                raise ValueError(f"{a.name}: {views} views make no {subsets} subsets")

    @property
    def acquisitions(self) -> tuple[AcquisitionConfig, ...]:
        """All different acquisitions, in the order of the settings."""
        return tuple(dict.fromkeys(a for s in self.settings for a in (s.standard, s.low)))

    @property
    def geometry(self) -> Geometry:
        """Grids of the projector."""
        return Geometry(
            image_px=self.grid.recon_px,
            voxel_mm=self.grid.recon_mm,
            num_bins=self.scanner.num_bins,
            bin_mm=self.scanner.bin_mm,
            num_views=self.scanner.num_views,
        )
