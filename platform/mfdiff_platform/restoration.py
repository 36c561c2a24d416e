"""Restore scans with a bundle: register, restore, write the image and its page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.data.nifti import read_volume, write_volume
from mfdiff_core.data.volumes import Volume
from mfdiff_core.evaluation.regions import activity_ratio
from mfdiff_core.restore import RestoredVolume, restore_volume
from mfdiff_core.scans.registration import Registration, register
from mfdiff_platform.progress import task
from mfdiff_platform.restore_page import write_scan_page

SD_SUFFIX = "_sd"
ACTIVITY_CHANGE = 0.05
"""Share of the total activity; a larger change is warned of."""
NO_SPREAD = 0.01
"""Spread of samples over the image (root mean squares) below which it is no uncertainty."""


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """How to restore.

    Attributes:
        model: bundle folder.
        seed: seed of the restoration noise.
        samples: K samples, of which mean and standard deviation are written; None takes what the
            model does by itself.
        register: whether the MR is registered to the PET.
        strict: refuse scans unlike the model's training data.
    """

    model: Path
    seed: int = 0
    samples: int | None = None
    register: bool = True
    strict: bool = False


@dataclass(frozen=True)
class RestoredScan:
    """A restored scan with what it came from.

    Attributes:
        lpet: the low-dose PET.
        mr: the MR by its own affine; ``motion`` brings it to the PET, None if not registered.
        result: restored PET and spread.
        activity_ratio: total activity over that of the LPET.
        notes: what was changed while reading.
        samples: K.
    """

    lpet: Volume
    mr: Volume
    motion: Registration | None
    result: RestoredVolume
    activity_ratio: float
    notes: tuple[str, ...]
    samples: int = 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before looking at the image."""
        odd, change = self.result.differences, self.activity_ratio - 1
        lines = [f"unlike the model's training data: {'; '.join(odd)}"] if odd else []
        if abs(change) > ACTIVITY_CHANGE:
            lines.append(f"restoring changed the total activity by {100 * change:+.1f} %")
        spread = self.result.relative_spread
        if self.samples > 1 and spread < NO_SPREAD:
            lines.append(
                f"the {self.samples} samples differ by only {100 * spread:.2g} % of the image: this"
                " model answers the same each time, so its standard deviation says nothing about"
                " uncertainty"
            )
        return tuple(lines)

    def summary(self) -> dict[str, Any]:
        """Figures for a script."""
        return {
            "slices": self.result.restored_slices,
            "activity_ratio": self.activity_ratio,
            "moved_mm": self.motion.moved_mm if self.motion else None,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


class Restorer:
    """One model for any number of scans."""

    def __init__(self, options: RestoreOptions) -> None:
        self.options = options
        self.bundle: Bundle = load_bundle(options.model)

    @property
    def model_name(self) -> str:
        """Domain and start of the weights' hash, as pages and sidecars name the model."""
        provenance = self.bundle.provenance
        return f"{provenance.domain} {provenance.sha256[:12]}"

    @property
    def key(self) -> tuple[str, ...]:
        """What a result depends on besides the scan."""
        options = self.options
        parts = (options.seed, options.samples, options.register)
        return (self.bundle.provenance.sha256, *map(str, parts))

    def restore(
        self, lpet: Volume, mr: Volume, title: str, notes: tuple[str, ...] = ()
    ) -> RestoredScan:
        """Register and restore one scan, showing progress.

        Raises:
            InputFault: the scan cannot be used.
            BundleError: the weights are damaged.
        """
        options = self.options
        motion = register(lpet, mr) if options.register else None
        moved = mr.moved(motion.matrix) if motion else mr
        with task(title, max(lpet.data.shape)) as shown:
            result = restore_volume(
                self.bundle,
                lpet,
                moved,
                seed=options.seed,
                num_samples=options.samples,
                strict=options.strict,
                on_slice=shown.progress,
            )
        ratio = activity_ratio(result.pet.data, lpet.data)
        if motion and motion.note:
            notes = (*notes, motion.note)
        notes = (*notes, *lpet.notes, *mr.notes)
        return RestoredScan(lpet, mr, motion, result, ratio, notes, options.samples or 1)


def restore_files(pet: Path, mr: Path, out: Path, options: RestoreOptions) -> RestoredScan:
    """Restore a NIfTI pair and write ``out`` on the PET's grid, its page beside it.

    With several samples their standard deviation goes to ``..._sd.nii.gz``.

    Raises:
        DataError: an input file or the bundle is unusable; says which and what to do.
    """
    restorer = Restorer(options)
    lpet, t1 = read_volume(pet, "pet"), read_volume(mr, "mr")
    done = restorer.restore(lpet, t1, "Restoring")
    stem = _stem(out)
    if options.samples and options.samples > 1:
        spread = out.with_name(stem + SD_SUFFIX + out.name.removeprefix(stem))
        write_volume(spread, done.result.spread)
    page = out.with_name(f"{stem}.html")
    write_scan_page(page, "Restored PET", restorer.model_name, done)
    write_volume(out, done.result.pet)
    return done


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
