from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from mfdiff_core.bundle import Bundle
from mfdiff_core.errors import BundleError, DataError
from mfdiff_platform.restoration import Restoration, restore_files

AFFINE = np.array([[-2, 0, 0, 31], [0, 2, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]], dtype=float)
SHAPE = (32, 30, 4)


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, Path]:
    """A cylinder in Bq/mL and its MR on a finer grid."""
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    inside = (axes[0] - 15.5) ** 2 + (axes[1] - 14.5) ** 2 < 100
    noise = np.random.default_rng(0).gamma(5, 0.2, SHAPE)
    pet = (20_000 * inside * noise).astype(np.float32)
    fine = np.repeat(inside.astype(np.float32), 2, axis=2) * 700
    half = AFFINE @ np.diag([1, 1, 0.5, 1])
    nibabel.save(nibabel.Nifti1Image(pet, AFFINE), tmp_path / "pet.nii.gz")
    nibabel.save(nibabel.Nifti1Image(fine, half), tmp_path / "t1.nii.gz")
    return tmp_path / "pet.nii.gz", tmp_path / "t1.nii.gz"


def restore(bundle: Bundle, scan: tuple[Path, Path], name: str, seed: int = 0) -> Restoration:
    return restore_files(bundle.folder, *scan, scan[0].with_name(name), seed)


def test_restored_file_is_on_the_pet_s_grid_and_in_its_units(
    tiny_bundle: Bundle, scan: tuple[Path, Path]
) -> None:
    done = restore(tiny_bundle, scan, "out.nii.gz")
    out, pet = nibabel.load(scan[0].with_name("out.nii.gz")), nibabel.load(scan[0])
    assert out.shape == SHAPE
    assert np.array_equal(out.affine, AFFINE)
    values, low = out.get_fdata(), pet.get_fdata()
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert 1e2 < values.max() < 1e6
    assert done.slices == SHAPE[2]
    assert done.activity_ratio == pytest.approx(values.sum() / low.sum(), rel=1e-3)


def test_same_seed_writes_the_same_image(tiny_bundle: Bundle, scan: tuple[Path, Path]) -> None:
    for name, seed in (("a.nii", 0), ("b.nii", 0), ("c.nii", 1)):
        restore(tiny_bundle, scan, name, seed)
    a, b, c = (nibabel.load(scan[0].with_name(n)).get_fdata() for n in ("a.nii", "b.nii", "c.nii"))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_missing_input_is_named_and_nothing_is_written(
    tiny_bundle: Bundle, scan: tuple[Path, Path]
) -> None:
    nowhere = scan[0].with_name("none.nii.gz")
    with pytest.raises(DataError, match=r"none\.nii\.gz"):
        restore(tiny_bundle, (scan[0], nowhere), "out.nii.gz")
    assert not scan[0].with_name("out.nii.gz").exists()


def test_damaged_weights_restore_nothing(tiny_bundle: Bundle, scan: tuple[Path, Path]) -> None:
    weights = tiny_bundle.folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="do not match the hash"):
        restore(tiny_bundle, scan, "out.nii.gz")
