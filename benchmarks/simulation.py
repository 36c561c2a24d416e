"""What a simulated slice pair costs, beside the same OSEM with scikit-image and ASTRA on the CPU.

    python -m benchmarks.simulation [--json FILE] [--grids 128 192 344]

A pair is one standard-dose (15 iterations x 10 subsets) and one low-dose reconstruction (10 x 14)
of 252 views with a resolution model: 25 full projections and 25 back-projections. Ours is measured
whole, 16 slices at a time; the others by one iteration of 14 subsets on one slice, times 25. All by
process_time, so that other load counts little. ASTRA is left out where it is missing.

Grids: 128 pixels are the head box that the recipes use, 192 the cropped view, 344 the scanner's own
images, which is what the peers' users project.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.record import write_result
from mfdiff_core.physics.osem import osem
from mfdiff_core.physics.phantom import Tissue
from mfdiff_core.physics.projector import Geometry, Projector
from mfdiff_core.physics.psf import FWHM_PER_SIGMA, GaussianBlur
from mfdiff_core.physics.simulate import list_subjects, recipe, simulate_subject

Image = NDArray[np.float32]
Operator = Callable[[Image, int], Image]

NUM_VIEWS, VOXEL_MM, FWHM_MM = 252, 2.08626, 2.5
ITERATIONS_PER_PAIR = 15 + 10
NUM_SUBSETS, NUM_SLICES = 14, 16
FULL_PX = 344


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", type=Path, help="also write the figures here")
    options.add_argument("--grids", type=int, nargs="+", default=[128, 192, FULL_PX])
    arguments = options.parse_args()
    rows = [row for size in arguments.grids for row in measure(size)]
    report = {
        "threads": torch.get_num_threads(),
        "pairs": rows,
        "ratios": ratios(rows),
        "dataset": whole_recipe(),
    }
    show(report)
    if arguments.json:
        write_result(arguments.json, report)


def measure(size: int) -> list[dict[str, object]]:
    """Milliseconds per pair on a ``size`` x ``size`` grid, one row per implementation."""
    rows: list[dict[str, object]] = []
    peers = {"scikit-image": scikit_image(size), "ASTRA linear": astra("linear", size)}
    peers["ASTRA line"] = astra("line", size)
    if size < FULL_PX:  # our grids hold the head; the scanner's whole field would hold air
        rows.append({"grid": size, "method": "ours", "ms": ours(size)})
    for name, operators in peers.items():
        if operators is not None:
            rows.append({"grid": size, "method": name, "ms": theirs(size, *operators)})
    return rows


def head(size: int) -> Image:
    """An ellipse of the size of a head."""
    axis = (np.arange(size) - (size - 1) / 2) * VOXEL_MM
    inside = (axis[:, None] / 95) ** 2 + (axis / 75) ** 2 < 1
    return inside.astype(np.float32) * np.float32(50)


def disc(size: int) -> Image:
    """The circular field that scikit-image's projector is made for."""
    axis = np.arange(size) - size // 2
    inside = axis[:, None] ** 2 + axis**2 < (size // 2 - 1) ** 2
    return inside.astype(np.float32)


def ours(size: int) -> float:
    geometry = Geometry(
        image_px=size, voxel_mm=VOXEL_MM, num_bins=size, bin_mm=VOXEL_MM, num_views=NUM_VIEWS
    )
    psf = GaussianBlur(FWHM_MM, VOXEL_MM)
    x = torch.from_numpy(head(size)).reshape(-1, 1).repeat(1, NUM_SLICES)
    seconds = 0.0
    for iterations, subsets in ((15, 10), (10, 14)):
        projector = Projector(geometry, subsets)
        y = projector.project(x)
        osem(y, torch.ones_like(y), projector, psf, 1)
        start = time.process_time()
        osem(y, torch.ones_like(y), projector, psf, iterations)
        seconds += time.process_time() - start
    return 1e3 * seconds / NUM_SLICES


def theirs(size: int, forward: Operator, back: Operator) -> float:
    """One OSEM iteration over all subsets, times the iterations of a pair."""
    sigma = FWHM_MM / FWHM_PER_SIGMA / VOXEL_MM
    image = head(size)
    measured = [forward(image, k) for k in range(NUM_SUBSETS)]
    gain = [1 / (back(np.ones_like(m), k) + 1e-6) for k, m in enumerate(measured)]
    x = disc(size)
    start = time.process_time()
    for k in range(NUM_SUBSETS):
        ratio = measured[k] / (forward(gaussian_filter(x, sigma), k) + 1e-5)
        x = x * gaussian_filter(back(ratio.astype(np.float32), k), sigma) * gain[k]
    return 1e3 * (time.process_time() - start) * ITERATIONS_PER_PAIR


def scikit_image(size: int) -> tuple[Operator, Operator]:
    from skimage.transform import iradon, radon

    # the blur lets a little of the disc out of the circle
    warnings.filterwarnings("ignore", message="Radon transform: image must be zero outside")
    angles = [np.arange(k, NUM_VIEWS, NUM_SUBSETS) * 180 / NUM_VIEWS for k in range(NUM_SUBSETS)]

    def forward(x: Image, k: int) -> Image:
        return np.asarray(radon(x, angles[k], circle=True), np.float32)

    def back(y: Image, k: int) -> Image:
        image = iradon(y, angles[k], filter_name=None, circle=True, output_size=size)
        return np.asarray(image, np.float32)

    return forward, back


def astra(kind: str, size: int) -> tuple[Operator, Operator] | None:
    try:
        import astra as toolbox
    except ImportError:
        return None
    angles = [np.arange(k, NUM_VIEWS, NUM_SUBSETS) * np.pi / NUM_VIEWS for k in range(NUM_SUBSETS)]
    volume = toolbox.create_vol_geom(size, size)
    projectors = [
        toolbox.create_projector(kind, toolbox.create_proj_geom("parallel", 1.0, size, a), volume)
        for a in angles
    ]

    def forward(x: Image, k: int) -> Image:
        number, sinogram = toolbox.create_sino(x, projectors[k])
        toolbox.data2d.delete(number)
        return np.asarray(sinogram, np.float32)

    def back(y: Image, k: int) -> Image:
        number, image = toolbox.create_backprojection(y, projectors[k])
        toolbox.data2d.delete(number)
        return np.asarray(image, np.float32)

    return forward, back


def ratios(rows: list[dict[str, object]]) -> dict[str, float]:
    """Times faster than each peer: on the same grid, and as peers run it, on the whole field."""
    cost = {(row["grid"], row["method"]): float(str(row["ms"])) for row in rows}
    own = {grid: ms for (grid, method), ms in cost.items() if method == "ours"}
    found = {}
    for (grid, method), ms in cost.items():
        if method == "ours":
            continue
        for own_grid, own_ms in own.items():
            if grid in (own_grid, FULL_PX):
                found[f"{method} {grid} / ours {own_grid}"] = ms / own_ms
    return found


def whole_recipe() -> dict[str, float]:
    """Cost per pair of the default phantom set, anatomy and lesions included."""
    config = recipe("phantom")
    first, second = list_subjects(config, num_subjects=2)
    simulate_subject(config, first, 0)
    start = time.process_time()
    slices = simulate_subject(config, second, 0)
    seconds = time.process_time() - start
    assert all((s.tissue == Tissue.GREY).any() for s in slices)
    per_pair = seconds / len(slices)
    return {"ms_per_pair": 1e3 * per_pair, "minutes_per_1000_on_2_cores": 1e3 * per_pair / 2 / 60}


def show(report: dict[str, object]) -> None:
    print(f"{'grid':>6}  {'method':<14}{'ms per pair':>12}")
    for row in report["pairs"]:  # type: ignore[attr-defined]
        print(f"{row['grid']:>6}  {row['method']:<14}{row['ms']:>12.1f}")
    for name, ratio in report["ratios"].items():  # type: ignore[attr-defined]
        print(f"{name}: {ratio:.0f} times")
    print("default phantom set:", report["dataset"])


if __name__ == "__main__":
    main()
