"""A dataset folder opened for use: verified shards, the saved split, tensors by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mfdiff_core.data.manifest import (
    MANIFEST,
    SPLIT,
    Manifest,
    ShardEntry,
    load_manifest,
    verify_shard,
)
from mfdiff_core.data.slices import SINOGRAMS, Shard, SliceInfo, sinogram_size
from mfdiff_core.data.splits import Part, Split, load_split
from mfdiff_core.errors import DataError


@dataclass(frozen=True)
class SliceSet:
    """Slices as tensors: images [N, 1, H, W] float32 in intensity units, maps [N, H, W] uint8.

    ``sinograms`` are y, in intensity units, and AN of each LPET, [N, 2, views, bins]; None where
    the dataset carries none.
    """

    infos: tuple[SliceInfo, ...]
    x_p: torch.Tensor
    x_m: torch.Tensor
    x_s: torch.Tensor
    tissue: torch.Tensor
    lesions: torch.Tensor
    sinograms: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def scale(self) -> torch.Tensor:
        """Physical units per intensity unit, [N]."""
        return torch.tensor([info.scale for info in self.infos])

    def select(self, keep: Callable[[SliceInfo], bool]) -> SliceSet:
        """The slices whose facts satisfy ``keep``."""
        return self.rows([row for row, info in enumerate(self.infos) if keep(info)])

    def rows(self, rows: list[int]) -> SliceSet:
        """The slices at ``rows``, in that order."""
        infos = tuple(self.infos[row] for row in rows)
        return replace(self._map(lambda tensor: tensor[rows]), infos=infos)

    def to(self, device: torch.device) -> SliceSet:
        """The set with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device))

    def resident(self, device: torch.device) -> SliceSet:
        """The set on ``device`` if it takes at most half of what is free there, else as it is."""
        if device.type != "cuda" or 2 * self.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return self.to(device)

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take."""
        held = (self.x_p, self.x_m, self.x_s, self.tissue, self.lesions, self.sinograms)
        return sum(x.nbytes for x in held if x is not None)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SliceSet:
        return replace(
            self,
            x_p=change(self.x_p),
            x_m=change(self.x_m),
            x_s=change(self.x_s),
            tissue=change(self.tissue),
            lesions=change(self.lesions),
            sinograms=None if self.sinograms is None else change(self.sinograms),
        )


@dataclass(frozen=True)
class Contents:
    """Verified shards of a dataset folder, split or not: enough to look at them."""

    folder: Path
    manifest: Manifest
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Dataset(Contents):
    """A verified dataset folder, and which subjects are for what."""

    split: Split

    def part(self, part: Part, setting: str | None = None) -> SliceSet:
        """Slices of the subjects of one part, optionally of one setting, as tensors.

        Raises:
            DataError: the setting does not occur in this dataset, or not in this part.
        """
        if setting is not None and setting not in self.manifest.settings:
            raise DataError(
                f"{self.folder}: no setting {setting!r}; it has {', '.join(self.manifest.settings)}"
            )
        subjects = self.split.subjects(part)
        chosen = [
            (shard, [i for i, info in enumerate(shard.infos) if setting in (None, info.setting)])
            for shard, subject in zip(self.shards, self.manifest.subjects, strict=True)
            if subject in subjects
        ]
        if not any(rows for _, rows in chosen):
            raise DataError(f"{self.folder}: no subject of {part} has a slice of {setting!r}")
        return _gather(chosen)


def _gather(chosen: Sequence[tuple[Shard, list[int]]]) -> SliceSet:
    infos = tuple(shard.infos[row] for shard, rows in chosen for row in rows)

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(
            np.concatenate([shard.arrays[name][rows] for shard, rows in chosen])
        )

    carried = all(name in shard.arrays for shard, _ in chosen for name in SINOGRAMS)
    return SliceSet(
        infos,
        x_p=stack("x_p")[:, None],
        x_m=stack("x_m")[:, None],
        x_s=stack("x_s")[:, None],
        tissue=stack("tissue"),
        lesions=stack("lesions"),
        sinograms=torch.stack([stack(name) for name in SINOGRAMS], dim=1) if carried else None,
    )


def open_dataset(folder: Path) -> Dataset:
    """Open ``folder`` after checking every hash and that no subject leaks between parts.

    Raises:
        DataError: missing or damaged files, a manifest that does not describe its shards, or
            subjects of the split that are not in the shards.
    """
    contents = open_contents(folder)
    manifest, split = contents.manifest, load_split(folder / SPLIT)
    listed = {*split.train, *split.validation, *split.test}
    if listed != set(manifest.subjects):
        odd = ", ".join(sorted(listed ^ set(manifest.subjects)))
        raise DataError(f"{folder}: split and manifest disagree on subjects {odd}")
    return Dataset(folder, manifest, contents.shards, split)


def open_contents(folder: Path) -> Contents:
    """Open ``folder`` after checking every hash; there need not be a split.

    Raises:
        DataError: missing or damaged files, or a manifest that does not describe its shards.
    """
    manifest = load_manifest(folder)
    shards = tuple(verify_shard(folder, entry) for entry in manifest.shards)
    for entry, shard in zip(manifest.shards, shards, strict=True):
        _check_contents(manifest, entry, shard)
    return Contents(folder, manifest, shards)


def _check_contents(manifest: Manifest, entry: ShardEntry, shard: Shard) -> None:
    """Refuse a shard that holds something else than the manifest says."""
    strangers = {info.subject for info in shard.infos} - {entry.subject}
    if strangers:
        raise DataError(f"{entry.file}: holds {', '.join(sorted(strangers))} besides its subject")
    unlisted = {info.setting for info in shard.infos} - set(manifest.settings)
    if unlisted:
        raise DataError(f"{entry.file}: setting {min(unlisted)!r} is not in {MANIFEST}")
    size = shard.arrays["x_p"].shape[-1]
    if size != manifest.image_size:
        raise DataError(f"{entry.file}: {size} pixels wide, {MANIFEST} says {manifest.image_size}")
    if (found := sinogram_size(shard)) != (listed := manifest.sinogram_size):
        raise DataError(f"{entry.file}: sinograms of {found}, {MANIFEST} says {listed}")
