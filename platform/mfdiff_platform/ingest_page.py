"""The page that a physicist looks at before a subject is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mfdiff_core.data.slices import SliceRecord
from mfdiff_core.data.volumes import Volume
from mfdiff_core.evaluation.figures import Triplet, contact_sheet
from mfdiff_core.evaluation.scan_figures import frames_figure, overlay_figure
from mfdiff_core.scans.pairing import SPET, PairedScan
from mfdiff_core.scans.registration import Registration
from mfdiff_core.scans.timing import Frame
from mfdiff_platform.page import facts, figure, heading, warnings, write_page

Session = tuple[PairedScan, PairedScan, Registration | None]


def write_subject_page(
    path: Path,
    subject: str,
    domain: str,
    sessions: Sequence[Session],
    records: Sequence[SliceRecord],
) -> None:
    """Overlay, frame coverage, dose source and slices of one subject.

    Args:
        path: the page.
        subject: pseudonym.
        domain: name of the domain.
        sessions: each scan before and after registration, and the motion.
        records: its slices.
    """
    sections = []
    for number, (before, scan, motion) in enumerate(sessions, start=1):
        title = "Registration and frames" + (f", session {number}" if len(sessions) > 1 else "")
        sections += [heading(title), warnings(scan.notes), facts(_rows(scan, motion))]
        sections.append(figure(_overlay(before, scan, motion), _overlay_caption(motion)))
        if scan.frames:
            text = "Frames, and those that make each image. Gaps are frames that are missing."
            sections.append(figure(_frames(scan), text))
    sections += [heading("Slices"), figure(_sheet(records), "Middle plane of each setting.")]
    write_page(path, f"Subject {subject}", f"Domain {domain}, {len(records)} slices", sections)


def _rows(scan: PairedScan, motion: Registration | None) -> dict[str, str]:
    dose = f"{scan.dose_mbq:.1f} MBq from {scan.dose_source}" if scan.dose_source else "unknown"
    rows = {"injected dose": dose, "protocol": scan.protocol or "unknown"}
    rows["settings"] = ", ".join(scan.lpets)
    for name, frames in scan.used.items():
        seconds = sum(frame.duration_s for frame in frames)
        span = f"{frames[0].start_s:g} to {frames[-1].end_s:g} s"
        rows[name] = f"{len(frames)} frames, {seconds:g} s, within {span}"
    if motion is None:
        return rows | {"registration": "none, as asked"}
    moved = f"head moved by {motion.moved_mm:.1f} mm on average; mutual information "
    figures = f"{motion.information_before:.3f} before, {motion.information:.3f} after"
    return rows | {"registration": moved + figures}


def _overlay(before: PairedScan, scan: PairedScan, motion: Registration | None) -> bytes:
    if motion is None:
        return overlay_figure(scan.spet, {"T1": scan.mr})
    # What moved may be the PET; seen from the PET it is the MR either way.
    after: Volume = before.mr.moved(motion.matrix)
    return overlay_figure(before.spet, {"by affines": before.mr, "registered": after})


def _overlay_caption(motion: Registration | None) -> str:
    rows = "" if motion is None else " Above by the files' affines, below registered."
    return (
        "T1 with two level lines of the smoothed SPET; they should follow the head and the"
        f" cortex.{rows}"
    )


def _frames(scan: PairedScan) -> bytes:
    used = {name: _spans(scan.used[name]) for name in (SPET, *scan.lpets)}
    return frames_figure(_spans(scan.frames), used)


def _spans(frames: Sequence[Frame]) -> list[tuple[float, float]]:
    return [(frame.start_s, frame.end_s) for frame in frames]


def _sheet(records: Sequence[SliceRecord]) -> bytes:
    rows = {}
    for setting in dict.fromkeys(record.info.setting for record in records):
        chosen = [record for record in records if record.info.setting == setting]
        record = chosen[len(chosen) // 2]
        scale = np.float32(record.info.scale)
        rows[setting] = Triplet(record.x_m, record.x_p * scale, record.x_s * scale)
    return contact_sheet(rows, unit="activity", voxel_mm=records[0].info.voxel_mm)
