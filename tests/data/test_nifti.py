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
from mfdiff_core.data.nifti import open_frames, read_volume, write_volume
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import InputFault

Array = npt.NDArray[Any]

RAS = np.array([[2.0, 0, 0, -20], [0, 2.5, 0, -30], [0, 0, 3.0, 10], [0, 0, 0, 1]])


def brain(shape: tuple[int, int, int] = (10, 12, 8)) -> Array:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


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
    "flipped": (
        lambda p: save(p, brain(), pixdim=[-1, 2, 2.5, 3, 1, 0, 0, 0], qform_code=1),
        "disagree on left and right",
    ),
    "unoriented": (lambda p: save(p, brain(), sform_code=0, qform_code=0), "left and right"),
    "huge": (lambda p: save(p, brain(), dim=[3, 9999, 9999, 9999, 1, 1, 1, 1]), "claims"),
    "text": (lambda p: p.write_text("hello" * 200), "not a NIfTI file"),
    "no bytes": (lambda p: p.write_bytes(b""), "empty file"),
    "dicom": (lambda p: p.write_bytes(bytes(128) + b"DICM" + bytes(400)), "DICOM"),
    "pair": (lambda p: p.write_bytes(bytes(344) + b"ni1\0" + bytes(200)), "two-file NIfTI"),
    "cut header": (
        lambda p: p.write_bytes(save(p, brain()).read_bytes()[:347]),
        "damaged",
    ),
    "no voxels": (
        lambda p: save(p, brain(), dim=[3, 10, 0, 8, 1, 1, 1, 1]),
        "an image without voxels",
    ),
    "negative size": (
        lambda p: save(p, brain(), dim=[3, 10, -12, 8, 1, 1, 1, 1]),
        "damaged",
    ),
    "cut gzip": (lambda p: p.write_bytes(gzip.compress(brain().tobytes())[:20]), "damaged"),
    "folder": (lambda p: p.mkdir(), "no such file"),
    "missing": (lambda p: None, "no such file"),
    "dangling": (lambda p: p.symlink_to("nowhere"), "link to a file that does not exist"),
    "annexed": (
        lambda p: p.symlink_to("../.git/annex/objects/x/MD5E-s1260000000--0af.nii.gz/a"),
        r"content not fetched \(1260.0 MB\); run `datalad get` on it",
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
    with pytest.raises(InputFault, match=sentence) as refusal:
        read_volume(path, "pet")
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_file_cut_short_is_refused_wherever_it_ends(tmp_path: Path, name: str, kept: float) -> None:
    path = save(tmp_path / name, brain())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputFault, match="copy it again"):
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
    zooms = [-1.0, 1.391, 1.391, 2.031, 16.0, 0, 0, 0]  # the qform is rounded
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


# --- frames --------------------------------------------------------------------------------


def film(tmp_path: Path, name: str = "a.nii.gz", num_frames: int = 5) -> tuple[Path, Array]:
    data = np.stack([brain() + frame for frame in range(num_frames)], axis=-1)
    return save(tmp_path / name, data), data


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_frames_are_read_one_by_one_in_order(tmp_path: Path, name: str) -> None:
    path, data = film(tmp_path, name)
    frames = open_frames(path)
    assert (frames.num_frames, frames.shape) == (5, (10, 12, 8))
    assert np.array_equal(frames.affine, RAS)
    read = dict(frames.read([3, 1]))
    assert list(read) == [1, 3]
    assert all(np.array_equal(read[index], data[..., index]) for index in read)


def test_uncompressed_film_named_gz_is_read(tmp_path: Path) -> None:
    plain, data = film(tmp_path, "a.nii")
    path = tmp_path / "b.nii.gz"
    path.write_bytes(plain.read_bytes())
    ((_, frame),) = open_frames(path).read([4])
    assert np.array_equal(frame, data[..., 4])


def test_scaled_frames_have_their_units(tmp_path: Path) -> None:
    image = nib.Nifti1Image((1000 * film(tmp_path)[1]).astype(np.int16), RAS)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "b.nii.gz")
    ((_, frame),) = open_frames(tmp_path / "b.nii.gz").read([2])
    assert frame == pytest.approx(np.asarray(image.dataobj)[..., 2] * 0.5 + 3)


def test_frame_that_is_cut_off_at_16_bits_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.stack([(20000 * brain()).astype(np.int16), saturated()], -1))
    frames = open_frames(path)
    assert len(list(frames.read([0]))) == 1
    with pytest.raises(InputFault, match="3 voxels sit at the 16-bit limit"):
        list(frames.read([1]))


@pytest.mark.parametrize("fault", ["cut header", "no voxels", "negative size", "huge", "colour"])
def test_damaged_header_is_noticed_before_a_frame_is_read(tmp_path: Path, fault: str) -> None:
    make, sentence = UNUSABLE[fault]
    make(tmp_path / "scan.nii")
    with pytest.raises(InputFault, match=sentence):
        open_frames(tmp_path / "scan.nii")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_film_cut_short_is_refused_when_its_end_is_read(tmp_path: Path, name: str) -> None:
    path, _ = film(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputFault, match="copy it again"):
        list(open_frames(path).read([4]))


def test_reading_one_frame_takes_the_memory_of_one_frame(tmp_path: Path) -> None:
    import tracemalloc

    path, data = film(tmp_path, num_frames=400)
    frames = open_frames(path)
    tracemalloc.start()
    list(frames.read([399]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.nbytes / 8
