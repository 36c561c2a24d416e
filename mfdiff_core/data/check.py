"""Everything that can be wrong with a dataset, found in one pass and said in sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.data.manifest import (
    MANIFEST,
    SHARDS,
    SPLIT,
    Manifest,
    ShardEntry,
    load_manifest,
    verify_shard,
)
from mfdiff_core.data.slices import SINOGRAMS, Shard, sinogram_size
from mfdiff_core.data.splits import LEAST_SUBJECTS, PARTS, Part, load_split
from mfdiff_core.errors import DataError

Severity = Literal["error", "warning"]
HIGHEST_INTENSITY = 20.0
"""Intensities are about [0, 1]; noise of a very low dose reaches a few times that."""
SEEN: tuple[Part, ...] = ("train", "validation")
"""Parts that decide what a model becomes."""
_SAME_SKETCH = 1e-4
"""Rounding moves a sketch by 3e-7; those of two heads lie 0.07 apart or more."""


@dataclass(frozen=True)
class Finding:
    """One fault: a code to look up, where it is, what it is and what to do."""

    severity: Severity
    code: str
    where: str
    message: str


def check_dataset(folder: Path) -> list[Finding]:
    """All findings of a dataset folder; an empty list is a clean bill.

    Checks the manifest, every shard's size, hash, schema and values, that the split names each
    subject once and that no two subjects share a target. A set of too few subjects to be split is
    sound, but warned of. Never raises for what is wrong with the data.
    """
    try:
        manifest = load_manifest(folder)
    except DataError as fault:
        return [Finding("error", "manifest", MANIFEST, str(fault))]
    findings: list[Finding] = []
    sound: list[tuple[ShardEntry, Shard]] = []
    for entry in manifest.shards:
        try:
            sound.append((entry, verify_shard(folder, entry)))
        except DataError as fault:
            findings.append(Finding("error", "damaged", entry.file, str(fault)))
    findings += content_findings(manifest, sound)
    listed = {entry.file for entry in manifest.shards}
    for path in sorted((folder / SHARDS).glob("*")):
        if path.relative_to(folder).as_posix() not in listed:
            text = "not in the manifest, so it is never read; remove it"
            findings.append(Finding("warning", "stray", path.name, text))
    return findings + _split_findings(folder, set(manifest.subjects))


def open_sound_dataset(folder: Path) -> Dataset:
    """`open_dataset`, and what it does not look at: every value, and targets that subjects share.

    Raises:
        DataError: as `open_dataset`; or the first fault, and how many there are.
    """
    dataset = open_dataset(folder)
    shards = list(zip(dataset.manifest.shards, dataset.shards, strict=True))
    found = [f for f in content_findings(dataset.manifest, shards) if f.severity == "error"]
    if found:
        more = f" (and {len(found) - 1} more: `mfdiff-platform data check`)" * (len(found) > 1)
        raise DataError(f"{folder / found[0].where}: {found[0].message}{more}")
    return dataset


def shared_subjects(tested: Dataset, trained: Dataset) -> list[str]:
    """Test subjects of one dataset with a target that another trains on or validates with.

    Targets are told by their coarse shape, so that one is known again beside an LPET of another
    dose, whose scale it has.
    """
    seen = [sketch for part in SEEN for _, sketch in _sketches(trained, part)]
    if not seen:
        return []
    known = cKDTree(np.stack(seen))
    nearest = (
        (name, known.query(sketch, p=np.inf)[0]) for name, sketch in _sketches(tested, "test")
    )
    return sorted({name for name, distance in nearest if distance < _SAME_SKETCH})


def _sketches(dataset: Dataset, part: Part) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Subject of each target of a part, and its means in 8 x 8 blocks over their maximum."""
    people = dataset.split.subjects(part)
    for shard in dataset.shards:
        for info, image in zip(shard.infos, shard.arrays["x_s"], strict=True):
            if info.subject in people:
                blocks = F.adaptive_avg_pool2d(torch.tensor(image)[None], 8)
                yield info.subject, (blocks / blocks.max().clamp_min(1e-12)).flatten().numpy()


def content_findings(
    manifest: Manifest, shards: Sequence[tuple[ShardEntry, Shard]]
) -> list[Finding]:
    """Findings about what undamaged shards hold."""
    findings: list[Finding] = []
    for entry, shard in shards:
        findings += _shard_findings(entry.file, entry.subject, manifest.domain, shard)
        findings += _sinogram_findings(entry.file, shard, manifest)
    return findings + list(_shared_findings(shards))


def _shared_findings(shards: Sequence[tuple[ShardEntry, Shard]]) -> Iterator[Finding]:
    """A target that two subjects share is one person under two names, maybe in two parts."""
    owner: dict[bytes, ShardEntry] = {}
    for entry, shard in shards:
        targets = [image for image in shard.arrays["x_s"] if image.any()]
        shared = {
            first.subject
            for image in targets
            if (first := owner.setdefault(_digest(image), entry)) is not entry
        }
        if shared:
            text = f"shares targets with {', '.join(sorted(shared))}: one person twice leaks"
            yield Finding("error", "leak", entry.file, text)


def _digest(image: npt.NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _shard_findings(file: str, subject: str, domain: str, shard: Shard) -> Iterator[Finding]:
    strangers = {info.subject for info in shard.infos} - {subject}
    if strangers:
        text = f"holds slices of {', '.join(sorted(strangers))} besides {subject}: this leaks"
        yield Finding("error", "leak", file, text)
    if {info.domain for info in shard.infos} - {domain}:
        yield Finding("error", "domain", file, f"holds slices of another domain than {domain}")
    keys = [info.key for info in shard.infos]
    if len(set(keys)) < len(keys):
        yield Finding("error", "duplicate", file, "holds a slice twice")
    for name in ("x_p", "x_m", "x_s"):
        images = shard.arrays[name]
        for row in np.flatnonzero(~np.isfinite(images).all(axis=(1, 2))):
            yield Finding("error", "not-finite", file, f"{name} of {keys[row]} has NaN or infinity")
        for row in np.flatnonzero(images.max(axis=(1, 2)) <= 0):
            yield Finding("error", "empty", file, f"{name} of {keys[row]} is empty")
        for row in np.flatnonzero(images.max(axis=(1, 2)) > HIGHEST_INTENSITY):
            text = f"{name} of {keys[row]} reaches {images[row].max():.0f}: is it scaled?"
            yield Finding("warning", "range", file, text)
    for row in np.flatnonzero((shard.arrays["x_p"] == shard.arrays["x_s"]).all(axis=(1, 2))):
        text = f"x_p and x_s of {keys[row]} are one image: give the low-dose scan as x_p"
        yield Finding("error", "same-image", file, text)
    for info in shard.infos:
        if not (info.scale > 0 and info.mr_scale > 0 and info.voxel_mm > 0):
            text = f"{info.key} has a scale or voxel size that is not positive"
            yield Finding("error", "scale", file, text)


def _sinogram_findings(file: str, shard: Shard, manifest: Manifest) -> Iterator[Finding]:
    found, listed = sinogram_size(shard), manifest.sinogram_size
    if found != listed:
        text = f"sinograms of {found} (views, bins), {MANIFEST} says {listed}"
        yield Finding("error", "sinograms", file, text)
    if found is None:
        return
    y, factors = (shard.arrays[name] for name in SINOGRAMS)
    for row, info in enumerate(shard.infos):
        if not (np.isfinite(y[row]).all() and y[row].min() >= 0 and y[row].max() > 0):
            text = f"y of {info.key} is empty, negative or not finite"
            yield Finding("error", "sinograms", file, text)
        if not (np.isfinite(factors[row]).all() and factors[row].min() > 0):
            text = f"factors of {info.key} are not all positive"
            yield Finding("error", "sinograms", file, text)


def _split_findings(folder: Path, subjects: set[str]) -> list[Finding]:
    try:
        split = load_split(folder / SPLIT)
    except DataError as fault:
        few = len(subjects) < LEAST_SUBJECTS and not (folder / SPLIT).exists()
        return [Finding("warning" if few else "error", "split", SPLIT, str(fault))]
    listed = {subject for part in PARTS for subject in split.subjects(part)}
    if listed == subjects:
        return []
    odd = ", ".join(sorted(listed ^ subjects))
    return [Finding("error", "split", SPLIT, f"split and manifest disagree on {odd}")]
