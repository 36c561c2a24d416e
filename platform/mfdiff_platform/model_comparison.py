"""Two models side by side: a table and pictures of the same held-out slices, as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.dataset import SliceSet
from mfdiff_core.errors import ConfigError
from mfdiff_core.evaluation.figures import comparison_figure
from mfdiff_core.evaluation.metrics import METRICS, Metrics, definition, evaluate_slices
from mfdiff_core.evaluation.statistics import Estimate, estimate_metrics, paired_difference
from mfdiff_core.files import write_bytes
from mfdiff_platform import gate_evidence as measure
from mfdiff_platform.page import NOTICE, figure, page

Images = npt.NDArray[np.float32]

PICTURES = 3
_KBQ = 1e-3
_SEED = 0
_COLUMNS = (
    "Activity: size of the error in a subject's total, mean over subjects. Lost: PET-only lesions "
    "that keep less than half their contrast. Invented: MR-only structures that change the PET."
)
_DIGITS = {"psnr": 2, "ssim": 4, "nmse": 4}


@dataclass(frozen=True)
class ComparedRow:
    """One method: metrics with their 95 % intervals, and figures that gates look at.

    Attributes:
        name: model or input.
        metrics: mean over subjects and both ends of the interval, by metric.
        activity_bias: mean size of the subjects' errors in total activity.
        lost_share, invented_share: of lesions; None where none are marked.
    """

    name: str
    metrics: dict[str, tuple[float, float, float]]
    activity_bias: float
    lost_share: float | None
    invented_share: float | None


@dataclass(frozen=True)
class Comparison:
    """LPET and two models on the same slices.

    Attributes:
        rows: LPET, first, second.
        difference: first minus second in each metric, mean over subjects and interval.
        per_subject: PSNR of each row, by subject.
        subjects, slices: what stands behind it.
        notes: what a reader must know.
        page: where pictures and table are.
    """

    rows: tuple[ComparedRow, ...]
    difference: dict[str, tuple[float, float, float]]
    per_subject: dict[str, dict[str, float]]
    subjects: int
    slices: int
    notes: tuple[str, ...]
    page: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self) | {"page": str(self.page)}


def compare_models(models: Mapping[str, Bundle], test: SliceSet, out: Path) -> Comparison:
    """Restore the same slices with two models and write the page ``out``.

    Args:
        models: two bundles by name.
        test: slices that neither has learnt from.
        out: HTML file to write.

    Raises:
        ConfigError: not two different models, or one of another image size.
    """
    if len(models) != 2:
        raise ConfigError("a comparison takes two different models")
    size = int(test.x_s.shape[-1])
    for name, bundle in models.items():
        if bundle.config.image_size != size:
            made_for = bundle.config.image_size
            raise ConfigError(f"{name} takes {made_for} pixels, these slices have {size}")
    images = {"LPET": test.x_p[:, 0].numpy()}
    images |= {name: measure.restore_test(bundle, test) for name, bundle in models.items()}
    x_s, subjects = test.x_s[:, 0].numpy(), [info.subject for info in test.infos]
    scores = {name: evaluate_slices(stack, x_s) for name, stack in images.items()}
    estimates = {name: estimate_metrics(s, subjects, seed=_SEED) for name, s in scores.items()}
    first, second = models
    comparison = Comparison(
        rows=tuple(_row(name, images[name], estimates[name], test) for name in images),
        difference=_difference(scores[first], scores[second], subjects),
        per_subject={
            name: {metric: e.per_subject[name] for metric, e in psnr_of(estimates).items()}
            for name in dict.fromkeys(subjects)
        },
        subjects=len(set(subjects)),
        slices=len(test),
        notes=measure.notes_on(test, looks=0),
        page=out,
    )
    write_bytes(out, _page(comparison, images, test).encode())
    return comparison


def psnr_of(estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """The PSNR of each method."""
    return {name: found["psnr"] for name, found in estimates.items()}


def table_cells(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows as text, the difference of the two models last."""
    head = ("held-out test subjects", "PSNR dB", "SSIM", "NMSE", "activity", "lost", "invented")
    rows = [
        (
            row.name,
            *(f"{row.metrics[m][0]:.{_DIGITS[m]}f}" for m in METRICS),
            f"{100 * row.activity_bias:.1f} %",
            _share(row.lost_share),
            _share(row.invented_share),
        )
        for row in comparison.rows
    ]
    cells = (f"{comparison.difference[m][0]:+.{_DIGITS[m]}f}" for m in METRICS)
    return head, [*rows, ("first minus second", *cells, "", "", "")]


def _row(
    name: str, images: Images, estimates: Mapping[str, Estimate], test: SliceSet
) -> ComparedRow:
    lesions = measure.lesion_summary(images, test)
    biases = [abs(bias) for bias in measure.activity_biases(images, test).values()]
    return ComparedRow(
        name=name,
        metrics={metric: (e.mean, e.low, e.high) for metric, e in estimates.items()},
        activity_bias=sum(biases) / len(biases),
        lost_share=_known(lesions.lost_share) if lesions else None,
        invented_share=_known(lesions.invented_share) if lesions else None,
    )


def _difference(
    first: Metrics, second: Metrics, subjects: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    found = {}
    for metric in METRICS:
        ours, theirs = getattr(first, metric), getattr(second, metric)
        gain = paired_difference(ours, theirs, subjects, seed=_SEED).estimate
        found[metric] = (gain.mean, gain.low, gain.high)
    return found


def _page(comparison: Comparison, images: Mapping[str, Images], test: SliceSet) -> str:
    _, first, second = (row.name for row in comparison.rows)
    head, rows = table_cells(comparison)
    mean, low, high = comparison.difference["psnr"]
    parts = [
        f"<h1>{escape(first)} and {escape(second)}</h1>",
        f"<p class=quiet>{comparison.slices} slices of {comparison.subjects} held-out test "
        f"subject(s) · {NOTICE}</p>",
        _table(head, rows),
        f"<p>PSNR of {escape(first)} minus {escape(second)}: {mean:+.2f} dB "
        f"({low:+.2f} to {high:+.2f}).</p>",
        *(f"<p class=quiet>{escape(note)}</p>" for note in comparison.notes),
        "<h2>Subjects, PSNR in dB</h2>",
        _subjects(comparison),
        "<h2>The same slices</h2>",
        *_pictures(images, test),
        f"<p class=quiet>{escape(_COLUMNS)} {escape(definition())}</p>",
    ]
    return page(f"{first} and {second}", parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _subjects(comparison: Comparison) -> str:
    names = [row.name for row in comparison.rows]
    rows = [
        [subject, *(f"{values[name]:.2f}" for name in names)]
        for subject, values in comparison.per_subject.items()
    ]
    return _table(["subject", *names], rows)


def _pictures(images: Mapping[str, Images], test: SliceSet) -> list[str]:
    """Slices spread evenly over the set, each with all methods and their error maps."""
    number = min(PICTURES, len(test))
    found = []
    for row in (int((part + 0.5) * len(test) / number) for part in range(number)):
        info = test.infos[row]
        scale = np.float32(info.scale * _KBQ)
        png = comparison_figure(
            {name: stack[row] * scale for name, stack in images.items()},
            test.x_s[row, 0].numpy() * scale,
            x_m=test.x_m[row, 0].numpy(),
            voxel_mm=info.voxel_mm,
        )
        found.append(figure(png, f"{info.subject}, {info.setting}, slice {info.slice_index}"))
    return found


def _known(share: float) -> float | None:
    return None if share != share else share


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
