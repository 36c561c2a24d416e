from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from mfdiff_core import files
from mfdiff_core.data.volumes import (
    Volume,
    axial_slices,
    axial_zooms_mm,
    fit_grid,
    from_axial_slices,
    read_volume,
    resample_to,
    write_volume,
)
from mfdiff_core.errors import DataError

Array = npt.NDArray[Any]

RAS = np.array([[2.0, 0, 0, -20], [0, 2.5, 0, -30], [0, 0, 3.0, 10], [0, 0, 0, 1]])
ORIENTATIONS = ["RAS", "LAS", "LPS", "RPI", "ASL", "RSA", "PLI"]


def brain(shape: tuple[int, int, int] = (10, 12, 8)) -> Array:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def oriented(codes: str) -> Volume:
    """The same brain in space with its voxels stored in another order."""
    image = nib.Nifti1Image(brain(), RAS)
    wanted = nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(RAS), wanted))
    return Volume(np.asarray(turned.dataobj, dtype=np.float32), turned.affine)


def oblique() -> Volume:
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Volume(brain(), turn @ RAS)


def save(path: Path, data: Array, affine: Array = RAS, **fields: Any) -> Path:
    """A NIfTI file whose header ``fields`` are set behind nibabel's back."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    if fields:
        content = path.read_bytes()
        header = nib.Nifti1Header(content[:348])
        for name, value in fields.items():
            header[name] = value
        path.write_bytes(header.binaryblock + content[348:])
    return path


# --- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_volume_is_read_with_its_place_in_space(tmp_path: Path, name: str) -> None:
    volume = read_volume(save(tmp_path / name, brain()), "pet")
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, brain())
    assert np.array_equal(volume.affine, RAS)
    assert volume.zooms_mm == pytest.approx((2.0, 2.5, 3.0))
    assert volume.notes == ()


def test_names_do_not_matter_only_content_does(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii", brain())
    misnamed = tmp_path / "uncompressed.nii.gz"
    misnamed.write_bytes(plain.read_bytes())
    packed = tmp_path / "compressed.nii"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (misnamed, packed):
        assert np.array_equal(read_volume(path, "pet").data, brain())


def test_stored_scale_big_endian_and_single_frame_are_understood(tmp_path: Path) -> None:
    stored = (1000 * brain()).astype(np.int16)[..., None]
    image = nib.Nifti1Image(stored, RAS, nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == struct.pack(">i", 348)
    volume = read_volume(tmp_path / "a.nii", "pet")
    assert volume.data == pytest.approx(0.5 * stored[..., 0] + 3)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(brain(), RAS), tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz", "mr").data, brain())


def test_volume_outlives_its_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", brain())
    volume = read_volume(path, "pet")
    path.write_bytes(b"")
    assert np.array_equal(volume.data, brain())


def test_few_negatives_of_a_pet_become_zero_with_a_note(tmp_path: Path) -> None:
    data = brain()
    data[0, 0, :3] = -0.2
    path = save(tmp_path / "a.nii", data)
    pet, mr = read_volume(path, "pet"), read_volume(path, "mr")
    assert pet.data.min() == 0
    assert "3 negative voxels" in pet.notes[0]
    assert np.array_equal(mr.data, data)


def with_voxel(value: float) -> Array:
    data = brain()
    data[1, 2, 3] = value
    return data


def sheared() -> Array:
    affine = RAS.copy()
    affine[0, 1] = 0.2
    return affine


def saturated() -> Array:
    data = (20000 * brain()).astype(np.int16)
    data[:3, 0, 0] = 32767
    return data


RGB = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])

UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (lambda p: save(p, with_voxel(np.nan)), "1 of 960 voxels are NaN"),
    "infinite": (lambda p: save(p, with_voxel(np.inf)), "NaN or infinite"),
    "zero": (lambda p: save(p, 0 * brain()), "same value"),
    "constant": (lambda p: save(p, 0 * brain() + 7), "same value"),
    "negative": (lambda p: save(p, brain() - 0.5), "activity is negative"),
    "saturated": (lambda p: save(p, saturated()), "3 voxels sit at the 16-bit limit"),
    "frames": (lambda p: save(p, np.stack([brain()] * 3, -1)), r"4-D \(10x12x8x3\)"),
    "flat": (lambda p: save(p, brain()[..., 0]), r"2-D \(10x12\)"),
    "colour": (lambda p: save(p, RGB), "colours"),
    "complex": (lambda p: save(p, brain().astype(np.complex64)), "complex"),
    "sheared": (lambda p: save(p, brain(), sheared()), "sheared affine"),
    "singular": (
        lambda p: save(p, brain(), srow_x=[0, 0, 0, 0]),
        "singular affine",
    ),
    "metres": (lambda p: save(p, brain(), xyzt_units=1), "not in millimetres"),
    "wrong unit": (lambda p: save(p, brain(), np.diag([2e-3, 2e-3, 2e-3, 1])), "not plausible"),
    "unoriented": (lambda p: save(p, brain(), sform_code=0, qform_code=0), "left and right"),
    "huge": (lambda p: save(p, brain(), dim=[3, 9999, 9999, 9999, 1, 1, 1, 1]), "claims"),
    "text": (lambda p: p.write_text("hello" * 200), "not a NIfTI file"),
    "no bytes": (lambda p: p.write_bytes(b""), "empty file"),
    "dicom": (lambda p: p.write_bytes(bytes(128) + b"DICM" + bytes(400)), "DICOM"),
    "pair": (lambda p: p.write_bytes(bytes(344) + b"ni1\0" + bytes(200)), "two-file NIfTI"),
    "cut gzip": (lambda p: p.write_bytes(gzip.compress(brain().tobytes())[:20]), "damaged"),
    "folder": (lambda p: p.mkdir(), "no such file"),
    "missing": (lambda p: None, "no such file"),
    "dangling": (lambda p: p.symlink_to("nowhere"), "link to a file that does not exist"),
    "annexed": (
        lambda p: p.symlink_to("../.git/annex/objects/x/MD5E-s1260000000--0af.nii.gz/a"),
        r"content not fetched \(1260.0 MB\); run `datalad get scan.nii`",
    ),
    "annex pointer": (
        lambda p: p.write_text("/annex/objects/MD5E-s42--0af.nii.gz\n"),
        "datalad get",
    ),
    "lfs pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_unusable_file_is_refused_by_a_sentence_that_names_it(tmp_path: Path, fault: str) -> None:
    make, sentence = UNUSABLE[fault]
    path = tmp_path / "scan.nii"
    make(path)
    with pytest.raises(DataError, match=sentence) as refusal:
        read_volume(path, "pet")
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_file_cut_short_is_refused_wherever_it_ends(tmp_path: Path, name: str, kept: float) -> None:
    path = save(tmp_path / name, brain())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match="copy it again"):
        read_volume(path, "pet")


# --- writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("sform_code", [0, 1, 4])
def test_written_geometry_is_that_of_the_source_bit_for_bit(
    tmp_path: Path, name: str, sform_code: int
) -> None:
    affine = np.diag([-1.39084, 1.39084, 2.03125, 1.0])
    affine[:3, 3] = [119.3, -101.7, -77.1]
    codes = {"sform_code": sform_code, "qform_code": 1, "xyzt_units": 10}
    zooms = [1.0, 1.391, 1.391, 2.031, 16.0, 0, 0, 0]  # qform: rounded, and of the other hand
    source = save(tmp_path / "pet.nii", brain(), affine, pixdim=zooms, **codes)
    write_volume(tmp_path / name, read_volume(source, "pet"))
    before, after = nib.load(source), nib.load(tmp_path / name)
    assert np.array_equal(after.affine, before.affine)
    for field in ("qform_code", "sform_code", "quatern_d", "qoffset_x", "srow_x", "srow_z"):
        assert np.array_equal(after.header[field], before.header[field])
    assert np.array_equal(after.header["pixdim"][:4], before.header["pixdim"][:4])
    assert after.header.get_xyzt_units()[0] == "mm"


def test_written_voxels_are_float32_with_slope_one(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", Volume(brain(), RAS))
    raw = (tmp_path / "a.nii").read_bytes()
    assert struct.unpack("<h", raw[70:72]) == (16,)
    assert struct.unpack("<ff", raw[112:120]) == (1.0, 0.0)
    assert np.array_equal(read_volume(tmp_path / "a.nii", "pet").data, brain())


def test_no_patient_text_is_carried_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(brain(), RAS)
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[name] = b"DOE^JANE 1970"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE MRN 4711"))
    source = tmp_path / "DOE^JANE.nii.gz"
    nib.save(image, source)
    assert b"DOE^JANE" in gzip.decompress(source.read_bytes())
    for name in ("out.nii", "out.nii.gz"):
        write_volume(tmp_path / name, read_volume(source, "pet"))
        raw = (tmp_path / name).read_bytes()
        content = gzip.decompress(raw) if name.endswith("gz") else raw
        assert b"DOE" not in raw + content
        assert b"4711" not in content


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, Volume(brain(), RAS))
    first, second = ((tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    assert first[4:8] == bytes(4)  # gzip's time stamp


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, Volume(brain(), RAS))
    before = path.read_bytes()

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(OSError, match="No space"):
        write_volume(path, Volume(2 * brain(), RAS))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_file_types_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end with \.nii"):
        write_volume(tmp_path / "a.mha", Volume(brain(), RAS))


# --- space ---------------------------------------------------------------------------------


def test_resampling_to_the_own_grid_copies_bit_for_bit() -> None:
    volume = oblique()
    shifted = volume.affine.copy()
    shifted[:3, 3] += 1e-6
    for grid in (volume, Volume(volume.data, shifted)):
        result = resample_to(volume, grid)
        assert np.array_equal(result.data, volume.data)
        assert result.data is not volume.data


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_orientation_comes_from_the_affine(codes: str) -> None:
    resampled = resample_to(oriented(codes), oriented("RAS"))
    assert resampled.data == pytest.approx(brain(), abs=1e-6)
    assert np.array_equal(resampled.affine, RAS)


def test_resampling_follows_space_not_indices() -> None:
    x, y, z = np.meshgrid(*map(np.arange, (20, 24, 18)), indexing="ij")
    ramp = Volume((2 * x + 3 * y - z).astype(np.float32), np.diag([1.5, 1.5, 1.5, 1.0]))
    grid = oblique()
    inside = Volume(np.zeros((3, 3, 3), np.float32), grid.affine.copy())
    inside.affine[:3, 3] = [10, 12, 9]
    inside.affine[:3, :3] /= 2
    result = resample_to(ramp, inside).data
    places = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1)
    world = places @ inside.affine[:3, :3].T + inside.affine[:3, 3]
    assert result == pytest.approx(world @ np.array([2, 3, -1]) / 1.5, abs=1e-4)


def test_outside_the_field_of_view_is_zero() -> None:
    far = RAS.copy()
    far[0, 3] += 1000
    assert not resample_to(Volume(brain(), far), Volume(brain(), RAS)).data.any()


def test_labels_stay_labels_at_order_zero() -> None:
    labels = (brain() * 4).round().astype(np.float32)
    result = resample_to(Volume(labels, RAS), oblique(), order=0)
    assert set(np.unique(result.data)) <= {0, 1, 2, 3, 4}


def test_grids_differ_by_shape_or_by_a_flip() -> None:
    flipped = RAS @ np.diag([-1.0, 1, 1, 1])
    assert not Volume(brain(), RAS).same_grid(Volume(brain(), flipped))
    assert not Volume(brain(), RAS).same_grid(Volume(brain((9, 12, 8)), RAS))


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="grid is"):
        Volume(brain(), RAS).with_data(brain()[1:])


# --- axial slices --------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_nose_is_up_right_is_right_and_head_is_last(codes: str) -> None:
    slices = axial_slices(oriented(codes))
    anterior_right_top = brain()[-1, -1, -1]
    assert slices.shape == (8, 12, 10)
    assert slices[-1, 0, -1] == anterior_right_top
    assert np.array_equal(slices, axial_slices(oriented("RAS")))
    assert axial_zooms_mm(oriented(codes)) == pytest.approx((3.0, 2.5, 2.0))


@pytest.mark.parametrize("codes", [*ORIENTATIONS, "oblique"])
def test_processed_slices_come_back_to_their_voxels(tmp_path: Path, codes: str) -> None:
    volume = oblique() if codes == "oblique" else oriented(codes)
    write_volume(tmp_path / "in.nii.gz", volume)
    pet = read_volume(tmp_path / "in.nii.gz", "pet")
    write_volume(tmp_path / "out.nii.gz", from_axial_slices(2 * axial_slices(pet), pet))
    restored = read_volume(tmp_path / "out.nii.gz", "pet")
    assert np.array_equal(restored.data, 2 * volume.data)
    assert np.array_equal(restored.affine, pet.affine)


def test_axial_slices_are_a_view() -> None:
    volume = oriented("PIR")
    assert np.shares_memory(axial_slices(volume), volume.data)


# --- model grid ----------------------------------------------------------------------------


def test_unchanged_grid_is_bit_exact() -> None:
    slices = brain()
    assert np.array_equal(fit_grid(slices, (2.0, 2.5), (2.0, 2.5), (12, 8)), slices)


@pytest.mark.parametrize("size", [(16, 20), (15, 17), (12, 9)])
def test_padding_and_cropping_back_is_bit_exact(size: tuple[int, int]) -> None:
    slices = brain()
    padded = fit_grid(slices, (2.0863, 2.0863), (2.08626, 2.08626), size)
    assert padded.shape == (10, *size)
    assert padded.sum() == pytest.approx(slices.sum())
    assert np.array_equal(fit_grid(padded, (2.08626,) * 2, (2.0863,) * 2, (12, 8)), slices)


def blob(
    shape: tuple[int, int], voxel_mm: tuple[float, float], at_mm: tuple[float, float]
) -> Array:
    """Gaussian of 8 mm sigma at a distance from the image's centre."""
    y, x = (
        (np.arange(n) - (n - 1) / 2) * mm - at
        for n, mm, at in zip(shape, voxel_mm, at_mm, strict=True)
    )
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / 128).astype(np.float32)[None]


@pytest.mark.parametrize(
    ("voxel_mm", "target_mm"), [((1.39, 1.39), (2.086, 2.086)), ((2.0, 1.5), (1.0, 1.0))]
)
def test_anatomy_keeps_its_place_and_size_in_millimetres(
    voxel_mm: tuple[float, float], target_mm: tuple[float, float]
) -> None:
    native, model = (90, 101), (131, 120)
    at_mm = (7.0, -11.0)
    slices = blob(native, voxel_mm, at_mm)
    fitted = fit_grid(slices, voxel_mm, target_mm, model)
    assert fitted == pytest.approx(blob(model, target_mm, at_mm), abs=0.03)
    assert fit_grid(fitted, target_mm, voxel_mm, native) == pytest.approx(slices, abs=0.04)


def test_shrinking_averages_noise_and_keeps_activity() -> None:
    noise = np.random.default_rng(0).random((1, 96, 96)).astype(np.float32)
    small = fit_grid(noise, (1.0, 1.0), (3.0, 3.0), (32, 32))
    assert small[:, 4:-4, 4:-4].std() < noise.std() / 2
    assert small[:, 4:-4, 4:-4].mean() == pytest.approx(0.5, abs=0.02)


def test_constant_activity_stays_constant_inside() -> None:
    flat = np.ones((1, 40, 40), dtype=np.float32)
    fitted = fit_grid(flat, (2.0, 2.0), (3.1, 1.3), (20, 50))
    assert fitted[:, 3:-3, 3:-3] == pytest.approx(1.0)
