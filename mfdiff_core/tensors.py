"""Tensors on disk, as safetensors: a file that holds numbers and can execute nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from mfdiff_core.errors import DataError


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``tensors`` to ``path``, each with memory of its own."""
    from safetensors.torch import save_file

    own = {name: value.detach().contiguous().cpu().clone() for name, value in tensors.items()}
    save_file(own, str(path))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of ``path`` on the CPU.

    Raises:
        DataError: not a safetensors file, or a damaged one.
        OSError: unreadable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(str(path))
    except SafetensorError as fault:
        raise DataError(f"{path}: unreadable weights ({fault})") from None
    return tensors
