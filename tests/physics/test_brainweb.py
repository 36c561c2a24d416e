from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mfdiff_core.errors import DataError
from mfdiff_core.physics import brainweb
from mfdiff_core.physics.brainweb import SHAPE, brainweb_anatomy, find_brainweb, read_brainweb
from mfdiff_core.physics.phantom import FINE_MM, Tissue

REAL = os.environ.get("MFDIFF_TEST_DATA")


def raw_head(extra: int = 0) -> NDArray[np.uint16]:
    """A box head with every class in it, encoded as the real files are: 16 x class + low bits."""
    values = np.zeros(SHAPE, "<u2")
    values[60:300, 60:380, 60:300] = 16 * Tissue.GREY
    values[100:260, 150:300, 100:260] = 16 * Tissue.WHITE
    for tissue in Tissue:
        values[200, 70 + tissue, 70:80] = 16 * tissue + (tissue >= Tissue.CONNECTIVE)
    values[0, 0, 0] = extra
    return values


@pytest.fixture(scope="module")
def packed() -> bytes:
    return gzip.compress(raw_head().tobytes(), 1)


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_reader_keeps_the_classes_with_low_bits(tmp_path: Path, packed: bytes) -> None:
    labels = read_brainweb(written(tmp_path, "subject_04.bin.gz", packed))
    assert labels.shape == SHAPE
    assert [int(labels[200, 70 + t, 75]) for t in Tissue] == list(Tissue)


def test_reader_takes_unpacked_files(tmp_path: Path, packed: bytes) -> None:
    path = written(tmp_path, "subject_04.bin", gzip.decompress(packed))
    assert (read_brainweb(path) == Tissue.WHITE).sum() > 1e6


def test_all_file_names_are_known(tmp_path: Path) -> None:
    names = {
        "subject_04.bin.gz": "brainweb-04",
        "subject_54.bin": "brainweb-54",
        "brainWeb_subject_1.raws.gz": "brainweb-05",
        "brainWeb_subject_18.raws.gz": "brainweb-53",
    }
    for name in (*names, "notes.txt", "brainWeb_subject_20.raws.gz"):
        written(tmp_path, name, b"")
    assert {p.name: n for n, p in find_brainweb(tmp_path).items()} == names


def test_a_subject_in_two_forms_is_one_subject(tmp_path: Path) -> None:
    for name in ("subject_04.bin.gz", "brainWeb_subject_0.raws.gz"):
        written(tmp_path, name, b"")
    assert list(find_brainweb(tmp_path)) == ["brainweb-04"]


def test_there_are_twenty_subjects() -> None:
    assert len(set(brainweb.SUBJECT_IDS)) == 20


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no BrainWeb files"):
        find_brainweb(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find_brainweb(tmp_path / "nowhere")


def test_wrong_size_is_refused_with_the_file_named(tmp_path: Path) -> None:
    path = written(tmp_path, "subject_05.bin.gz", gzip.compress(b"\0" * 1000))
    with pytest.raises(DataError, match=r"subject_05\.bin\.gz: 1000 bytes unpacked"):
        read_brainweb(path)


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_truncated_gzip_is_refused_with_the_file_named(
    tmp_path: Path, packed: bytes, kept: float
) -> None:
    path = written(tmp_path, "subject_06.bin.gz", packed[: int(kept * len(packed))])
    with pytest.raises(DataError, match=r"subject_06\.bin\.gz: truncated or damaged gzip"):
        read_brainweb(path)


def test_flipped_byte_is_refused(tmp_path: Path, packed: bytes) -> None:
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 0x10
    path = written(tmp_path, "subject_06.bin.gz", bytes(damaged))
    with pytest.raises(DataError, match=r"subject_06\.bin\.gz"):
        read_brainweb(path)


def test_unknown_labels_are_refused_and_shown(tmp_path: Path) -> None:
    path = written(tmp_path, "subject_18.bin", raw_head(extra=12 * 16).tobytes())
    with pytest.raises(DataError, match=r"subject_18\.bin: values \[192\]"):
        read_brainweb(path)


def test_volume_without_grey_matter_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "subject_20.bin", np.zeros(SHAPE, "<u2").tobytes())
    with pytest.raises(DataError, match="no grey matter"):
        read_brainweb(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"subject_04\.bin: cannot be read"):
        read_brainweb(tmp_path / "subject_04.bin")


def test_slices_keep_size_and_orientation(tmp_path: Path, packed: bytes) -> None:
    path = written(tmp_path, "subject_04.bin.gz", packed)
    anatomy = brainweb_anatomy(path, np.array([0.0, 500.0], np.float32))
    white = np.argwhere(anatomy.labels[0] == Tissue.WHITE) * FINE_MM
    assert np.ptp(white[:, 0]) == pytest.approx(75, abs=1.5)
    assert np.ptp(white[:, 1]) == pytest.approx(80, abs=1.5)
    grey = np.argwhere(anatomy.labels[0] == Tissue.GREY) * FINE_MM
    # the white box lies towards the front of the volume's y axis: up in the image
    assert white[:, 0].mean() < grey[:, 0].mean() - 2
    assert not anatomy.labels[1].any()


@pytest.mark.skipif(REAL is None, reason="MFDIFF_TEST_DATA names no folder with real files")
def test_real_subject_holds_all_classes_in_human_amounts() -> None:
    found = find_brainweb(Path(str(REAL)) / "brainweb")
    labels = read_brainweb(found["brainweb-04"])
    volume_ml = np.bincount(labels.ravel(), minlength=12) * 0.125 / 1e3
    assert (volume_ml > 0).all()
    assert 600 < volume_ml[Tissue.GREY] < 1200
    assert 400 < volume_ml[Tissue.WHITE] < 900
