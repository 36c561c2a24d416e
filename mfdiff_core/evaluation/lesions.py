"""Are lesions of the PET still there, and does the MR put some in that are not? (Fig. 3)

A lesion seen only in the PET is what a network that trusts the MR loses; a lesion seen only in
the MR is what such a network brings into the PET. Both are judged by local contrast: how far the
mean of the lesion is from that of a ring around it, as a share of the latter, restored against
SPET. Every lesion counts in each slice that shows it, by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

from mfdiff_core.data.slices import MR_LESION, PET_LESION
from mfdiff_core.evaluation.regions import HEAD_SHARE, connected_parts

Images = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Kind = Literal["PET-only", "PET and MR", "MR-only"]

MIN_PIXELS = 4
"""Smaller spots are below the resolution of any scanner."""
MIN_CONTRAST = 0.1
"""A lesion that the SPET itself hardly shows cannot be lost."""
LOST_BELOW = 0.5
"""Share of the SPET's contrast below which a lesion counts as lost."""
INVENTED_ABOVE = 0.2
"""Contrast beyond the SPET's above which an MR-only structure counts as brought into the PET."""
NULL_SPREADS = 2.0
"""The same, in standard deviations of what happens where neither image has a lesion."""
_DARKEST = 0.25
"""Share of the SPET's surroundings that a contrast is at least taken against: where a restoration
wipes them out, a structure on black is a structure, but of no infinite contrast."""
_GAP, _RING = 1, 4  # pixels around a lesion: left out, then taken as its background


@dataclass(frozen=True, kw_only=True)
class LesionScore:
    """One lesion in one slice.

    Attributes:
        kind: which images show it.
        subject: whose it is.
        row: slice in the set.
        num_pixels: its size.
        contrast, true_contrast: against its surroundings, restored and in the SPET.
    """

    kind: Kind
    subject: str
    row: int
    num_pixels: int
    contrast: float
    true_contrast: float

    @property
    def recovery(self) -> float:
        """Share of the SPET's contrast that is left; NaN where the SPET shows hardly any."""
        if abs(self.true_contrast) < MIN_CONTRAST:
            return math.nan
        return self.contrast / self.true_contrast

    @property
    def excess(self) -> float:
        """Contrast beyond that of the SPET."""
        return self.contrast - self.true_contrast


@dataclass(frozen=True, kw_only=True)
class LesionSummary:
    """What a set of lesions says; shares are NaN where there was nothing to judge.

    Attributes:
        num_pet_only: PET-only lesions that the SPET shows.
        lost_share: false negatives: share of them whose recovery is below `LOST_BELOW`.
        mean_recovery: mean contrast recovery of all lesions that the SPET shows.
        num_both: lesions of both images that the SPET shows.
        num_mr_only: MR-only lesions.
        invented_share: false positives: share of them with an excess beyond ``threshold``.
        threshold: `INVENTED_ABOVE`, or more where lesion-free tissue varies more.
    """

    num_pet_only: int
    lost_share: float
    mean_recovery: float
    num_mr_only: int
    invented_share: float
    threshold: float
    num_both: int = 0

    @property
    def num_lesions(self) -> int:
        """All that were judged, each in every slice that shows it."""
        return self.num_pet_only + self.num_both + self.num_mr_only


def score_lesions(
    restored: Images, x_s: Images, lesions: Images, subjects: Sequence[str]
) -> list[LesionScore]:
    """Local contrast of each lesion in each slice.

    Args:
        restored, x_s: images [N, H, W] in the same units.
        lesions: bit 1 PET lesion, bit 2 MR lesion, [N, H, W].
        subjects: subject of each slice [N].

    Raises:
        ValueError: shapes differ.
    """
    shapes = {restored.shape, x_s.shape, lesions.shape}
    if len(shapes) > 1 or len(subjects) != len(restored):
        raise ValueError(f"images, lesions and subjects must agree, got {sorted(shapes)}")
    scores = []
    for kind, mask in _kinds(lesions).items():
        for row, lesion in connected_parts(mask):
            score = _score(kind, subjects[row], row, lesion, restored, x_s, lesions[row] > 0)
            scores += [score] if score is not None else []
    return scores


def null_excesses(restored: Images, x_s: Images, lesions: Images) -> list[float]:
    """Excess at the mirror image of every MR-only lesion: what chance and blur alone make of it.

    A head is nearly symmetric, so the mirrored place is mostly of much the same tissue. Places that
    touch a lesion, or where the SPET is below a tenth of the slice's maximum, are left out: those
    are outside the head or in fluid.
    """
    excesses = []
    for row, lesion in connected_parts(_kinds(lesions)["MR-only"]):
        mirrored, occupied = lesion[:, ::-1], lesions[row] > 0
        cold = x_s[row][mirrored].mean() < HEAD_SHARE * x_s[row].max()
        if cold or (mirrored & occupied).any():
            continue
        score = _score("MR-only", "", row, mirrored, restored, x_s, occupied)
        excesses += [score.excess] if score is not None else []
    return excesses


def summarise_lesions(
    scores: Sequence[LesionScore], null: Sequence[float] = ()
) -> LesionSummary | None:
    """Shares of lost and invented lesions; None when there are no lesions to judge.

    Args:
        scores: of `score_lesions`.
        null: of `null_excesses`.
    """
    seen = [score for score in scores if not math.isnan(score.recovery)]
    present = [score for score in seen if score.kind != "MR-only"]
    pet_only = [score.recovery for score in present if score.kind == "PET-only"]
    mr_only = [score.excess for score in scores if score.kind == "MR-only"]
    if not pet_only and not mr_only:
        return None
    threshold = max(INVENTED_ABOVE, NULL_SPREADS * _root_mean_square(null))
    return LesionSummary(
        num_pet_only=len(pet_only),
        lost_share=_mean([value < LOST_BELOW for value in pet_only]),
        mean_recovery=_mean([score.recovery for score in present]),
        num_mr_only=len(mr_only),
        invented_share=_mean([abs(value) > threshold for value in mr_only]),
        threshold=threshold,
        num_both=len(present) - len(pet_only),
    )


def _kinds(lesions: Images) -> dict[Kind, Mask]:
    in_pet, in_mr = (lesions & PET_LESION) > 0, (lesions & MR_LESION) > 0
    return {"PET-only": in_pet & ~in_mr, "PET and MR": in_pet & in_mr, "MR-only": in_mr & ~in_pet}


def _score(
    kind: Kind,
    subject: str,
    row: int,
    lesion: Mask,
    restored: Images,
    x_s: Images,
    occupied: Mask,
) -> LesionScore | None:
    """Score of a lesion of slice ``row``; None if too small, or without surroundings in the SPET.

    The SPET alone decides, so that every method is judged by the same lesions.
    """
    if lesion.sum() < MIN_PIXELS:
        return None
    near = binary_dilation(lesion, iterations=_GAP)
    ring = binary_dilation(near, iterations=_RING) & ~near & ~occupied & (x_s[row] > 0)
    if not ring.any():
        return None
    least = _DARKEST * float(x_s[row][ring].mean(dtype=np.float64))
    return LesionScore(
        kind=kind,
        subject=subject,
        row=row,
        num_pixels=int(lesion.sum()),
        contrast=_contrast(restored[row], lesion, ring, least),
        true_contrast=_contrast(x_s[row], lesion, ring, least),
    )


def _contrast(image: Images, lesion: Mask, ring: Mask, least: float) -> float:
    """Difference of lesion and ring over the ring, or over ``least`` if that is more."""
    inside, around = (float(image[mask].mean(dtype=np.float64)) for mask in (lesion, ring))
    return (inside - around) / max(around, least)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values)) if values else 0.0
