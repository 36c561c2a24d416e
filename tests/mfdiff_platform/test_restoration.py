from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mfdiff_core.bundle import Bundle, save_bundle
from mfdiff_core.data.volumes import Volume
from mfdiff_core.diffusion.process import DiffusionConfig
from mfdiff_core.errors import BundleError, DataError
from mfdiff_core.model import ModelConfig, build_model
from mfdiff_platform.archive import write_archive
from mfdiff_platform.cli import run
from mfdiff_platform.model_files import bundle_files
from mfdiff_platform.restoration import RestoredScan, RestoreOptions, restore_files

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


def restore(
    bundle: Bundle, scan: tuple[Path, Path], name: str, seed: int = 0, **options: Any
) -> RestoredScan:
    chosen = {"register": False} | options
    how = RestoreOptions(model=bundle.folder, seed=seed, **chosen)
    return restore_files(*scan, scan[0].with_name(name), how)


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
    assert done.result.restored_slices == SHAPE[2]
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


def test_page_beside_the_image_shows_it_and_names_no_file(
    tiny_bundle: Bundle, scan: tuple[Path, Path]
) -> None:
    restore(tiny_bundle, scan, "DOE_JANE.nii.gz", samples=2)
    page = scan[0].with_name("DOE_JANE.html").read_text()
    for words in ("LPET", "restored", "sum of activity", "not a medical device", "data:image/png"):
        assert words in page
    assert "DOE_JANE" not in page
    assert "http" not in page.replace("data:image", "")


def test_samples_leave_their_mean_and_standard_deviation(
    tiny_bundle: Bundle, scan: tuple[Path, Path]
) -> None:
    done = restore(tiny_bundle, scan, "k.nii.gz", samples=3)
    spread = nibabel.load(scan[0].with_name("k_sd.nii.gz"))
    assert np.array_equal(spread.get_fdata(), done.result.spread.data)
    assert np.array_equal(spread.affine, AFFINE)
    restore(tiny_bundle, scan, "one.nii.gz")
    assert not scan[0].with_name("one_sd.nii.gz").exists()


def with_facts(bundle: Bundle, folder: Path, **facts: Any) -> Bundle:
    provenance = replace(bundle.provenance, data_facts={"voxel_mm": 2.0, **facts})
    return save_bundle(folder, bundle.config, bundle.weights(), provenance)


def test_scan_unlike_the_training_data_is_warned_of_with_both_figures(
    tiny_bundle: Bundle, scan: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = with_facts(tiny_bundle, tmp_path / "other", noise=[0.001, 0.002, 0.004])
    done = restore(bundle, scan, "out.nii.gz")
    warning = done.warnings[0]
    assert "noise" in warning
    assert "where the training data have 0.001 to 0.004" in warning
    assert "0.001 to 0.004" in scan[0].with_name("out.html").read_text()


def test_strict_refuses_it_and_writes_nothing(
    tiny_bundle: Bundle, scan: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = with_facts(tiny_bundle, tmp_path / "other", noise=[0.001, 0.002, 0.004])
    with pytest.raises(DataError, match="unlike the model's training data: noise"):
        restore(bundle, scan, "out.nii.gz", strict=True)
    assert not list(scan[0].parent.glob("out*"))


def test_strict_lets_ordinary_scans_pass(
    tiny_bundle: Bundle, scan: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = with_facts(tiny_bundle, tmp_path / "other", noise=[0.1, 0.4, 1.0])
    assert restore(bundle, scan, "out.nii.gz", strict=True).result.differences == ()


def test_change_of_the_total_activity_is_warned_of(
    tiny_bundle: Bundle, scan: tuple[Path, Path]
) -> None:
    done = restore(tiny_bundle, scan, "out.nii.gz")
    changed = replace(done, activity_ratio=0.9)
    assert changed.warnings == ("restoring changed the total activity by -10.0 %",)
    assert replace(done, activity_ratio=1.01).warnings == ()


def test_mr_with_a_wrong_affine_is_brought_back_unless_told_not_to(
    tiny_bundle: Bundle,
    tmp_path: Path,
    make_head: Callable[..., Volume],
    rigid: Callable[..., Any],
) -> None:
    pytest.importorskip("SimpleITK")
    pet, mr = make_head("pet"), make_head("mr", ((48, 56, 48), np.diag([4.0, 4, 4, 1])))
    motion = rigid((4, -3, 2), (6, -5, 7))
    nibabel.save(nibabel.Nifti1Image(pet.data, pet.affine), tmp_path / "pet.nii")
    nibabel.save(nibabel.Nifti1Image(mr.data, motion @ mr.affine), tmp_path / "t1.nii")
    scan = (tmp_path / "pet.nii", tmp_path / "t1.nii")
    still = restore(tiny_bundle, scan, "a.nii")
    moved = restore(tiny_bundle, scan, "b.nii", register=True)
    assert still.motion is None
    assert moved.motion is not None
    assert (moved.motion.matrix @ motion)[:3, 3] == pytest.approx(0, abs=1.0)
    assert "MR moved by" in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize(
    ("target", "samples", "told"), [("x0", 3, True), ("x0", 1, False), ("eps", 3, False)]
)
def test_spread_of_a_model_that_always_answers_the_same_is_said_to_mean_nothing(
    tiny_bundle: Bundle,
    tmp_path: Path,
    scan: tuple[Path, Path],
    target: str,
    samples: int,
    told: bool,
) -> None:
    """Fresh weights answer zero: the same x_0 from any noise, but noise left in where it is eps."""
    diffusion = DiffusionConfig(target="x0", residual=True) if target == "x0" else DiffusionConfig()
    assert isinstance(tiny_bundle.config, ModelConfig)
    config = replace(tiny_bundle.config, diffusion=diffusion)
    weights = build_model(config, seed=0).state_dict()
    bundle = save_bundle(tmp_path / "fresh", config, weights, tiny_bundle.provenance)
    done = restore(bundle, scan, "spread.nii.gz", samples=samples)
    said = [line for line in done.warnings if "says nothing about uncertainty" in line]
    assert bool(said) == told


def test_exported_file_restores_as_the_bundle_that_it_carries(
    tiny_bundle: Bundle, tmp_path: Path, scan: tuple[Path, Path]
) -> None:
    files = {f"bundle/{path.name}": path for path in bundle_files(tiny_bundle.folder)}
    write_archive(tmp_path / "toy.zip", "site model", {"domain": "toy"}, files)
    images: list[bytes] = []
    for model in (tiny_bundle.folder, tmp_path / "toy.zip", tmp_path / "toy.zip"):
        out = tmp_path / f"{len(images)}.nii"
        files_in = ["--pet", scan[0], "--mr", scan[1], "--out", out, "--no-register"]
        command = ["restore", "--model", model, *files_in, "--workspace", tmp_path / "ws"]
        assert run(list(map(str, command))) == 0
        images.append(out.read_bytes())
    assert images[0] == images[1] == images[2]


def test_file_that_is_no_model_is_refused(
    tmp_path: Path, scan: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"pickle")
    files = ["--pet", scan[0], "--mr", scan[1], "--out", tmp_path / "out.nii"]
    command = ["restore", "--model", tmp_path / "weights.pt", *files, "--workspace", tmp_path]
    assert run(list(map(str, command))) == 4
    assert "not a readable archive" in capsys.readouterr().err
    assert not (tmp_path / "out.nii").exists()
