"""Simulate a domain: one Ray task and one shard per subject, then manifest and split.

A task's shard depends on (recipe, subject, seed) alone, so the number of workers changes nothing
but the time. Finished shards of the same recipe are kept when the command is run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mfdiff_core.config import to_dict
from mfdiff_core.data.facts import dataset_facts
from mfdiff_core.data.intensity import mr_scale, pet_scale
from mfdiff_core.data.manifest import (
    MANIFEST,
    SHARDS,
    SPLIT,
    Manifest,
    ShardEntry,
    describe_shard,
    load_manifest,
    unique,
)
from mfdiff_core.data.slices import SliceInfo, SliceRecord, read_shard, write_shard
from mfdiff_core.data.splits import PAPER_FRACTIONS, make_split
from mfdiff_core.errors import ConfigError
from mfdiff_core.evaluation.metrics import METRICS, evaluate_slices
from mfdiff_core.files import read_json, sha256_file, write_json
from mfdiff_core.physics.simulate import (
    SimulatedSlice,
    SimulationConfig,
    SubjectSource,
    label_subject,
    list_subjects,
    recipe,
    simulate_subject,
)
from mfdiff_platform.cluster import Resources, as_completed, connect
from mfdiff_platform.progress import task

ORIGIN = "origin.json"
DOMAINS = ("phantom", "ood1", "ood2", "ood3")
STAND_IN_FRACTIONS = (0.5, 0.25, 0.25)
"""A site's handful of subjects: half to adapt on, the rest held out to choose and to test."""


@dataclass(frozen=True)
class SimulationRequest:
    """What `simulate` makes; everything here goes into the manifest.

    Attributes:
        domain: one of `DOMAINS`.
        quick: the small recipe of the quick start instead of the paper's.
        num_subjects: how many people; None takes the recipe's number, or every BrainWeb file.
        brainweb: folder of BrainWeb label files to use instead of the embedded anatomy.
        labels: segmentations (NIfTI) to use instead; each is one subject.
        label_map: value in those files to tissue name.
        seed: keys every random draw.
        sinograms: store what each LPET was reconstructed from, for FB-SEM.
    """

    domain: str
    quick: bool = False
    num_subjects: int | None = None
    brainweb: Path | None = None
    labels: tuple[Path, ...] = ()
    label_map: Mapping[int, str] = field(default_factory=dict)
    seed: int = 0
    sinograms: bool = False

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ConfigError(f"unknown domain {self.domain!r}; simulated are {', '.join(DOMAINS)}")
        if self.sinograms and self.domain != "phantom":
            raise ConfigError(
                f"--sinograms is for --domain phantom; {self.domain} stands in for in-vivo scans,"
                " whose images come without the measured sinograms"
            )
        if self.brainweb is not None and self.domain != "phantom":
            raise ConfigError(f"--brainweb is for --domain phantom; {self.domain} is other people")
        if self.labels and (self.brainweb or self.num_subjects):
            raise ConfigError("--labels names its subjects; leave out --brainweb and --subjects")
        if bool(self.labels) != bool(self.label_map):
            raise ConfigError("--labels needs --label-map, and the other way round")

    def subjects(self, config: SimulationConfig) -> tuple[SubjectSource, ...]:
        """The people to simulate; files get pseudonyms, as their names may name a patient.

        Raises:
            ConfigError: a name in ``label_map`` is no tissue.
            DataError: BrainWeb files are missing.
        """
        if not self.labels:
            return list_subjects(config, self.brainweb, self.num_subjects)
        try:
            return tuple(
                label_subject(f"labels-{number:02d}", path, self.label_map)
                for number, path in enumerate(self.labels, start=1)
            )
        except ValueError as fault:
            raise ConfigError(f"--label-map: {fault}") from None


def simulate(request: SimulationRequest, out: Path) -> Manifest:
    """Write the dataset of ``request`` to the folder ``out``.

    Raises:
        ConfigError: ``out`` holds a dataset made with other settings.
        DataError: BrainWeb files are missing or unusable.
    """
    config = recipe(request.domain, quick=request.quick)
    subjects = request.subjects(config)
    origin = {
        "kind": "simulation",
        "seed": request.seed,
        "subjects": {s.name: sha256_file(s.path) if s.path else "" for s in subjects},
        "config": to_dict(config),
    }
    if request.sinograms:
        origin["sinograms"] = True
    if _is_finished(out, origin):
        return load_manifest(out)
    write_json(out / ORIGIN, origin)
    entries, lpet = _run(config, subjects, request, out)
    fractions = PAPER_FRACTIONS if request.domain == "phantom" else STAND_IN_FRACTIONS
    if len(subjects) >= 3:
        make_split([s.name for s in subjects], fractions, request.seed).save(out / SPLIT)
    shards = [read_shard(out / entry.file) for entry in entries]
    manifest = Manifest(
        domain=request.domain,
        image_size=shards[0].arrays["x_p"].shape[-1],
        settings=unique([info.setting for shard in shards for info in shard.infos]),
        seed=request.seed,
        origin=origin,
        shards=tuple(entries),
        lpet=lpet,
        facts=dataset_facts(shards),
        sinograms=to_dict(config.geometry) if request.sinograms else {},
    )
    manifest.save(out)
    return manifest


def _is_finished(out: Path, origin: dict[str, Any]) -> bool:
    """Whether ``out`` already holds this dataset; clears nothing, refuses another one."""
    if not (out / ORIGIN).is_file():
        return False
    if read_json(out / ORIGIN) != origin:
        raise ConfigError(
            f"{out} holds a dataset made with other settings; choose another --out, or remove it"
        )
    return (out / MANIFEST).is_file()


def _run(
    config: SimulationConfig,
    subjects: tuple[SubjectSource, ...],
    request: SimulationRequest,
    out: Path,
) -> tuple[list[ShardEntry], dict[str, float]]:
    """Simulate all subjects on the cluster; entries in the order of ``subjects``."""
    import ray

    with connect() as cluster, task(f"Simulating {config.domain}", len(subjects)) as shown:
        cluster.require(Resources(cpus=1), "simulation", "free one CPU")
        remote = ray.remote(num_cpus=1)(_simulate_shard)
        done: dict[str, tuple[ShardEntry, list[list[float]]]] = {}
        tasks = [
            remote.options(name=f"simulate:{config.domain}:{subject.name}").remote(
                config, subject, request.seed, out, sinograms=request.sinograms
            )
            for subject in subjects
        ]
        for result in as_completed(tasks):
            done[result[0].subject] = result
            shown.update(len(done))
    ordered = [done[subject.name] for subject in subjects]
    rows = np.array([row for _, subject_rows in ordered for row in subject_rows])
    lpet = {name: float(value) for name, value in zip(METRICS, rows.mean(axis=0), strict=True)}
    return [entry for entry, _ in ordered], lpet


def _simulate_shard(
    config: SimulationConfig,
    subject: SubjectSource,
    seed: int,
    out: Path,
    *,
    sinograms: bool = False,
) -> tuple[ShardEntry, list[list[float]]]:
    """Worker: write one subject's shard unless it is there; returns its LPET metrics too."""
    import torch

    torch.set_num_threads(1)
    path = out / SHARDS / f"{subject.name}.arrow"
    if not path.is_file():
        drawn = simulate_subject(config, subject, seed, sinograms=sinograms)
        write_shard(path, [to_record(config.domain, each) for each in drawn])
    shard = read_shard(path)
    # The LPET row as the paper has it: own maxima, and the usual defaults of its SSIM.
    x_p, x_s = shard.arrays["x_p"], shard.arrays["x_s"]
    metrics = evaluate_slices(x_p, x_s, convention="paper", window="uniform")
    entry = describe_shard(out, path, subject.name, len(shard.infos))
    return entry, [list(row) for row in metrics.rows()]


def to_record(domain: str, drawn: SimulatedSlice) -> SliceRecord:
    """Simulated slice in physical units to a row of the dataset, with its scales."""
    scale, scale_m = pet_scale(drawn.x_p), mr_scale(drawn.x_m)
    info = SliceInfo(
        domain=domain,
        setting=drawn.setting,
        subject=drawn.subject,
        slice_index=drawn.slice_index,
        rotation_index=drawn.rotation_index,
        voxel_mm=drawn.voxel_mm,
        scale=scale,
        mr_scale=scale_m,
        num_counts=drawn.num_counts,
    )
    images = (drawn.x_p / scale, drawn.x_m / scale_m, drawn.x_s / scale)
    x_p, x_m, x_s = (image.astype(np.float32) for image in images)
    sinogram = None
    if drawn.sinogram is not None:
        y, factors = drawn.sinogram
        sinogram = np.stack((y / np.float32(scale), factors))
    return SliceRecord(info, x_p, x_m, x_s, drawn.tissue, drawn.lesions, sinogram)
