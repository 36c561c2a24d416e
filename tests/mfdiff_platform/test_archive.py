"""Archives from strangers: everything that could leave the folder, run, or fill the disk."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.errors import DataError
from mfdiff_platform import archive as archive_module
from mfdiff_platform.archive import LIST, read_archive, write_archive

Forge = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in (("a.json", b"{}"), ("w.safetensors", b"w" * 4000), ("c.json", b"{}")):
        (folder / name).write_bytes(content)
    return {f"runs/x/{path.name}": path for path in sorted(folder.iterdir())}


def entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """``forge(contents, ...)``: a zip as an attacker would write it, list and all."""

    def make(
        contents: dict[str, bytes],
        listed: dict[str, Any] | None = None,
        mode: int = 0,
        **facts: Any,
    ) -> Path:
        path = tmp_path / "forged.zip"
        if listed is None:
            listed = {name: entry(content) for name, content in contents.items()}
        described = {"format": 1, "kind": "test", "facts": {}, "files": listed} | facts
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bag:
            bag.writestr(LIST, json.dumps(described))
            for name, content in contents.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                bag.writestr(info, content)
        return path

    return make


def refused(path: Path, words: str) -> None:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(DataError, match=words), read_archive(path, "test", scratch):
        pass
    assert sorted(path.parent.rglob("*")) == before  # nothing is left, inside or out


def test_files_arrive_as_they_left_under_their_own_names(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "out.zip"
    write_archive(path, "test", {"n": 1}, files)
    with zipfile.ZipFile(path) as bag:
        assert len(bag.infolist()) == 3  # the list, and each distinct content once
    with read_archive(path, "test", tmp_path) as arrived:
        assert arrived.facts == {"n": 1}
        assert {name: p.read_bytes() for name, p in arrived.files.items()} == {
            name: p.read_bytes() for name, p in files.items()
        }
        assert all(Path(name).name == p.name for name, p in arrived.files.items())
        assert set(arrived.below("runs/x")) == {"a.json", "c.json", "w.safetensors"}
        places = list(arrived.files.values())
    assert not any(place.exists() for place in places)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "a/../../evil.json",
        "/etc/evil.json",
        "..\\evil.json",
        "C:evil.json",
        "a//b.json",
        "a/./b.json",
        "a\n.json",
        ".hidden.json",
        "a/.ssh/b.json",
        "x" * 600 + ".json",
        "",
    ],
)
def test_names_that_leave_the_folder_are_refused(forge: Forge, name: str) -> None:
    refused(forge({name: b"{}"}), "no allowed name|disagree")


@pytest.mark.parametrize(
    "name",
    ["model.pkl", "weights.pt", "weights.pth", "a.bin", "run.py", "MLmodel", "page.html", "a.so"],
)
def test_kinds_that_could_execute_do_not_travel(forge: Forge, name: str) -> None:
    refused(forge({f"runs/{name}": b"x"}), "do not travel")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_special_files_are_refused(forge: Forge, kind: int) -> None:
    refused(forge({"a.json": b"/etc/passwd"}, mode=kind | 0o777), "link or a special file")


def test_content_that_is_not_what_the_list_says_is_refused(forge: Forge) -> None:
    refused(forge({"a.json": b"{}"}, {"a.json": entry(b"[]")}), "match its hash")
    refused(forge({"a.json": b"{}"}, {"a.json": entry(b"{} ")}), "another size")
    refused(forge({"a.json": b"{}", "b.json": b"1"}, {"a.json": entry(b"{}")}), "disagree")
    refused(forge({}, {"a.json": entry(b"{}")}), "disagree")


def test_two_entries_of_one_name_are_refused(forge: Forge, tmp_path: Path) -> None:
    path = forge({"a.json": b"{}"})
    with zipfile.ZipFile(path, "a") as bag, pytest.warns(UserWarning, match="Duplicate"):
        bag.writestr("a.json", b"[]")
    refused(path, "two of one name")


def test_a_bomb_is_refused_before_it_is_unpacked(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MAX_BYTES", 10_000)
    refused(forge({"a.txt": b"0" * 20_000}), "unpacks to 20000 bytes, 10000 are allowed")
    monkeypatch.setattr(archive_module, "MAX_LIST_BYTES", 100)
    refused(forge({"a.txt": b"0"}), "larger than 100 bytes")
    monkeypatch.setattr(archive_module, "MAX_LIST_BYTES", 10**6)
    monkeypatch.setattr(archive_module, "MAX_FILES", 2)
    refused(forge({f"{n}.txt": b"%d" % n for n in range(3)}), "too many entries")


def test_an_entry_that_unpacks_to_more_than_it_says_is_cut_off(forge: Forge) -> None:
    content = b"0" * 50_000
    path = forge({"a.txt": content}, {"a.txt": entry(content[:10])})
    data = path.read_bytes()
    # Lie about the size in the zip's own directory, as the list does.
    where = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    path.write_bytes(data[: where + 24] + (10).to_bytes(4, "little") + data[where + 28 :])
    refused(path, "more than it says|match its hash|not a readable")


@pytest.mark.parametrize(
    "facts",
    [
        {"format": 2},
        {"kind": "study"},
        {"facts": []},
        {"files": []},
        {"files": {"a.json": {"bytes": -1, "sha256": "00"}}},
        {"files": {"a.json": {"bytes": True, "sha256": "00"}}},
        {"files": {"a.json": {"bytes": 2, "sha256": "xx"}}},
        {"files": {"a.json": 3}},
    ],
)
def test_lists_of_another_make_are_refused(forge: Forge, facts: dict[str, Any]) -> None:
    refused(forge({}, **facts), r"not an archive of this program|not a test archive")


def test_what_is_no_zip_or_was_damaged_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "out.zip"
    refused(path, "no such archive")
    write_archive(path, "test", {}, files)
    whole = path.read_bytes()
    for broken in (b"", b"hello", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        refused(path, "not a readable archive")
    places = range(40, len(whole) - 30, max(1, len(whole) // 60))
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        path.write_bytes(bytes(flipped))
        try:
            with read_archive(path, "test", tmp_path) as arrived:
                same = {n: p.read_bytes() for n, p in arrived.files.items()}
        except DataError:
            continue
        assert same == {name: p.read_bytes() for name, p in files.items()}


def test_links_do_not_leave(files: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="not a plain file"):
        write_archive(tmp_path / "out.zip", "test", {}, files | {"l.json": link})
    assert not (tmp_path / "out.zip").exists()
