"""Fused features F of training images while the fusion is frozen: each computed only once."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from mfdiff_core.data.batches import Batch
from mfdiff_core.model import MFdiffModel, RestorationModel

Fuse = Callable[[Tensor, Tensor], Tensor]

MEMORY_SHARE = 0.5
"""Share of the memory free at the start that features may take."""


class FrozenFeatures:
    """F by image, on the model's device.

    F depends on the image and the fusion's weights alone (not on t or the noise), so as long as
    these weights stand still it is the same in every epoch. It is computed image by image, so
    that it does not depend on the batch an image happens to be in, and kept where the image has a
    key (augmentation that never repeats itself gives none) and while there is room.

    Args:
        model: whose fusion it is, watched for being frozen; only MFdiff has one.
        precision: of the training, so that F is what the step itself would have computed.
        keep: keep features for later steps.
    """

    def __init__(self, model: RestorationModel, precision: str, *, keep: bool = True) -> None:
        self._model = model if isinstance(model, MFdiffModel) else None
        self._precision = precision
        self._keep = keep
        self._room: float | None = None
        self._kept: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> Tensor | None:
        """F [B, C, h, w] of a batch, or None where the fusion is being trained."""
        if self._model is None or not self._model.fusion_is_frozen:
            self._kept.clear()
            return None
        fuse, keys = self._model.fuse, batch.keys or ("",) * len(batch.x_p)
        return torch.cat([self._of(fuse, batch, row, key) for row, key in enumerate(keys)])

    def _of(self, fuse: Fuse, batch: Batch, row: int, key: str) -> Tensor:
        if key in self._kept:
            return self._kept[key]
        x_p, x_m = batch.x_p[row : row + 1], batch.x_m[row : row + 1]
        bf16 = self._precision == "bf16"
        with torch.no_grad(), torch.autocast(x_p.device.type, torch.bfloat16, enabled=bf16):
            f = fuse(x_p, x_m)
        if self._keep and key and self._fits(f):
            self._kept[key] = f
        return f

    def _fits(self, f: Tensor) -> bool:
        """Whether there is room for one more; takes the room if so."""
        if self._room is None:
            self._room = MEMORY_SHARE * _free_bytes(f.device)
        if f.nbytes > self._room:
            return False
        self._room -= f.nbytes
        return True


def _free_bytes(device: torch.device) -> float:
    """Memory that is free on ``device`` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
