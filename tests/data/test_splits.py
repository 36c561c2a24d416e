from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.data.splits import PAPER_FRACTIONS, PARTS, Split, load_split, make_split
from mfdiff_core.errors import DataError

TWENTY = [f"s{number:02d}" for number in range(20)]


@pytest.mark.parametrize("count", [3, 4, 5, 20, 100])
@pytest.mark.parametrize("fractions", [PAPER_FRACTIONS, (0.6, 0.2, 0.2), (0.1, 0.1, 0.8)])
def test_split_keeps_each_subject_in_exactly_one_part(
    count: int, fractions: tuple[float, float, float]
) -> None:
    subjects = [f"s{number}" for number in range(count)]
    split = make_split(subjects, fractions, seed=1)
    shared_out = [subject for part in PARTS for subject in split.subjects(part)]
    assert sorted(shared_out) == sorted(subjects)
    assert all(split.subjects(part) for part in PARTS)


def test_twenty_phantoms_are_split_as_in_the_paper() -> None:
    split = make_split(TWENTY, PAPER_FRACTIONS, seed=0)
    assert [len(split.subjects(part)) for part in PARTS] == [16, 3, 1]


def test_split_is_a_function_of_the_seed() -> None:
    splits = [make_split(TWENTY, PAPER_FRACTIONS, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_split_depends_neither_on_order_nor_on_repetition() -> None:
    again = [*reversed(TWENTY), *TWENTY]
    assert make_split(again, PAPER_FRACTIONS, 0) == make_split(TWENTY, PAPER_FRACTIONS, 0)


@pytest.mark.parametrize("subjects", [[], ["a"], ["a", "b"], ["a", "b", "a"]])
def test_too_few_subjects_are_refused(subjects: list[str]) -> None:
    with pytest.raises(DataError, match="at least 3 are needed"):
        make_split(subjects, PAPER_FRACTIONS, 0)


def test_subject_in_two_parts_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="s1 in more than one part"):
        Split(train=("s0", "s1"), validation=("s2",), test=("s1",))


def test_part_without_subjects_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="no subject in validation"):
        Split(train=("s0",), validation=(), test=("s1",))


def test_saved_split_is_read_back(tmp_path: Path) -> None:
    split = make_split(TWENTY, PAPER_FRACTIONS, 0)
    split.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": ["a"], "validation": ["b"]}, "test: missing"),
        ({"train": ["a"], "validation": ["b"], "test": ["c"], "x": []}, "unknown key 'x'"),
        ({"train": ["a"], "validation": ["b"], "test": "abc"}, "test: expected tuple"),
        ({"train": [1], "validation": ["b"], "test": ["c"]}, "expected str, got 1"),
        ({"train": ["a"], "validation": ["b"], "test": None}, "expected tuple, got None"),
        ([], "expected a mapping"),
        ({"train": ["a"], "validation": ["b"], "test": ["a"]}, "leaks"),
    ],
)
def test_tampered_split_file_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    (tmp_path / "split.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        load_split(tmp_path / "split.json")


def test_missing_split_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split\.json: no split; a dataset needs"):
        load_split(tmp_path / "split.json")
