from __future__ import annotations

from pathlib import Path

import pytest

from mfdiff_core.errors import DataError
from mfdiff_core.files import atomic_path, read_json, sha256_file, sha256_text, write_json


class Interrupted(Exception):
    pass


def content(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` and its text, hidden ones included."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def write_folder(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / f"{text}.txt").write_text(text)


def interrupted_write(path: Path, *, folder: bool = False) -> None:
    with atomic_path(path) as temporary:
        if folder:
            temporary.mkdir()
        (temporary / "a.txt" if folder else temporary).write_text("half")
        raise Interrupted


def test_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert content(tmp_path) == {"a.txt": "new"}


def test_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(Interrupted):
        interrupted_write(tmp_path / "a.txt")
    assert content(tmp_path) == {"a.txt": "old"}


def test_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        interrupted_write(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "state", "old")
    write_folder(tmp_path / "state", "new")
    assert content(tmp_path) == {"state/new.txt": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_failed_folder_write_keeps_the_old_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "state", "old")
    with pytest.raises(Interrupted):
        interrupted_write(tmp_path / "state", folder=True)
    assert content(tmp_path) == {"state/old.txt": "old"}


def test_parent_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {}


def test_json_survives_a_round_trip_with_sorted_keys(tmp_path: Path) -> None:
    values = {"b": [1, 2.5, None], "a": {"x": "ü"}}
    write_json(tmp_path / "v.json", values)
    assert read_json(tmp_path / "v.json") == values
    assert (tmp_path / "v.json").read_text().index('"a"') < 10


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"v\.json: no such file"):
        read_json(tmp_path / "v.json")


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"\x00"])
def test_damaged_json_is_a_data_error_that_names_the_file(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "v.json").write_bytes(damaged)
    with pytest.raises(DataError, match=r"v\.json: cannot be read as JSON"):
        read_json(tmp_path / "v.json")


def test_folder_in_place_of_json_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == sha256_text("abc") == known
