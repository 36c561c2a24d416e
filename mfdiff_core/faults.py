"""Every way in which a scan can be unusable: code, case and sentence, in one place.

``python -m mfdiff_core.faults`` prints the table that docs/bad-input.md holds.
"""

from __future__ import annotations

from typing import NamedTuple

from mfdiff_core.errors import InputFault


class Fault(NamedTuple):
    """One case; ``sentence`` has the figures as ``{names}``."""

    code: str
    case: str
    sentence: str


_CASES: dict[str, tuple[str, str, str]] = {
    "missing-file": (
        "MF-IN-01",
        "a file that is not there",
        "no such file; check the name and that the disk is mounted",
    ),
    "dangling-link": (
        "MF-IN-02",
        "a broken link",
        "link to a file that does not exist; restore the file or remove the link",
    ),
    "not-fetched": (
        "MF-IN-03",
        "annexed or LFS content that was not fetched",
        "content not fetched{size}; run {command}",
    ),
    "unreadable": ("MF-IN-04", "no right to read", "cannot be read ({reason}); check its rights"),
    "damaged": (
        "MF-IN-05",
        "a damaged or truncated file",
        "damaged or cut short ({reason}); copy it again",
    ),
    "not-nifti": ("MF-IN-06", "another kind of file", "cannot be read as NIfTI: it is {found}"),
    "dimensions": (
        "MF-IN-07",
        "4-D, 2-D or RGB-like shape where one volume is meant",
        "{ndim}-D ({shape}) where one 3-D volume is meant; extract one frame or average the "
        "frames first",
    ),
    "colours": (
        "MF-IN-08",
        "RGB or complex voxels",
        "holds colours or complex values; save it as one scalar image",
    ),
    "too-large": (
        "MF-IN-09",
        "a header that claims absurd sizes",
        "claims {shape} voxels; the header is damaged, copy it again",
    ),
    "no-orientation": (
        "MF-IN-10",
        "qform and sform both unset",
        "qform and sform codes are both 0, so left and right are unknown; convert it again from "
        "DICOM, or set the sform if you know it",
    ),
    "left-right": (
        "MF-IN-11",
        "left and right flipped between qform and sform",
        "qform and sform disagree on left and right; convert it again from DICOM, or set both to "
        "the one you know to be true",
    ),
    "not-mm": (
        "MF-IN-12",
        "metres or micrometres",
        "lengths are not in millimetres; convert the header to mm",
    ),
    "singular": (
        "MF-IN-13",
        "a singular or non-finite affine",
        "singular affine; convert the image again from its source",
    ),
    "sheared": (
        "MF-IN-14",
        "a sheared affine",
        "sheared affine; resample the image to right-angled voxels first",
    ),
    "voxel-size": (
        "MF-IN-15",
        "implausible voxel sizes",
        "voxels of {sizes} mm are not plausible; check the header's units",
    ),
    "not-finite": (
        "MF-IN-16",
        "NaN or infinite voxels",
        "{bad} of {total} voxels are NaN or infinite; export it again, or set them to 0 if they "
        "lie outside the field of view",
    ),
    "empty": (
        "MF-IN-17",
        "a constant or empty image",
        "every voxel has the same value; the image is empty, export it again",
    ),
    "negative": (
        "MF-IN-18",
        "a PET with much negative activity",
        "{share} of the activity is negative, so this is not a PET in activity units (overflow, "
        "difference or logarithm?); export it again",
    ),
    "saturated": (
        "MF-IN-19",
        "a PET cut off at 16 bits",
        "{bad} voxels sit at the 16-bit limit, so high activity was cut off; export it again with "
        "a larger scale factor or as float32",
    ),
    "grids-differ": (
        "MF-IN-20",
        "shape or affine mismatch within one scan",
        "lies on another grid than {other} ({detail}); reconstruct both alike",
    ),
    "mr-beside-head": (
        "MF-IN-21",
        "an MR that lies elsewhere",
        "the MR covers {share} of the head in the PET; register it to the PET, and check that "
        "both files are of the same session and keep their affines",
    ),
    "not-registered": (
        "MF-IN-22",
        "registration that went astray",
        "registration moved the MR by {moved_mm} mm ({limit_mm} mm are plausible); check that PET "
        "and MR are of the same person and session, or register them yourself and give "
        "--no-register",
    ),
    "no-head": (
        "MF-IN-23",
        "slices that miss the head",
        "none of the chosen planes cuts the head; choose others with --planes",
    ),
    "unlike-training": (
        "MF-IN-24",
        "a scan unlike the model's training data, with --strict",
        "unlike the model's training data: {differences}; adapt a model to such scans, or leave "
        "out --strict",
    ),
    "no-bids": (
        "MF-IN-25",
        "an empty or wrong BIDS folder",
        "no sub-* folder, so this is no BIDS dataset; give the folder that holds sub-01",
    ),
    "no-subject": (
        "MF-IN-26",
        "a participant label that does not exist",
        "no such participant; the dataset has {labels}",
    ),
    "no-pet": (
        "MF-IN-27",
        "a subject without PET",
        "no *_pet.nii.gz; leave the subject out with --participant-label",
    ),
    "no-mr": (
        "MF-IN-28",
        "a subject without MR",
        "no T1-weighted MR, without which the model cannot work; add it, or leave the subject out",
    ),
    "several-pets": (
        "MF-IN-29",
        "several PET series",
        "several PET series ({names}); choose one with --pet-filter, for example "
        "--pet-filter {example}",
    ),
    "sidecar": (
        "MF-IN-30",
        "an unreadable sidecar",
        "cannot be read as JSON ({reason}); correct it or fetch it again",
    ),
    "no-times": (
        "MF-IN-31",
        "no frame times",
        "no frame times: the sidecar has neither FrameTimesStart with FrameDuration nor an "
        "AcquisitionTime per run; add FrameTimesStart and FrameDuration in seconds",
    ),
    "times-count": (
        "MF-IN-32",
        "frame times of another length",
        "{times} frame times for {frames} frames; correct FrameTimesStart and FrameDuration",
    ),
    "times-order": (
        "MF-IN-33",
        "overlapping or unordered frames",
        "frame {frame} starts at {start} s, before frame {before} ends at {end} s; correct "
        "FrameTimesStart",
    ),
    "milliseconds": (
        "MF-IN-34",
        "milliseconds where seconds are meant",
        "a frame of {longest} s is too long; frame times are in seconds, these look like "
        "milliseconds",
    ),
    "window": (
        "MF-IN-35",
        "a time window that the frames do not cover",
        "frames cover {covered} s of the window {start} to {end} s; at least {least} is needed, "
        "choose another window",
    ),
    "no-window": (
        "MF-IN-36",
        "a 4-D PET to restore, without a window",
        "{frames} frames where one image is restored; choose the frames with --window START:END "
        "in seconds",
    ),
    "no-dose": (
        "MF-IN-37",
        "a missing dose",
        "no injected dose (RadionuclideTotalDose in Bq); add it, or give --without-dose to record "
        "it as unknown",
    ),
    "dose": (
        "MF-IN-38",
        "MBq where Bq is meant, or an impossible dose",
        "a dose of {mbq} MBq is not plausible; {key} is in {unit}, correct it",
    ),
    "no-half-life": (
        "MF-IN-39",
        "no half-life where one is needed",
        "not decay corrected, and no RadionuclideHalfLife to do it with; add it in seconds",
    ),
    "no-group": (
        "MF-IN-40",
        "a participant without protocol",
        "no group B, I or BI in participants.tsv; add it, or leave out --preset ood3",
    ),
    "table": ("MF-IN-41", "a table that is not understood", "table of pairs: {reason}"),
    "no-dicom": (
        "MF-IN-42",
        "a folder without PET or MR slices",
        "no {modality} series among {files} files; give the folder that holds the DICOM slices",
    ),
    "several-series": (
        "MF-IN-43",
        "several DICOM series of one kind",
        "{count} {modality} series (numbers {numbers}); keep one of them in the folder",
    ),
    "dicom-slices": (
        "MF-IN-44",
        "missing, doubled or uneven slices",
        "{reason}; export the whole series again",
    ),
    "dicom-frames": (
        "MF-IN-45",
        "a dynamic DICOM series to restore",
        "{frames} images at each place where one is restored; export one frame, or the average",
    ),
    "dicom-units": (
        "MF-IN-46",
        "a PET that is not in activity units",
        "PET units are {units}; export it in BQML",
    ),
    "dicom-kind": (
        "MF-IN-47",
        "a DICOM object of another kind",
        "no classic grey-scale slices: {reason}",
    ),
    "no-pair": (
        "MF-IN-48",
        "DICOM series that make no pair",
        "{reason}; a pair is one dynamic PET, or a short and a long one of the same study",
    ),
    "frame-length": (
        "MF-IN-49",
        "frames without length",
        "frame {frame} lasts {duration} s; correct FrameDuration",
    ),
}

_HEAD = """# Bad input

<!-- made by `python -m mfdiff_core.faults > docs/bad-input.md`; a test keeps it equal -->

What `ingest` and `restore` refuse, each with a code, one sentence and exit code 4. Nothing is left
half-written. Where there are several subjects, one that is refused does not stop the others: it is
listed at the end, and the exit code is 5. Figures stand in for `{names}`.

Messages on the terminal name your files as you named them, DICOM series by number. Files that are
written name nobody: subjects have pseudonyms, keyed by `site-salt` in the workspace. Two things
keep what they are called: participants of a BIDS dataset that is restored keep their labels, which
BIDS wants to be pseudonyms, and a derived DICOM series keeps its patient, as it must.

Two things cannot be noticed: a left-right flip that is baked into the voxels, since a brain is
nearly symmetric, and a T1 of another person whose head has the same size and place.
"""

FAULTS = {name: Fault(*case) for name, case in _CASES.items()}
"""Fault by name, in the order of the table; a code is never given to another case."""


def fault(name: str, where: object, **figures: object) -> InputFault:
    """The exception for fault ``name`` at ``where``, with its figures filled in."""
    code, _, sentence = FAULTS[name]
    return InputFault(code, str(where), sentence.format(**figures))


def page() -> str:
    """docs/bad-input.md: all faults as a Markdown table."""
    rows = [f"| `{code}` | {case} | {sentence} |" for code, case, sentence in FAULTS.values()]
    return "\n".join([_HEAD, "| code | bad input | sentence |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
