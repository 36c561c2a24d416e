"""Rigid registration of an MR to the PET of the same head, by Mattes mutual information.

Needs SimpleITK. One thread and seeded samples: the same images give the
same transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mfdiff_core.data.image_checks import Affine
from mfdiff_core.data.plane_fit import head_mask
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import DataError
from mfdiff_core.faults import fault

PLAUSIBLE_MM = 60.0
"""Within one session a head moves millimetres; another table position, a few centimetres."""

LEAST_HEAD_MM = 70.0
"""Of the head that the PET must cover; a thin slab slides and tilts without being noticed."""

LEAST_GAIN = 0.003
"""Share of the mutual information that a motion must add; noise alone adds less."""

_BINS = 50
_LEVELS_MM = (8.0, 5.0, 3.0)  # voxels of the levels, coarse to fine
_SAMPLES = 40_000  # voxels looked at per level; more gain nothing that can be measured
_ITERATIONS = 120
_MARGIN_MM = 15.0  # around the head, so that its outline counts
_SEED = 20260101
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Registration:
    """A rigid motion of the MR.

    Attributes:
        matrix: [4, 4], old to new RAS millimetres of the MR; use `Volume.moved`.
        moved_mm: mean distance that the head moves by it.
        information_before: mutual information by the affines alone, in nats.
        information: mutual information after.
        note: why the MR was left where it is, if it was for a reason that a user should know.
    """

    matrix: Affine
    moved_mm: float
    information_before: float
    information: float
    note: str = ""


def register(pet: Volume, mr: Volume) -> Registration:
    """The motion that brings ``mr`` to ``pet``.

    Starts from the affines, or from aligned centres of mass where these share more information.
    The MR stays where it is if moving it gains next to nothing, or if the PET covers so little of
    the head that its place is not determined; the latter leaves a note.

    Raises:
        InputFault: the result is farther away than a session allows.
        DataError: SimpleITK is not installed.
    """
    with _one_thread():
        return _register(pet, mr)


def _register(pet: Volume, mr: Volume) -> Registration:
    head = _box(pet)
    corners = _points(pet.affine, head)
    centre = corners.mean(axis=0)
    fixed = _image(_cropped(pet, head))
    moving = _image(mr)
    sitk, scout_mm = simple_itk(), _LEVELS_MM[1]
    scout = (_shrunk(sitk, fixed, scout_mm), _smooth(sitk, moving, scout_mm))
    start, before = _start(fixed, moving, centre, scout)
    still, covered_mm = np.eye(4), _covered_mm(pet)
    if covered_mm < LEAST_HEAD_MM:
        note = f"PET covers {covered_mm:.0f} mm of the head, too little to register the MR to it"
        return Registration(still, 0.0, before, before, note)
    transform = start
    for voxel_mm in _LEVELS_MM:
        transform = _level(fixed, moving, transform, voxel_mm)
    after = _information(scout, transform)
    if after < before + LEAST_GAIN * abs(before):
        return Registration(still, 0.0, before, before)
    # ITK maps points of the fixed image to the moving one; the MR moves the other way.
    matrix: Affine = np.linalg.inv(_LPS @ _matrix(transform) @ _LPS).astype(np.float64)
    moved_mm = displacement_mm(matrix, np.eye(4), corners)
    if moved_mm > PLAUSIBLE_MM:
        raise fault("not-registered", "scan", moved_mm=f"{moved_mm:.0f}", limit_mm=PLAUSIBLE_MM)
    return Registration(matrix, moved_mm, before, after)


def displacement_mm(
    first: npt.NDArray[Any], second: npt.NDArray[Any], points: npt.NDArray[Any]
) -> float:
    """Mean distance between ``points`` [N, 3] moved by one and by the other motion."""
    apart = _apply(first, points) - _apply(second, points)
    return float(np.linalg.norm(apart, axis=1).mean())


def simple_itk() -> Any:
    """The module SimpleITK.

    Raises:
        DataError: it is not installed; says how.
    """
    try:
        import SimpleITK as sitk
    except ImportError:
        raise DataError(
            "registration needs SimpleITK: pip install SimpleITK, or register the "
            "MR yourself and give --no-register"
        ) from None
    return sitk


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over threads depend on their order in the last digit, and a search amplifies it."""
    process = simple_itk().ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)


def _covered_mm(pet: Volume) -> float:
    """Shortest extent of the head in the PET along its axes."""
    head = head_mask(pet.data)
    extents = []
    for axis, zoom in enumerate(pet.zooms_mm):
        profile = head.sum(axis=tuple({0, 1, 2} - {axis}))
        rows = np.flatnonzero(profile > 0.05 * profile.max())
        extents.append(zoom * (rows[-1] - rows[0] + 1))
    return float(min(extents))


def _box(pet: Volume) -> tuple[slice, slice, slice]:
    """Voxels around the head, with a margin."""
    head = head_mask(pet.data)
    box = []
    for axis, zoom in enumerate(pet.zooms_mm):
        profile = head.sum(axis=tuple({0, 1, 2} - {axis}))
        rows = np.flatnonzero(profile > 0.02 * profile.max())
        margin = int(np.ceil(_MARGIN_MM / zoom))
        box.append(slice(max(0, rows[0] - margin), min(head.shape[axis], rows[-1] + margin + 1)))
    return box[0], box[1], box[2]


def _cropped(volume: Volume, box: tuple[slice, slice, slice]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return Volume(np.ascontiguousarray(volume.data[box]), affine)


def _points(affine: Affine, box: tuple[slice, slice, slice]) -> npt.NDArray[np.float64]:
    """A 5 x 5 x 5 lattice over the box in RAS millimetres."""
    edges = [np.linspace(part.start, part.stop - 1, 5) for part in box]
    index = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 3)
    return _apply(affine, index)


def _apply(matrix: npt.NDArray[Any], points: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    moved: npt.NDArray[np.float64] = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def _image(volume: Volume) -> Any:
    """SimpleITK image; its axes are those of ``volume.data``, its space is LPS.

    ITK refuses axes that are not at right angles to the last digit, so they are made so.
    """
    sitk = simple_itk()
    lps = _LPS @ volume.affine
    zooms = np.array(volume.zooms_mm)
    left, _, right = np.linalg.svd(lps[:3, :3] / zooms)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    image.SetSpacing(zooms.tolist())
    image.SetDirection((left @ right).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _start(
    fixed: Any, moving: Any, centre: npt.NDArray[np.float64], scout: tuple[Any, Any]
) -> tuple[Any, float]:
    """The better of no motion and aligned centres of mass; and the information of no motion."""
    sitk = simple_itk()
    still = sitk.Euler3DTransform()
    still.SetCenter((_LPS[:3, :3] @ centre).tolist())
    masses = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    shifted = sitk.Euler3DTransform(still)
    shifted.SetTranslation(masses.GetTranslation())
    before, other = (_information(scout, each) for each in (still, shifted))
    return (shifted if other > before else still), before


def _information(scout: tuple[Any, Any], transform: Any) -> float:
    """Mutual information of all voxels of a middle level; minus infinity without overlap."""
    sitk = simple_itk()
    method = _method(sitk)
    method.SetInitialTransform(sitk.Euler3DTransform(transform))
    try:
        return -float(method.MetricEvaluate(*scout))
    except RuntimeError:
        return -np.inf


def _level(fixed: Any, moving: Any, transform: Any, voxel_mm: float) -> Any:
    sitk = simple_itk()
    method = _method(sitk)
    shrunk = _shrunk(sitk, fixed, voxel_mm)
    share = min(1.0, _SAMPLES / shrunk.GetNumberOfPixels())
    if share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, _SEED)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=voxel_mm / 4,
        minStep=voxel_mm / 1000,
        numberOfIterations=_ITERATIONS,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(sitk.Euler3DTransform(transform), inPlace=True)
    try:
        done = method.Execute(shrunk, _smooth(sitk, moving, voxel_mm))
    except RuntimeError:  # the images do not overlap; the caller compares information
        return transform
    return sitk.Euler3DTransform(done)


def _method(sitk: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _shrunk(sitk: Any, image: Any, voxel_mm: float) -> Any:
    factors = [max(1, round(voxel_mm / zoom)) for zoom in image.GetSpacing()]
    return sitk.BinShrink(_smooth(sitk, image, voxel_mm), factors)


def _smooth(sitk: Any, image: Any, voxel_mm: float) -> Any:
    return sitk.SmoothingRecursiveGaussian(image, voxel_mm / 2)


def _matrix(transform: Any) -> Affine:
    """x -> R (x - c) + c + t as [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix[:3, 3] = centre + shift - matrix[:3, :3] @ centre
    return matrix
