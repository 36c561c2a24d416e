"""The only source of randomness: generators keyed by a seed and a name.

Noise drawn for (seed, "noise", subject, slice) is the same whatever was drawn before it, in
whatever order or process, so results do not depend on batch size or on the number of workers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

Key = int | str


def derive_seed(seed: int, *key: Key) -> int:
    """Mix ``seed`` and ``key`` into a 63-bit seed, the same on every machine."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def rng(seed: int, *key: Key) -> np.random.Generator:
    """NumPy generator for ``(seed, *key)``."""
    return np.random.default_rng(derive_seed(seed, *key))


def generator(seed: int, *key: Key, device: str | torch.device = "cpu") -> torch.Generator:
    """Torch generator on ``device`` for ``(seed, *key)``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *key))
