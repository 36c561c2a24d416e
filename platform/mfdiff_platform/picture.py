"""The picture of a run: its middle held-out slice, restored by whom trains, drawn by who has time.

Workers on an accelerator must not wait for matplotlib, so they leave arrays and the driver draws.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.evaluation.figures import comparison_figure
from mfdiff_core.evaluation.validation import restore_slices
from mfdiff_core.files import atomic_path
from mfdiff_core.model import RestorationModel

KBQ = 1e-3
"""Bq/mL to kBq/mL."""

Image = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SlicePicture:
    """T1, LPET, restored and SPET of one slice [H, W], PET in kBq/mL, and its pixel size."""

    x_m: Image
    x_p: Image
    restored: Image
    x_s: Image
    voxel_mm: Any

    def png(self, title: str) -> bytes:
        """The images side by side with error maps; ``title`` stands above the restored one."""
        return comparison_figure(
            {"LPET": self.x_p, title: self.restored},
            self.x_s,
            x_m=self.x_m,
            voxel_mm=float(self.voxel_mm),
        )

    def save(self, path: Path) -> None:
        """Write the arrays to ``path``, a ``.npz`` file."""
        arrays: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> SlicePicture:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})


def restore_middle_slice(
    model: RestorationModel, slices: SliceSet, sampler: SamplerConfig | None = None
) -> SlicePicture:
    """The middle slice of a set, restored by ``model``."""
    middle = slices.infos[len(slices) // 2]
    chosen = slices.select(lambda info: info is middle)
    restored = restore_slices(model, chosen, sampler=sampler).x_s
    scale = middle.scale * KBQ
    return SlicePicture(
        x_m=chosen.x_m[0, 0].cpu().numpy(),
        x_p=(chosen.x_p[0, 0] * scale).cpu().numpy(),
        restored=(restored[0, 0] * scale).cpu().numpy(),
        x_s=(chosen.x_s[0, 0] * scale).cpu().numpy(),
        voxel_mm=middle.voxel_mm,
    )
