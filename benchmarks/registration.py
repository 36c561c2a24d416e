"""Known rigid moves of a phantom's MR against its PET, at full size: error and time.

    python -m benchmarks.registration [--moves 5] [--json benchmarks/results/registration.json]

The PET is 344 x 344 x 127 voxels of 1.39 x 1.39 x 2.03 mm, blurred and noisy; the MR has 256 x
256 x 176 of 1 mm. Rotations are up to 5 degrees about each axis, translations up to 10 mm along
each. Registration runs in one thread, so its CPU time is what a machine without other work takes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from benchmarks.record import write_result
from mfdiff_core.data.image_checks import Affine
from mfdiff_core.data.volumes import Volume
from mfdiff_core.physics.mni import AnatomyConfig, mni_anatomy
from mfdiff_core.physics.phantom import FINE_MM
from mfdiff_core.scans.registration import displacement_mm, register
from mfdiff_core.seeding import rng

PET_SHAPE, PET_MM = (344, 344, 127), (1.39084, 1.39084, 2.03125)
MR_SHAPE, MR_MM = (256, 256, 176), (1.0, 1.0, 1.0)
FDG = np.array([0, 8, 96, 32, 8, 16, 16, 8, 32, 8, 8, 8], dtype=np.float32)
T1 = np.array([0, 48, 106, 154, 200, 92, 92, 48, 60, 80, 48, 180], dtype=np.float32)
STEP_MM = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="3 mm voxels, as in the tests")
    parser.add_argument("--degrees", type=float, default=5.0)
    parser.add_argument("--mm", type=float, default=10.0)
    parser.add_argument("--noise", type=float, default=0.15, help="of the PET's maximum there")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments)
    for name, value in result.items():
        print(f"{name:24} {value:10.3f}")
    if arguments.json:
        write_result(arguments.json, result)


def measure(options: argparse.Namespace) -> dict[str, float]:
    labels = head_labels()
    seconds, cpu_seconds, errors, starts = [], [], [], []
    for move in range(options.moves):
        motion = rigid(rng(0, "registration", move), options.degrees, options.mm)
        pet, mr, points = scans(labels, motion, options.noise, 3.0 if options.small else 1.0)
        started, cpu_started = time.perf_counter(), time.process_time()
        found = register(pet, mr)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
        errors.append(displacement_mm(found.matrix, np.linalg.inv(motion), points))
        starts.append(displacement_mm(np.eye(4), np.linalg.inv(motion), points))
        gain = found.information / found.information_before - 1
        print(
            f"{starts[-1]:6.2f} mm -> {errors[-1]:5.2f} mm in {seconds[-1]:5.1f} s "
            f"({cpu_seconds[-1]:.1f} s of CPU), information {gain:+.1%}",
            flush=True,
        )
    return {
        "start_error_mean_mm": float(np.mean(starts)),
        "error_mean_mm": float(np.mean(errors)),
        "error_max_mm": float(np.max(errors)),
        "seconds_mean": float(np.mean(seconds)),
        "seconds_max": float(np.max(seconds)),
        "cpu_seconds_mean": float(np.mean(cpu_seconds)),
        "cpu_seconds_max": float(np.max(cpu_seconds)),
    }


def head_labels() -> Volume:
    """Tissue codes of an embedded subject on a grid of about 2 mm, RAS."""
    z_mm = np.arange(-86, 84, STEP_MM, dtype=np.float32)
    anatomy = mni_anatomy(AnatomyConfig(), "mni-01", z_mm)
    stride = round(STEP_MM / FINE_MM)
    codes = anatomy.labels[:, ::stride, ::stride].astype(np.float32)
    codes = codes[:, ::-1]  # rows of a slice run from the nose back
    shape = np.array(codes.shape[::-1])
    affine = np.diag([stride * FINE_MM, stride * FINE_MM, STEP_MM, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    return Volume(np.ascontiguousarray(codes.transpose(2, 1, 0)), affine)


def rigid(draw: np.random.Generator, degrees: float, mm: float) -> Affine:
    """A random motion about the centre of the head."""
    motion = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(draw.uniform(-degrees, degrees, 3))):
        turn = np.eye(4)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        motion = turn @ motion
    motion[:3, 3] = draw.uniform(-mm, mm, 3)
    return motion


def scans(
    labels: Volume, motion: Affine, noise: float, coarser: float
) -> tuple[Volume, Volume, np.ndarray]:
    """PET, an MR whose affine is wrong by ``motion``, and places in the head (RAS mm)."""
    pet = _on_grid(labels, FDG, PET_SHAPE, PET_MM, coarser)
    draw = rng(0, "registration", "noise")
    blurred = gaussian_filter(pet.data, 5.0 / 2.355 / np.array(pet.zooms_mm))
    noisy = blurred + noise * blurred.max() * np.sqrt(blurred / blurred.max()) * (
        draw.standard_normal(blurred.shape, dtype=np.float32)
    )
    mr = _on_grid(labels, T1, MR_SHAPE, MR_MM, coarser)
    index = np.argwhere(labels.data > 0)[::997]
    points = index @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    moved = mr.moved(motion)
    moved_points = points @ motion[:3, :3].T + motion[:3, 3]
    return pet.with_data(1000 * noisy.clip(0)), moved, moved_points


def _on_grid(
    labels: Volume,
    values: np.ndarray,
    shape: tuple[int, int, int],
    voxel_mm: tuple[float, float, float],
    coarser: float,
) -> Volume:
    """Values per tissue on a scanner's grid about the same centre."""
    size = [int(n / coarser) for n in shape]
    affine = np.diag([*(coarser * np.array(voxel_mm)), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(size) - 1) / 2)
    painted = values[labels.data.astype(np.uint8)]
    matrix = np.linalg.inv(labels.affine) @ affine
    data = affine_transform(
        painted, matrix[:3, :3], matrix[:3, 3], output_shape=size, order=1, mode="grid-constant"
    )
    return Volume(data.astype(np.float32), affine)


if __name__ == "__main__":
    main()
