"""PAPER.md names what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAPER = (ROOT / "mfdiff_core" / "PAPER.md").read_text()


def test_every_test_that_the_paper_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAPER))
    trees = [ast.parse(path.read_text()) for path in ROOT.glob("tests/**/test_*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    there = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert len(named) > 50
    assert not named - there


def test_every_file_that_the_paper_page_names_exists() -> None:
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", PAPER))
    assert len(named) > 20
    folders = (ROOT / "mfdiff_core", ROOT / "tests")
    assert not {name for name in named if not any((top / name).is_file() for top in folders)}
