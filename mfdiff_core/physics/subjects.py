"""Who is simulated: embedded people, BrainWeb's, or anybody with a segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mfdiff_core.errors import DataError
from mfdiff_core.physics.brainweb import brainweb_anatomy, find_brainweb
from mfdiff_core.physics.label_volume import check_label_map, read_label_volume
from mfdiff_core.physics.mni import mni_anatomy
from mfdiff_core.physics.phantom import Anatomy
from mfdiff_core.physics.recipe import SimulationConfig


@dataclass(frozen=True)
class SubjectSource:
    """Where a subject's anatomy comes from; small, and safe to send to another process."""

    name: str
    kind: Literal["mni", "brainweb", "labels"] = "mni"
    path: Path | None = None
    label_map: tuple[tuple[int, str], ...] = ()


def list_subjects(
    config: SimulationConfig, brainweb: Path | None = None, num_subjects: int | None = None
) -> tuple[SubjectSource, ...]:
    """Subjects of a dataset: BrainWeb's where a folder is given, else the embedded ones.

    Args:
        config: recipe.
        brainweb: folder of BrainWeb files.
        num_subjects: how many, from the first; by default all files found, or all embedded
            subjects of the recipe. Embedded subjects may be more than the recipe's number.

    Raises:
        DataError: fewer BrainWeb files than asked for, or none.
        ValueError: ``num_subjects`` is not positive, or a BrainWeb folder for a stand-in.
    """
    if num_subjects is not None and num_subjects < 1:
        raise ValueError(f"num_subjects must be positive, got {num_subjects=}")
    if brainweb is None:
        count = num_subjects or config.anatomy.num_subjects
        return tuple(SubjectSource(f"{config.anatomy.prefix}-{i:02d}") for i in range(1, count + 1))
    if config.domain != "phantom":
        raise ValueError(f"BrainWeb's subjects are the phantoms; {config.domain} is other people")
    found = find_brainweb(brainweb)
    if num_subjects is not None and num_subjects > len(found):
        raise DataError(f"{brainweb}: holds {len(found)} subjects, {num_subjects} are asked for")
    chosen = list(found.items())[:num_subjects]
    return tuple(SubjectSource(name, "brainweb", path) for name, path in chosen)


def label_subject(name: str, path: Path, label_map: Mapping[int, str]) -> SubjectSource:
    """A subject from any segmentation.

    Args:
        name: pseudonym; it keys the draws.
        path: NIfTI label volume.
        label_map: value in the file to name of a `Tissue` in lower case, for example "grey".

    Raises:
        ValueError: a name in ``label_map`` is no tissue.
    """
    return SubjectSource(name, "labels", path, check_label_map(label_map))


def subject_anatomy(config: SimulationConfig, subject: SubjectSource) -> Anatomy:
    """The recipe's slices of a subject.

    Raises:
        DataError: the subject's file cannot be used.
    """
    middle = (config.slices.num_planes - 1) / 2
    z_mm = np.array(config.slices.indices, np.float32) - np.float32(middle)
    z_mm *= np.float32(config.scanner.slice_mm)
    if subject.path is None:
        return mni_anatomy(config.anatomy, subject.name, z_mm)
    if subject.kind == "labels":
        return read_label_volume(subject.path, subject.label_map).anatomy(z_mm)
    return brainweb_anatomy(subject.path, z_mm)
