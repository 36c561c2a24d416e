"""A PET as a set of frames in time, wherever they are stored, averaged in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mfdiff_core.data.image_checks import Affine, Voxels, check_values, without_negatives
from mfdiff_core.data.nifti import Frames, open_frames
from mfdiff_core.data.volumes import Volume
from mfdiff_core.faults import fault
from mfdiff_core.scans.bids import BidsScan, sidecar
from mfdiff_core.scans.dose import Dose, decay, image_unit, injected_dose, plain_name
from mfdiff_core.scans.frames import Decay, FrameMean
from mfdiff_core.scans.timing import (
    Frame,
    Timing,
    clock_s,
    in_order,
    placed,
    read_timing,
    runs_from_clocks,
)

_SAME_GRID_MM = 1e-2


class FrameSource(Protocol):
    """A file or series of equal frames that can be read one by one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """[X, Y, Z] of a frame."""

    @property
    def num_frames(self) -> int:
        """How many there are."""

    @property
    def affine(self) -> Affine:
        """Voxel indices to RAS millimetres."""

    @property
    def header(self) -> Mapping[str, Any]:
        """Geometry fields, see `Volume`."""

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, Voxels]]:
        """Frames ``wanted`` with their numbers, in ascending order."""


@dataclass(frozen=True)
class DynamicPet:
    """Frames in the order of time, and what is known about them.

    Attributes:
        sources: by run; `Frame.run` counts them.
        frames: all frames; empty for a single image without times.
        decay: half-life and decay correction.
        dose: injected dose, None if unknown.
        unit: of the voxels, empty if unknown.
        where: name for messages.
        notes: what was mended or chosen.
        tracer, protocol: tracer and way of giving it, as the files name them; empty if unknown.
    """

    sources: tuple[FrameSource, ...]
    frames: tuple[Frame, ...]
    decay: Decay
    dose: Dose | None
    unit: str
    where: str
    notes: tuple[str, ...] = ()
    tracer: str = ""
    protocol: str = ""

    @property
    def num_images(self) -> int:
        """Frames of all runs."""
        return sum(source.num_frames for source in self.sources)

    def average(self, wanted: Mapping[str, Sequence[Frame]]) -> dict[str, Volume]:
        """Count-weighted means of several choices of frames, reading each frame once.

        Raises:
            InputFault: a frame cannot be read, or a mean is no PET.
        """
        means = {name: FrameMean(frames, self.decay, self.where) for name, frames in wanted.items()}
        for run, source in enumerate(self.sources):
            needed = {f.index: f for m in means.values() for f in m.frames if f.run == run}
            for index, image in source.read(sorted(needed)):
                for mean in means.values():
                    mean.add(needed[index], image)
        first = self.sources[0]
        volumes = {}
        for name, mean in means.items():
            data = mean.result()
            check_values(self.where, data)
            data, notes = without_negatives(self.where, data)
            volumes[name] = Volume(data, first.affine, first.header, notes)
        return volumes

    def only_image(self) -> Volume:
        """The image of a PET that has just one.

        Raises:
            InputFault: it has several frames.
        """
        if self.num_images != 1:
            raise fault("no-window", self.where, frames=self.num_images)
        source = self.sources[0]
        ((_, data),) = source.read([0])
        check_values(self.where, data)
        data, notes = without_negatives(self.where, data)
        return Volume(data, source.affine, source.header, notes)


def open_bids_pet(scan: BidsScan) -> DynamicPet:
    """The PET of a BIDS session, its headers and sidecars read, its frames in order.

    Raises:
        InputFault: files, grids, times or dose that cannot be used.
    """
    sources = tuple(open_frames(path) for path in scan.pets)
    check_same_grid(sources)
    sidecars = [sidecar(scan.root, path) for path in scan.pets]
    where = f"{scan.pets[0]}"
    doses = [injected_dose(values, where) for values in sidecars]
    dose = next((found for found in doses if found), None)
    frames, notes = _frames(sources, sidecars, where)
    notes = (*scan.notes, *notes, *(dose.notes if dose else ()))
    unit = image_unit(sidecars[0])
    names = (plain_name(sidecars[0].get(key)) for key in ("TracerName", "ModeOfAdministration"))
    return DynamicPet(sources, frames, decay(sidecars[0]), dose, unit, where, notes, *names)


def check_same_grid(sources: Sequence[Frames]) -> None:
    """Refuse runs on different grids.

    Raises:
        InputFault: shape or affine differ.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.shape != first.shape:
            detail = f"{other.shape} voxels against {first.shape}"
        elif np.abs(other.affine - first.affine).max() > _SAME_GRID_MM:
            detail = "their affines differ"
        else:
            continue
        raise fault("grids-differ", other.path, other="the first run", detail=detail)


def _frames(
    sources: Sequence[FrameSource], sidecars: Sequence[Mapping[str, Any]], where: str
) -> tuple[tuple[Frame, ...], tuple[str, ...]]:
    counts = [source.num_frames for source in sources]
    own = [read_timing(v, n, where) for v, n in zip(sidecars, counts, strict=True)]
    clocks = [clock_s(values.get("AcquisitionTime")) for values in sidecars]
    timings = [timing for timing in own if timing is not None]
    if len(timings) < len(own):
        if sum(counts) == 1:
            return (), ()
        last = _frame_duration(sidecars[-1])
        timings = list(runs_from_clocks(clocks, counts, last, where))
    elif len(timings) > 1 and None not in clocks:
        timings = _one_clock(timings, [clock for clock in clocks if clock is not None])
    notes = tuple(dict.fromkeys(note for timing in timings for note in timing.notes))
    return in_order(timings, where), notes


def _one_clock(timings: list[Timing], clocks: list[float]) -> list[Timing]:
    """Runs that each count from their own start, put on the first one's clock."""
    if all(later.starts_s[0] >= timings[0].starts_s[-1] for later in timings[1:]):
        return timings
    return [placed(t, (c - clocks[0]) % 86_400) for t, c in zip(timings, clocks, strict=True)]


def _frame_duration(values: Mapping[str, Any]) -> float | None:
    """Frame duration that a converter left in its copy of the DICOM header, in ms there."""
    constants = values.get("global")
    constants = constants.get("const") if isinstance(constants, dict) else None
    duration = constants.get("ActualFrameDuration") if isinstance(constants, dict) else None
    return float(duration) / 1000 if isinstance(duration, int | float) and duration > 0 else None
