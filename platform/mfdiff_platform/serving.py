"""A registered version as MLflow loads and serves it: MLflow's loader protocol, and its files.

    model = mlflow.pyfunc.load_model("models:/mfdiff-ood3@champion")
    spet = model.predict({"lpet": lpet, "mr": mr})        # slices [N, H, W], any unit

The weights stay safetensors, and this module is named in ``MLmodel`` as the loader, so a version
holds no code and no pickle; who loads it must have mfdiff-platform installed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mfdiff_core
from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.data.facts import intensity_of
from mfdiff_core.data.intensity import INPUT_SCALES
from mfdiff_platform.model_files import INSIDE
from mfdiff_platform.page import NOTICE

Stack = npt.NDArray[np.float32]

BATCH_SIZE = 16


class ServedModel:
    """What MLflow calls: low-dose PET and T1 slices in, restored slices out."""

    def __init__(self, bundle: Bundle) -> None:
        self._model = bundle.model()
        self._scales = INPUT_SCALES[intensity_of(bundle.provenance.data_facts)]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device)

    def predict(self, data: Mapping[str, Stack], params: Mapping[str, Any] | None = None) -> Stack:
        """Restored slices [N, H, W] in the units of ``lpet``.

        Args:
            data: ``lpet`` and ``mr`` [N, H, W] on the model's grid; the signature fixes H and W.
            params: ``seed`` of the restoration noise.

        Raises:
            ValueError: the two do not match, or hold values that are not finite or negative.
        """
        lpet, mr = (np.asarray(data[name], dtype=np.float32) for name in ("lpet", "mr"))
        _check(lpet, mr)
        seed = int((params or {}).get("seed", 0))
        parts = [
            self._restore(lpet[start : start + BATCH_SIZE], mr[start : start + BATCH_SIZE], seed)
            for start in range(0, len(lpet), BATCH_SIZE)
        ]
        return np.concatenate(parts) if parts else lpet

    def _restore(self, lpet: Stack, mr: Stack, seed: int) -> Stack:
        of_pet, of_mr = self._scales
        scale = np.array([of_pet(image) for image in lpet], dtype=np.float32)[:, None, None]
        scale_m = np.array([of_mr(image) for image in mr], dtype=np.float32)[:, None, None]
        restored = self._model.restore(
            torch.from_numpy(lpet / scale)[:, None].to(self._device),
            torch.from_numpy(mr / scale_m)[:, None].to(self._device),
            # Keyed by content: a slice gets the same noise in whatever request it comes.
            [hashlib.sha256(image.tobytes()).hexdigest() for image in lpet],
            seed=seed,
        )
        images: Stack = restored.x_s[:, 0].cpu().numpy() * scale
        return images


def _load_pyfunc(path: str) -> ServedModel:
    """Called by MLflow with the folder of the model."""
    return ServedModel(load_bundle(Path(path) / INSIDE))


def write_mlflow_model(bundle_dir: Path, folder: Path) -> None:
    """Write ``MLmodel`` and its companions to ``folder``, with signature and input example."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    bundle = load_bundle(bundle_dir)
    size, provenance = bundle.config.image_size, bundle.provenance
    shape, kind = (-1, size, size), np.dtype("float32")
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=__name__,
        signature=ModelSignature(
            Schema([TensorSpec(kind, shape, "lpet"), TensorSpec(kind, shape, "mr")]),
            Schema([TensorSpec(kind, shape)]),
            ParamSchema([ParamSpec("seed", "long", 0)]),
        ),
        input_example=_example(size),
        # Given, not inferred: inference would load the model in a subprocess and guess.
        pip_requirements=[f"mfdiff-platform=={mfdiff_core.__version__}"],
        metadata={
            "domain": provenance.domain,
            "pixel_mm": provenance.voxel_mm,
            "weights_sha256": provenance.sha256,
            "notice": NOTICE,
        },
    )


def _example(size: int) -> dict[str, Stack]:
    """One made-up slice: a warm ellipse with a hot rim. Never a patient's."""
    row, column = np.mgrid[:size, :size] / (size - 1) - 0.5
    radius = (row / 0.42) ** 2 + (column / 0.33) ** 2
    lpet = np.where(radius < 1, np.where(radius > 0.7, 4, 1), 0)
    mr = np.where(radius < 1, np.where(radius > 0.7, 2, 3), 0)
    return {"lpet": lpet[None].astype(np.float32), "mr": mr[None].astype(np.float32)}


def _check(lpet: Stack, mr: Stack) -> None:
    if lpet.ndim != 3 or lpet.shape != mr.shape:
        raise ValueError(f"lpet and mr must be [N, H, W] alike, got {lpet.shape} and {mr.shape}")
    for name, images in (("lpet", lpet), ("mr", mr)):
        if not np.isfinite(images).all() or (images < 0).any():
            raise ValueError(f"{name} must be finite and not negative")
