"""A model's restoration of a set of slices, and its metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.evaluation.metrics import Metrics, evaluate_slices
from mfdiff_core.model import RestorationModel, Restored

BATCH_SIZE = 16


def restore_slices(
    model: RestorationModel,
    slices: SliceSet,
    *,
    seed: int = 0,
    sampler: SamplerConfig | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> Restored:
    """Restore every slice of a set, in intensity units [N, 1, H, W].

    The result does not depend on ``batch_size``: noise is keyed by slice.
    """
    device = next(model.parameters()).device
    parts: list[Restored] = []
    for start in range(0, len(slices), batch_size):
        rows = slice(start, start + batch_size)
        keys = [info.key for info in slices.infos[rows]]
        x_p, x_m = slices.x_p[rows].to(device), slices.x_m[rows].to(device)
        given = None if slices.sinograms is None else slices.sinograms[rows].to(device)
        parts.append(model.restore(x_p, x_m, keys, seed=seed, sampler=sampler, sinograms=given))
        if on_batch is not None:
            on_batch(min(start + batch_size, len(slices)))
    return Restored(torch.cat([p.x_s for p in parts]), torch.cat([p.spread for p in parts]))


def evaluate_model(
    model: RestorationModel,
    slices: SliceSet,
    *,
    seed: int = 0,
    sampler: SamplerConfig | None = None,
) -> Metrics:
    """Quantitative metrics of a model on a set, one row per slice."""
    restored = restore_slices(model, slices, seed=seed, sampler=sampler).x_s
    return evaluate_slices(restored[:, 0].cpu(), slices.x_s[:, 0].cpu())


def summarise(metrics: Metrics, slices: SliceSet) -> dict[str, float]:
    """Mean metrics over slices, overall and as ``<setting>/psnr`` for each setting."""
    rows = metrics.rows()
    summary = {name: float(value) for name, value in metrics.mean()._asdict().items()}
    settings = dict.fromkeys(info.setting for info in slices.infos)
    for setting in settings if len(settings) > 1 else ():
        chosen = [
            row for row, info in zip(rows, slices.infos, strict=True) if info.setting == setting
        ]
        for name in summary.keys() & set(chosen[0]._fields):
            summary[f"{setting}/{name}"] = sum(getattr(row, name) for row in chosen) / len(chosen)
    return summary
