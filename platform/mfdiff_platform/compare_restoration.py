"""The test slices as each row of a comparison restores them, kept for the next comparison."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import mfdiff_core
from mfdiff_core.bundle import Bundle
from mfdiff_core.config import to_dict
from mfdiff_core.data.dataset import Dataset, SliceSet
from mfdiff_core.evaluation.baselines import best_gaussian, best_non_local_means
from mfdiff_core.files import atomic_path, read_json, sha256_text, write_json
from mfdiff_core.model import RestorationModel, build_model
from mfdiff_core.tensors import load_tensors, save_tensors
from mfdiff_platform.compare_plan import CompareScale, Method
from mfdiff_platform.compare_training import THEN, UNKNOWN, maker, repeatable
from mfdiff_platform.durable import locked
from mfdiff_platform.progress import Task, task
from mfdiff_platform.slice_parts import by_setting, evenly

TENSORS, FACTS = "restored.safetensors", "facts.json"
BATCH_SIZE, TUNED_ON = 16, 32
LPET, GAUSSIAN, NON_LOCAL = "LPET", "LPET, Gaussian", "LPET, non-local means"


@dataclass(frozen=True)
class Restoration:
    """Restored test slices [N, 1, H, W], seconds and network evaluations of each, and by what."""

    x_s: torch.Tensor
    slice_s: float = 0.0
    evaluations: int = 0
    by: str = ""


def filtered(domain: Dataset, test: SliceSet) -> tuple[dict[str, Restoration], dict[str, str]]:
    """What a clinic has today: the LPET, and two filters tuned for each setting.

    Returns:
        Filtered test slices by row, and how the filters were chosen.
    """
    images = {name: test.x_p.clone() for name in (LPET, GAUSSIAN, NON_LOCAL)}
    chosen: dict[str, list[str]] = {GAUSSIAN: [], NON_LOCAL: []}
    with task("Tuning the filters on validation subjects", 1):
        for name, rows, part in by_setting(test):
            held_out = evenly(domain.part("validation", name), TUNED_ON)
            x_p, x_s = held_out.x_p[:, 0].numpy(), held_out.x_s[:, 0].numpy()
            voxel_mm, noisy = part.infos[0].voxel_mm, part.x_p[:, 0].numpy()
            gaussian = best_gaussian(x_p, x_s, voxel_mm)
            means = best_non_local_means(x_p, x_s)
            images[GAUSSIAN][rows, 0] = torch.from_numpy(gaussian.apply(noisy, voxel_mm))
            images[NON_LOCAL][rows, 0] = torch.from_numpy(means.apply(noisy))
            chosen[GAUSSIAN].append(f"{gaussian.fwhm_mm:g} mm at {name}")
            chosen[NON_LOCAL].append(f"strength {means.strength:g} at {name}")
    notes = {
        name: f"{', '.join(found)}; highest PSNR on validation subjects"
        for name, found in chosen.items()
    }
    return {name: Restoration(x) for name, x in images.items()}, notes


def restoration_name(
    method: Method, bundle: Bundle, test: SliceSet, dataset: Dataset, scale: CompareScale
) -> str:
    """Name of a folder by all that decides how a row restores the test slices.

    Args:
        method: how the weights restore.
        bundle: the weights.
        test: the slices.
        dataset: whose they are.
        scale: size and seed.
    """
    what = {
        "weights": bundle.provenance.sha256,
        "config": to_dict(method.restoring(scale.size)),
        "data": dataset.manifest.fingerprint,
        "slices": [info.key for info in test.infos],
        "seed": scale.seed,
        "code": mfdiff_core.__version__,
    }
    return sha256_text(json.dumps(what, sort_keys=True))[:24]


def restored_by(
    method: Method, bundle: Bundle, test: SliceSet, scale: CompareScale, folder: Path
) -> Restoration:
    """The test slices by one row, from ``folder`` if they are there.

    Waits while another command is at the same restoration.
    """
    parts = folder.with_name(f"{folder.name}.parts")
    if not folder.is_dir():
        lock = folder.with_name(f".{folder.name}.lock")
        with task(f"Restoring by {method.label}", len(test)) as shown, repeatable(), locked(lock):
            if not folder.is_dir():
                model = _restorer(method, bundle, scale)
                _save(folder, _restore(model, test, scale.seed, parts, shown))
    shutil.rmtree(parts, ignore_errors=True)  # also what a kill just before left
    return _load(folder)


def _restorer(method: Method, bundle: Bundle, scale: CompareScale) -> RestorationModel:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(method.restoring(scale.size), scale.seed)
    model.load_state_dict(bundle.weights())
    return model.to(device).eval()


def _restore(
    model: RestorationModel, slices: SliceSet, seed: int, parts: Path, shown: Task
) -> Restoration:
    """Restore ``slices`` by batches, and time it; each batch is kept in ``parts`` at once.

    The noise of a slice is its own, so batches of an interrupted restoration fit those of the next.
    """
    done: list[Restoration] = []
    for start in range(0, len(slices), BATCH_SIZE):
        part = parts / f"{start:06d}"
        if not part.is_dir():
            rows = slice(start, start + BATCH_SIZE)
            _save(part, _restore_batch(model, slices, rows, seed, shown.note))
        done.append(_load(part))
        shown.update(min(start + BATCH_SIZE, len(slices)))
    seconds = sum(batch.slice_s * len(batch.x_s) for batch in done)
    x_s = torch.cat([batch.x_s for batch in done])
    makers = THEN.join(dict.fromkeys(batch.by for batch in done))
    return Restoration(x_s, seconds / len(slices), done[-1].evaluations, makers)


def _restore_batch(
    model: RestorationModel,
    slices: SliceSet,
    rows: slice,
    seed: int,
    note: Callable[[str], None],
) -> Restoration:
    device = next(model.parameters()).device
    evaluations = [0]

    def on_step(done: int, total: int) -> None:
        evaluations.append(total)
        note(f"evaluation {done}/{total}")

    keys = [info.key for info in slices.infos[rows]]
    images = (slices.x_p[rows].to(device), slices.x_m[rows].to(device))
    given = None if slices.sinograms is None else slices.sinograms[rows].to(device)
    started = time.monotonic()
    done = model.restore(
        *images,
        keys,
        seed=seed,
        sinograms=given,
        on_step=on_step,
    )
    x_s = done.x_s.cpu()
    seconds = (time.monotonic() - started) / len(x_s)
    return Restoration(x_s, seconds, evaluations[-1], maker(device))


def _save(folder: Path, done: Restoration) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        save_tensors(temporary / TENSORS, {"x_s": done.x_s})
        facts = {"slice_s": done.slice_s, "evaluations": done.evaluations, "by": done.by}
        write_json(temporary / FACTS, facts)


def _load(folder: Path) -> Restoration:
    facts = read_json(folder / FACTS)
    x_s = load_tensors(folder / TENSORS)["x_s"]
    by = facts.get("by", UNKNOWN)
    return Restoration(x_s, facts["slice_s"], int(facts["evaluations"]), by)
