"""A slice in a strip: LPET, restored, SPET, error. Drawn in milliseconds, one per validation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.evaluation.validation import restore_slices
from mfdiff_core.files import write_bytes
from mfdiff_core.model import RestorationModel

Image = npt.NDArray[np.floating]

ZOOM = 2
_FOLDER = "validations"


def strip_file(folder: Path, step: int) -> Path:
    """Where a trial in ``folder`` leaves the strip of its validation after ``step`` steps."""
    return folder / _FOLDER / f"{step:08d}.png"


def write_strip(path: Path, model: RestorationModel, slices: SliceSet) -> None:
    """Restore the middle slice of a set and draw it; errors are red above the SPET, blue below."""
    from PIL import Image as Picture

    middle = slices.infos[len(slices) // 2]
    chosen = slices.select(lambda info: info is middle)
    x_s = chosen.x_s[0, 0].cpu().numpy()
    restored = restore_slices(model, chosen).x_s[0, 0].cpu().numpy()
    top = float(x_s.max()) or 1.0
    panels = [_grey(image / top) for image in (chosen.x_p[0, 0].cpu().numpy(), restored, x_s)]
    pixels = np.concatenate([*panels, _red_blue(2 * (restored - x_s) / top)], axis=1)
    stream = io.BytesIO()
    size = (pixels.shape[1] * ZOOM, pixels.shape[0] * ZOOM)
    Picture.fromarray(pixels).resize(size, Picture.Resampling.BICUBIC).save(stream, "PNG")
    write_bytes(path, stream.getvalue())


def _grey(image: Image) -> npt.NDArray[np.uint8]:
    values = (255 * image.clip(0, 1)).astype(np.uint8)
    return np.repeat(values[:, :, None], 3, axis=2)


def _red_blue(error: Image) -> npt.NDArray[np.uint8]:
    """White where there is no error; half the SPET's maximum is full colour."""
    fade = 255 * (1 - np.abs(error).clip(0, 1))
    full = np.full_like(fade, 255)
    channels = [np.where(error < 0, fade, full), fade, np.where(error > 0, fade, full)]
    return np.stack(channels, axis=2).astype(np.uint8)
