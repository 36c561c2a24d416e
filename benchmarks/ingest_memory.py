"""Memory and time of `ingest bids` on a 4-D PET that does not fit: 21 GB of float32 in one file.

    python -m benchmarks.ingest_memory [--frames 112] [--no-register] \\
        [--json benchmarks/results/ingest_memory.json]

The film has 356 frames of 344 x 344 x 127 voxels and is uncompressed, as in ds003397, so it can be
sparse: on the disk stand only the planes through the head of the frames that are read. The command
runs in a process of its own and notes its peak as it ends. The parent cannot ask for it: what the
system counts for a child includes the parent's own memory at the moment of its birth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from benchmarks.record import write_result
from benchmarks.registration import MR_MM, MR_SHAPE, PET_MM, PET_SHAPE
from mfdiff_core.data.volumes import Volume

NUM_FRAMES, FRAME_S, MIDDLE_S = 356, 16, 2704
LIMIT_MB = 2048
_COMMAND = """
import sys
from pathlib import Path
from mfdiff_platform.cli import run
status = run(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=112, help="in the SPET's window")
    parser.add_argument("--no-register", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_set(root / "set", arguments.frames)
        more = ["--no-register"] if arguments.no_register else []
        result = ingest(root, arguments.frames, more)
    for name, value in result.items():
        print(f"{name:16} {value:10.1f}")
    if arguments.json:
        write_result(arguments.json, result)


def write_set(root: Path, frames: int) -> Path:
    """A BIDS set of one subject whose film has ``frames`` that are not empty."""
    home, name = root / "sub-01", "sub-01_task-rest"
    for folder in ("pet", "anat"):
        (home / folder).mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "film that does not fit"}))
    sidecar = {
        "Units": "Bq/mL",
        "RadionuclideTotalDose": 233e6,
        "RadionuclideHalfLife": 6586.2,
        "FrameTimesStart": [FRAME_S * frame for frame in range(NUM_FRAMES)],
        "FrameDuration": FRAME_S,
    }
    (home / "pet" / f"{name}_pet.json").write_text(json.dumps(sidecar))
    _write_film(home / "pet" / f"{name}_pet.nii", head(PET_SHAPE, PET_MM, 8000.0), frames)
    mr = head(MR_SHAPE, MR_MM, 500.0)
    nib.save(nib.Nifti1Image(mr.data, mr.affine), home / "anat" / "sub-01_T1w.nii")
    return root


def head(shape: tuple[int, ...], voxel_mm: tuple[float, ...], level: float) -> Volume:
    """An egg of the size of a head, brighter towards the nose."""
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    x, y, z = np.ogrid[tuple(map(slice, shape))]
    places = (voxel_mm[axis] * (at - (shape[axis] - 1) / 2) for axis, at in enumerate((x, y, z)))
    right, front, up = (place.astype(np.float32) for place in places)
    inside = (right / 70) ** 2 + (front / 90) ** 2 + (up / 75) ** 2 < 1
    return Volume((level * inside * (1 + front / 300)).astype(np.float32), affine)


def ingest(root: Path, frames: int, more: list[str]) -> dict[str, float]:
    """Take ``root/set`` in; size of the film, memory and time of the command."""
    start, end = window_s(frames)
    arguments = ["ingest", "bids", root / "set", "--domain", "big", "--workspace", root / "ws"]
    arguments += ["--window", f"{start}:{end}", "--lpet", "16s=16", "--lpet", "32s=32", *more]
    started = time.perf_counter()
    memory = root / "memory.txt"
    command = [sys.executable, "-c", _COMMAND, memory, *arguments]
    process = subprocess.Popen([str(word) for word in command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ingest ended with {process.returncode}")
    film = next((root / "set").glob("sub-01/pet/*.nii")).stat()
    return {
        "film_gb": film.st_size / 1e9,
        "frames_read": float(frames),
        "peak_rss_mb": _peak_kb(memory.read_text()) / 1024,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def window_s(frames: int) -> tuple[int, int]:
    """The window of ``frames`` about the middle of the paper's."""
    first = MIDDLE_S // FRAME_S - frames // 2
    return FRAME_S * first, FRAME_S * (first + frames)


def _peak_kb(status: str) -> int:
    """Highest resident memory in the text of ``/proc/<pid>/status``."""
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def _write_film(path: Path, image: Volume, frames: int) -> None:
    """All frames by the header; on the disk only planes with activity of those in the window."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((*PET_SHAPE, NUM_FRAMES))
    header.set_sform(image.affine, code=1)
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    planes = np.flatnonzero(image.data.any(axis=(0, 1)))
    content = image.data[:, :, planes[0] : planes[-1] + 1].tobytes(order="F")
    plane_bytes = 4 * PET_SHAPE[0] * PET_SHAPE[1]
    start, end = window_s(frames)
    with path.open("wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        for frame in range(start // FRAME_S, end // FRAME_S):
            stream.seek(352 + plane_bytes * (frame * PET_SHAPE[2] + int(planes[0])))
            stream.write(content)
        stream.truncate(352 + plane_bytes * PET_SHAPE[2] * NUM_FRAMES)


if __name__ == "__main__":
    main()
