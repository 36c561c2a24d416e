"""The registry of bad input, its page, and that nothing in it is dead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mfdiff_core.errors import DataError
from mfdiff_core.faults import FAULTS, fault, page

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*ROOT.glob("mfdiff_core/**/*.py"), *ROOT.glob("platform/**/*.py")]


def test_page_in_the_docs_is_the_one_that_the_registry_makes() -> None:
    assert (ROOT / "docs" / "bad-input.md").read_text() == page()


def test_codes_are_distinct_and_in_order() -> None:
    codes = [entry.code for entry in FAULTS.values()]
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"MF-IN-\d\d", code) for code in codes)


def test_every_fault_is_raised_somewhere_and_no_other() -> None:
    text = "\n".join(path.read_text() for path in SOURCES)
    assert len(FAULTS) > 40
    assert set(re.findall(r'\bfault\(\s*"([a-z0-9-]+)"', text)) == set(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_sentence_is_one_sentence_that_fits_a_table(name: str) -> None:
    sentence = FAULTS[name].sentence
    assert not sentence.endswith(".")
    assert not set("\n|") & set(sentence)
    assert sentence.strip() == sentence
    assert "; " in sentence or ": " in sentence, "says what to do"


def test_fault_says_where_what_and_its_code() -> None:
    refusal = fault("empty", "scan.nii")
    assert isinstance(refusal, DataError)
    assert str(refusal) == f"scan.nii: {FAULTS['empty'].sentence} [{FAULTS['empty'].code}]"
    assert "scan.nii" not in refusal.sentence
