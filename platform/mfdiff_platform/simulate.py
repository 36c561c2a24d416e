"""Simulate a domain: one Ray task and one shard per subject, then manifest and split.

A task's shard depends on (recipe, subject, seed) alone, so the number of workers changes nothing
but the time. Finished shards of the same recipe are kept when the command is run again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mfdiff_core.config import override, to_dict
from mfdiff_core.data.facts import dataset_facts
from mfdiff_core.data.intensity import INPUT_SCALES, Intensity, triplet_scales
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
from mfdiff_core.data.splits import LEAST_SUBJECTS, PAPER_FRACTIONS, make_split
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import read_json, sha256_file, write_json
from mfdiff_core.physics.simulate import (
    SimulatedSlice,
    SimulationConfig,
    SubjectSource,
    View,
    label_subject,
    list_subjects,
    recipe,
    simulate_subject,
)
from mfdiff_platform.cluster import Resources, as_completed, connect
from mfdiff_platform.lpet_row import LpetRows, lpet_rows, mean_rows
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
        view: of the full phantom recipe, see `physics.domains.recipe`.
        changes: dotted path in the recipe to another value.
        intensity: what slices are divided by, see `data.intensity`.
    """

    domain: str
    quick: bool = False
    num_subjects: int | None = None
    brainweb: Path | None = None
    labels: tuple[Path, ...] = ()
    label_map: Mapping[int, str] = field(default_factory=dict)
    seed: int = 0
    sinograms: bool = False
    view: View = "headbox"
    changes: Mapping[str, Any] = field(default_factory=dict)
    intensity: Intensity = "lpet"

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
        if self.view != "headbox" and (self.quick or self.domain != "phantom"):
            raise ConfigError(f"--view {self.view} is for --domain phantom without --quick")
        if self.intensity not in INPUT_SCALES:
            raise ConfigError(f"unknown intensity {self.intensity!r}")

    def config(self) -> SimulationConfig:
        """The domain's recipe with the changes asked for.

        Raises:
            ConfigError: a change names no setting, or a value that it cannot have.
        """
        config = override(recipe(self.domain, quick=self.quick, view=self.view), self.changes)
        if config.domain != self.domain:
            raise ConfigError("domain: is chosen by --domain")
        if self.sinograms and config.scanner.background_fraction:
            raise ConfigError(
                "--sinograms is for scanner.background_fraction=0: FB-SEM models no background"
            )
        return config

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
        DataError: files are missing, unusable, or one person's under two names.
    """
    config = request.config()
    subjects = request.subjects(config)
    origin = {
        "kind": "simulation",
        "seed": request.seed,
        "subjects": _hashes(subjects),
        "config": to_dict(config),
    }
    if request.sinograms:
        origin["sinograms"] = True
    if request.intensity != "lpet":
        origin["intensity"] = request.intensity
    if _is_finished(out, origin):
        return load_manifest(out)
    write_json(out / ORIGIN, origin)
    entries, lpet, quantitative = _run(config, subjects, request, out)
    fractions = PAPER_FRACTIONS if request.domain == "phantom" else STAND_IN_FRACTIONS
    if len(subjects) >= LEAST_SUBJECTS:
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
        lpet_quantitative=quantitative,
        facts=dataset_facts(shards, request.intensity),
        sinograms=to_dict(config.geometry) if request.sinograms else {},
    )
    manifest.save(out)
    return manifest


def _hashes(subjects: tuple[SubjectSource, ...]) -> dict[str, str]:
    """SHA-256 of each subject's file, empty for the embedded ones.

    Raises:
        DataError: two are the same file, which would put one person into two parts of the split.
    """
    hashes: dict[str, str] = {}
    files: dict[str, SubjectSource] = {}
    for subject in subjects:
        if subject.path is None:
            hashes[subject.name] = ""
            continue
        hashes[subject.name] = digest = sha256_file(subject.path)
        first = files.setdefault(digest, subject)
        if first is not subject:
            raise DataError(
                f"{first.path} and {subject.path} are the same file: as two subjects one person"
                " would be trained on and tested on; leave one out"
            )
    return hashes


def _is_finished(out: Path, origin: dict[str, Any]) -> bool:
    """Whether ``out`` already holds this dataset; clears nothing, refuses another one."""
    started = (out / MANIFEST).is_file() or any((out / SHARDS).glob("*.arrow"))
    if not started or not (out / ORIGIN).is_file():
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
) -> tuple[list[ShardEntry], dict[str, float], dict[str, float]]:
    """Simulate all subjects on the cluster.

    Returns:
        Entries in the order of ``subjects``, and the LPET row in the paper's convention and in the
        quantitative one.
    """
    import ray

    with connect() as cluster, task(f"Simulating {config.domain}", len(subjects)) as shown:
        cluster.require(Resources(cpus=1), "simulation", "free one CPU")
        remote = ray.remote(num_cpus=1)(_simulate_shard)
        done: dict[str, tuple[ShardEntry, LpetRows]] = {}
        tasks = [
            remote.options(name=f"simulate:{config.domain}:{subject.name}").remote(
                config,
                subject,
                request.seed,
                out,
                sinograms=request.sinograms,
                intensity=request.intensity,
            )
            for subject in subjects
        ]
        for result in as_completed(tasks):
            done[result[0].subject] = result
            shown.update(len(done))
    ordered = [done[subject.name] for subject in subjects]
    return [entry for entry, _ in ordered], *mean_rows(rows for _, rows in ordered)


def _simulate_shard(
    config: SimulationConfig,
    subject: SubjectSource,
    seed: int,
    out: Path,
    *,
    sinograms: bool = False,
    intensity: Intensity = "lpet",
) -> tuple[ShardEntry, LpetRows]:
    """Worker: write one subject's shard unless it is there; returns its LPET metrics too."""
    import torch

    torch.set_num_threads(1)
    path = out / SHARDS / f"{subject.name}.arrow"
    if not path.is_file():
        drawn = simulate_subject(config, subject, seed, sinograms=sinograms)
        write_shard(path, [to_record(config.domain, each, intensity) for each in drawn])
    shard = read_shard(path)
    entry = describe_shard(out, path, subject.name, len(shard.infos))
    return entry, lpet_rows(shard)


def to_record(domain: str, drawn: SimulatedSlice, intensity: Intensity = "lpet") -> SliceRecord:
    """Simulated slice in physical units to a row of the dataset, with its scales."""
    scale, scale_m, scale_s = triplet_scales(drawn.x_p, drawn.x_m, drawn.x_s, intensity)
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
        dose_mbq=drawn.protocol.dose_mbq if drawn.protocol else math.nan,
        protocol=drawn.protocol.kind if drawn.protocol else "",
    )
    images = (drawn.x_p / scale, drawn.x_m / scale_m, drawn.x_s / scale_s)
    x_p, x_m, x_s = (image.astype(np.float32) for image in images)
    sinogram = None
    if drawn.sinogram is not None:
        y, factors = drawn.sinogram
        sinogram = np.stack((y / np.float32(scale), factors))
    return SliceRecord(info, x_p, x_m, x_s, drawn.tissue, drawn.lesions, sinogram)
