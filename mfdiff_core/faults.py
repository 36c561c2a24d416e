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


_CASES = {
    # one image file
    "missing-file": (
        "a file that is not there",
        "no such file; check the name and that the disk is mounted",
    ),
    "dangling-link": (
        "a broken link",
        "link to a file that does not exist; restore the file or remove the link",
    ),
    "not-fetched": (
        "annexed or LFS content that was not fetched",
        "content not fetched{size}; run `{command}` in {folder}",
    ),
    "unreadable": ("no right to read", "cannot be read ({reason}); check its rights"),
    "damaged": ("a damaged or truncated file", "damaged or cut short ({reason}); copy it again"),
    "not-nifti": ("another kind of file", "{found}"),
    "dimensions": (
        "4-D, 2-D or RGB-like shape where one volume is meant",
        "{ndim}-D ({shape}) where one 3-D volume is meant; extract one frame or average the "
        "frames first",
    ),
    "colours": (
        "RGB or complex voxels",
        "holds colours or complex values; save it as one scalar image",
    ),
    "too-large": (
        "a header that claims absurd sizes",
        "claims {shape} voxels; the header is damaged, copy it again",
    ),
    "no-orientation": (
        "qform and sform both unset",
        "qform and sform codes are both 0, so left and right are unknown; convert it again from "
        "DICOM, or set the sform if you know it",
    ),
    "left-right": (
        "left and right flipped between qform and sform",
        "qform and sform disagree on left and right; convert it again from DICOM, or set both to "
        "the one you know to be true",
    ),
    "not-mm": ("metres or micrometres", "lengths are not in millimetres; convert the header to mm"),
    "singular": (
        "a singular or non-finite affine",
        "singular affine; convert the image again from its source",
    ),
    "sheared": (
        "a sheared affine",
        "sheared affine; resample the image to right-angled voxels first",
    ),
    "voxel-size": (
        "implausible voxel sizes",
        "voxels of {sizes} mm are not plausible; check the header's units",
    ),
    "not-finite": (
        "NaN or infinite voxels",
        "{bad} of {total} voxels are NaN or infinite; export it again, or set them to 0 if they "
        "lie outside the field of view",
    ),
    "empty": (
        "a constant or empty image",
        "every voxel has the same value; the image is empty, export it again",
    ),
    "negative": (
        "a PET with much negative activity",
        "{share} of the activity is negative, so this is not a PET in activity units (overflow, "
        "difference or logarithm?); export it again",
    ),
    "saturated": (
        "a PET cut off at 16 bits",
        "{bad} voxels sit at the 16-bit limit, so high activity was cut off; export it again with "
        "a larger scale factor or as float32",
    ),
    # images that belong together
    "grids-differ": (
        "shape or affine mismatch within one scan",
        "lies on another grid than {other} ({detail}); reconstruct both alike",
    ),
    "mr-beside-head": (
        "an MR that lies elsewhere",
        "the MR covers {share} of the head in the PET; register it to the PET, and check that "
        "both files are of the same session and keep their affines",
    ),
    "not-registered": (
        "registration that went astray",
        "registration moved the MR by {moved_mm} mm ({limit_mm} mm are plausible); check that PET "
        "and MR are of the same person and session, or register them yourself and give "
        "--no-register",
    ),
    "no-head": (
        "slices that miss the head",
        "none of the chosen planes cuts the head; choose others with --planes",
    ),
    "unlike-training": (
        "a scan unlike the model's training data, with --strict",
        "unlike the model's training data: {differences}; adapt a model to such scans, or leave "
        "out --strict",
    ),
    # BIDS
    "no-bids": (
        "an empty or wrong BIDS folder",
        "no sub-* folder, so this is no BIDS dataset; give the folder that holds sub-01",
    ),
    "no-subject": (
        "a participant label that does not exist",
        "no such participant; the dataset has {labels}",
    ),
    "no-pet": (
        "a subject without PET",
        "no *_pet.nii.gz; leave the subject out with --participant-label",
    ),
    "no-mr": ("a subject without MR", "no T1-weighted MR; the model cannot work without one"),
    "several-pets": (
        "several PET series",
        "several PET series ({names}); choose one with --pet-filter, for example "
        "--pet-filter {example}",
    ),
    "sidecar": (
        "an unreadable sidecar",
        "cannot be read as JSON ({reason}); correct it or fetch it again",
    ),
    "no-times": (
        "no frame times",
        "no frame times: the sidecar has neither FrameTimesStart with FrameDuration nor an "
        "AcquisitionTime per run; add FrameTimesStart and FrameDuration in seconds",
    ),
    "times-count": (
        "frame times of another length",
        "{times} frame times for {frames} frames; correct FrameTimesStart and FrameDuration",
    ),
    "times-order": (
        "overlapping or unordered frames",
        "frame {frame} starts at {start} s, before frame {before} ends at {end} s; correct "
        "FrameTimesStart",
    ),
    "milliseconds": (
        "milliseconds where seconds are meant",
        "a frame of {longest} s is too long; frame times are in seconds, these look like "
        "milliseconds",
    ),
    "window": (
        "a time window that the frames do not cover",
        "frames cover {covered} s of the window {start} to {end} s; at least {least} is needed, "
        "choose another window",
    ),
    "no-window": (
        "a 4-D PET to restore, without a window",
        "{frames} frames where one image is restored; choose the frames with --window START:END "
        "in seconds",
    ),
    "no-dose": (
        "a missing dose",
        "no injected dose (RadionuclideTotalDose in Bq); add it, or give --without-dose to record "
        "it as unknown",
    ),
    "dose": (
        "MBq where Bq is meant, or an impossible dose",
        "a dose of {mbq} MBq is not plausible; {key} is in {unit}, correct it",
    ),
    "no-half-life": (
        "no half-life where one is needed",
        "not decay corrected, and no RadionuclideHalfLife to do it with; add it in seconds",
    ),
    "no-group": (
        "a participant without protocol",
        "no group B, I or BI in participants.tsv; add it, or leave out --preset ood3",
    ),
    # tables
    "table": ("a table that is not understood", "{reason}"),
    # DICOM
    "no-dicom": (
        "a folder without PET or MR slices",
        "no {modality} series among {files} files; give the folder that holds the DICOM slices",
    ),
    "several-series": (
        "several DICOM series of one kind",
        "{count} {modality} series (numbers {numbers}); keep one of them in the folder",
    ),
    "dicom-slices": (
        "missing, doubled or uneven slices",
        "{reason}; export the whole series again",
    ),
    "dicom-frames": (
        "a dynamic DICOM series to restore",
        "{frames} images at each place where one is restored; export one frame, or the average",
    ),
    "dicom-units": (
        "a PET that is not in activity units",
        "PET units are {units}; export it in BQML",
    ),
    "dicom-kind": ("a DICOM object of another kind", "{reason}"),
    "no-pair": (
        "DICOM series that make no pair",
        "{reason}; a pair is one dynamic PET, or a short and a long one of the same study",
    ),
}

FAULTS = {
    name: Fault(f"MF-IN-{number:02d}", *case)
    for number, (name, case) in enumerate(_CASES.items(), start=1)
}
"""Fault by name, in the order of the table; a code is never given to another case."""


def fault(name: str, where: object, **figures: object) -> InputFault:
    """The exception for fault ``name`` at ``where``, with its figures filled in."""
    code, _, sentence = FAULTS[name]
    return InputFault(code, str(where), sentence.format(**figures))


def table() -> str:
    """All faults as a Markdown table."""
    head = ["| code | bad input | sentence |", "|---|---|---|"]
    rows = [f"| {code} | {case} | {sentence} |" for code, case, sentence in FAULTS.values()]
    return "\n".join([*head, *rows])


if __name__ == "__main__":
    print(table())
