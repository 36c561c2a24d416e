"""How pairs are made from scans, and the presets of the paper's sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mfdiff_core.data.intensity import Intensity
from mfdiff_core.scans.frames import Window

Rule = Literal["time", "dose", "group"]
Grid = Literal["pet", "mr"]


@dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """How pairs are made from scans; stored in the dataset's manifest.

    Attributes:
        start_s, end_s: window of the SPET; LPETs are taken in its middle.
        lpet_s: duration of the LPET by name.
        rule: what names a setting: the LPET's name ("time"), the dose ("dose": ``ld``, ``uld``)
            or the participant's group ("group"); the last two have one LPET.
        grid: whose planes the slices are: the PET's, as when a scan is restored, or the MR's, as
            in the paper.
        planes: ``FIRST:STOP:STEP`` among those planes, from the feet; empty for every
            ``plane_step_mm`` through the wide part of the head.
        plane_step_mm: see ``planes``.
        image_size: rows and columns of a slice.
        voxel_mm: its pixel size; None for that of the grid.
        register: whether the MR is registered to the PET.
        without_dose: accept scans that state no dose.
        intensity: what slices are divided by, see `data.intensity`.
    """

    start_s: float = 1800.0
    end_s: float = 3600.0
    lpet_s: dict[str, float] = field(default_factory=lambda: {"16s": 16.0, "2min": 120.0})
    rule: Rule = "time"
    grid: Grid = "pet"
    planes: str = ""
    plane_step_mm: float = 4.0
    image_size: int = 192
    voxel_mm: float | None = None
    register: bool = True
    without_dose: bool = False
    intensity: Intensity = "lpet"

    def __post_init__(self) -> None:
        window = Window(self.start_s, self.end_s)
        if not self.lpet_s:
            raise ValueError("at least one LPET is needed, got lpet_s={}")
        if self.rule != "time" and len(self.lpet_s) != 1:
            raise ValueError(f"rule {self.rule!r} has one LPET duration, got {self.lpet_s=}")
        for name, duration in self.lpet_s.items():
            if not 0 < duration <= window.duration_s / 2:
                raise ValueError(
                    f"an LPET lasts at most half of the SPET's {window.duration_s:g} s, "
                    f"got {name}={duration:g}"
                )
        if self.image_size < 16 or self.image_size % 8:
            raise ValueError(f"image_size is a multiple of 8 from 16, got {self.image_size=}")
        if self.voxel_mm is not None and not 0.5 <= self.voxel_mm <= 8:
            raise ValueError(f"voxel_mm must be 0.5 to 8, got {self.voxel_mm=}")
        if not 1 <= self.plane_step_mm <= 50:
            raise ValueError(f"plane_step_mm must be 1 to 50, got {self.plane_step_mm=}")
        plane_range(self.planes)

    @property
    def window(self) -> Window:
        """The SPET's window."""
        return Window(self.start_s, self.end_s)


def plane_range(text: str) -> range | None:
    """``130:150:2`` as a range; None for an empty text.

    Raises:
        ValueError: it is no range.
    """
    if not text:
        return None
    try:
        first, stop, step = (int(part) for part in text.split(":"))
        planes = range(first, stop, step)
    except ValueError:
        planes = range(0)
    if not planes or planes.start < 0 or planes.step < 1:
        raise ValueError(f"planes are FIRST:STOP:STEP, for example 130:150:2, got {text!r}")
    return planes


_PAPER = {"grid": "mr", "planes": "130:150:2", "voxel_mm": 1.0}
PRESETS: dict[str, PairingConfig] = {
    "ood1": PairingConfig(**_PAPER),  # type: ignore[arg-type]
    "ood2": PairingConfig(lpet_s={"16s": 16.0}, rule="dose", **_PAPER),  # type: ignore[arg-type]
    "ood3": PairingConfig(lpet_s={"16s": 16.0}, rule="group", **_PAPER),  # type: ignore[arg-type]
}
"""The paper's sets: ood1 and ood2 from ds002898, ood3 from ds003397 (Sec. 4.2)."""
