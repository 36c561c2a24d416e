"""A trial's validation: figures on held-out subjects, and what people want to see of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.evaluation.metrics import METRICS, Metrics, evaluate_slices
from mfdiff_core.evaluation.regions import region_bias, simulated_regions, t1_regions
from mfdiff_core.evaluation.statistics import subject_means
from mfdiff_core.evaluation.validation import restore_slices, summarise
from mfdiff_core.files import write_json
from mfdiff_core.model import RestorationModel
from mfdiff_core.training.step import WHOLE, Share
from mfdiff_platform.objective import Objective
from mfdiff_platform.strip import strip_file, write_strip

SUBJECTS = "subjects.json"
SCORE = "score"


class Validator:
    """Validates on the held-out slices; what is written, rank 0 writes."""

    def __init__(
        self,
        held_out: SliceSet,
        folder: Path,
        objectives: tuple[Objective, ...],
        share: Share = WHOLE,
    ) -> None:
        self.held_out, self._folder, self._objectives = held_out, folder, objectives
        self._share = share
        self._metrics: Metrics | None = None

    def __call__(self, model: RestorationModel, step: int) -> dict[str, float]:
        """Metrics of ``model``, and as ``score`` the deciding one; draws one slice."""
        started = time.perf_counter()
        restored = restore_together(model, self.held_out, self._share)
        seconds = (time.perf_counter() - started) / len(self.held_out)
        self._metrics = evaluate_slices(restored, self.held_out.x_s[:, 0].cpu())
        summary = summarise(self._metrics, self.held_out)
        wanted = {objective.metric for objective in self._objectives}
        if "slice_seconds" in wanted:
            summary["slice_seconds"] = seconds
        if "bias" in wanted:
            summary["bias"] = regional_bias(restored.numpy(), self.held_out)
        summary[SCORE] = self._objectives[0].score(summary)
        if self._share.rank == 0 and math.isfinite(summary["psnr"]):
            write_strip(strip_file(self._folder, step), model, self.held_out)
        return summary

    def note_best(self) -> None:
        """The last validation is the best so far: keep each subject's means."""
        assert self._metrics is not None
        if self._share.rank != 0:
            return
        people = [info.subject for info in self.held_out.infos]
        means = {name: subject_means(getattr(self._metrics, name), people) for name in METRICS}
        rows = [
            {"subject": person} | {name: means[name][person] for name in METRICS}
            for person in dict.fromkeys(people)
        ]
        write_json(self._folder / SUBJECTS, rows)


def restore_together(model: RestorationModel, slices: SliceSet, share: Share) -> torch.Tensor:
    """Restorations [N, H, W], in main memory; each worker makes its part and all get the whole."""
    if share.world_size == 1:
        return restore_slices(model, slices).x_s[:, 0].cpu()
    rows = range(share.rank, len(slices), share.world_size)
    position = iter(range(len(slices)))
    whole = torch.zeros_like(slices.x_s, device=next(model.parameters()).device)
    if rows:
        part = slices.select(lambda _: next(position) in rows)
        whole[list(rows)] = restore_slices(model, part).x_s.to(whole)
    torch.distributed.all_reduce(whole)
    return whole[:, 0].cpu()


def regional_bias(restored: np.ndarray[Any, Any], slices: SliceSet) -> float:
    """Mean over subjects and regions of a region's absolute relative error of the mean.

    Args:
        restored: [N, H, W], as the slices' own.
        slices: what it is compared with; simulated ones have tissue maps, others thirds of T1.
    """
    people = [info.subject for info in slices.infos]
    found: list[float] = []
    for person in dict.fromkeys(people):
        rows = np.array([subject == person for subject in people])
        x_s, x_m = (getattr(slices, name)[rows, 0].cpu().numpy() for name in ("x_s", "x_m"))
        tissue, lesions = (
            getattr(slices, name)[rows].cpu().numpy() for name in ("tissue", "lesions")
        )
        shape = x_s.shape
        regions = (
            simulated_regions(tissue.reshape(shape), lesions.reshape(shape))
            if tissue.any()
            else t1_regions(x_m, x_s)
        )
        biases = [abs(region.mean_bias) for region in region_bias(restored[rows], x_s, regions)]
        found += [bias for bias in biases if math.isfinite(bias)]
    return float(np.mean(found)) if found else math.nan
