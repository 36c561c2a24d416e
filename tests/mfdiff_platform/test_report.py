from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.outcome import Outcome, Row
from mfdiff_platform.report import markdown_table, model_card, table_row, write_report
from mfdiff_platform.study import PAPER_RECIPE, Study, StudyRequest, claim_study

EVIL = "</td><script src='http://evil.example/x.js'></script>[/b]"
POINT = {"strategy": "two_stage", "iterations": 30, "freeze": "encoders"}


def row(name: str, psnr: float) -> Row:
    people = {p: {"psnr": psnr + d, "ssim": 0.9, "nmse": 0.01} for p, d in (("a", -1), ("b", 1))}
    intervals = {"psnr": (psnr - 1, psnr + 1), "ssim": (0.8, 1.0), "nmse": (0.0, 0.02)}
    return Row(name, psnr, 0.9, 0.01, intervals, people, {}, 2, 8)


OUTCOME = Outcome(
    (
        row("LPET", 20.0),
        row("LPET <&> Gaussian", 24.5),
        row(PAPER_RECIPE, 28.0),
        row("best trial", 29.25),
    ),
    4,
    "Scaled to the SPET's maximum.",
    1,
)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Three references, one failed point, one best point."""
    request = StudyRequest(
        name="leeds",
        domain="ood3",
        data="",
        data_fingerprint="f" * 64,
        phantom="",
        pretrained="",
        pretrained_sha256="0" * 64,
        setting="",
        space="parameters:\n  lr: {value: 1e-4}\n",
    )
    study = claim_study(tmp_path, request)
    for number, (name, recipe) in enumerate(request.references().items()):
        add(study, number, name, to_dict(recipe), "finished", 25.0 + number)
    add(study, 3, "", POINT, "failed", None, EVIL)
    add(study, 4, "", POINT, "finished", 30.0)
    return study


def add(
    study: Study,
    number: int,
    name: str,
    recipe: dict[str, Any],
    state: str,
    psnr: float | None,
    reason: str = "",
) -> None:
    study.ledger.add({"recipe": recipe, "reference": name, "distributions": None}, number)
    metrics = {} if psnr is None else {"psnr": psnr}
    study.ledger.update(number, state=state, metrics=metrics, reason=reason)


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_page_needs_no_other_file_and_no_network(study: Study) -> None:
    path = write_report(study, OUTCOME)
    page = Page(path)
    assert page.addresses
    for address in page.addresses:
        assert base64.b64decode(address.removeprefix("data:image/png;base64,"))[1:4] == b"PNG"
    assert not {"script", "link", "iframe", "a"} & set(page.tags)
    assert not re.search(r"url\(|@import", path.read_text())


def test_names_and_reasons_are_text_and_never_markup(study: Study) -> None:
    page = Page(write_report(study, OUTCOME))
    assert "script" not in page.tags
    assert EVIL in page.text
    assert "LPET <&> Gaussian" in page.text


def test_page_shows_every_row_every_trial_and_the_gain(study: Study) -> None:
    text = Page(write_report(study, OUTCOME)).text
    for shown in OUTCOME.rows:
        assert f"{shown.name} {shown.psnr:.2f} {shown.psnr - 1:.2f} to" in text
    for name in ("external", PAPER_RECIPE, "internal", "search"):
        assert f"· {name} " in text
    assert "+1.25 dB against the paper's recipe" in text
    assert OUTCOME.definition in text
    assert "looked at 1 time(s)" in text


def test_page_says_what_it_is_not(study: Study) -> None:
    text = Page(write_report(study, OUTCOME)).text
    assert "not a medical device" in text
    assert "simulated, not measured on a scanner" in text


def test_page_gives_the_winning_recipe_in_full(study: Study) -> None:
    import yaml

    written = write_report(study, OUTCOME).read_text()
    (recipe,) = re.findall("<pre>(.*?)</pre>", written, re.S)
    assert from_dict(Recipe, yaml.safe_load(recipe)["recipe"]) == from_dict(Recipe, POINT)


def test_markdown_table_has_a_line_per_row_and_its_definition() -> None:
    text = markdown_table(OUTCOME)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:6]] == [
        f"| {row.name}" for row in OUTCOME.rows
    ]
    assert "| best trial | 29.25 | 0.9000 | 0.0100 |" in text
    assert "8 slices of 2 held-out test subjects." in text
    assert OUTCOME.definition in text


def test_model_card_names_study_trial_recipe_data_and_limits(study: Study) -> None:
    card = model_card(study, OUTCOME)
    for part in ("study `leeds`, trial 4", "freeze: encoders", "`ffffffffffffffff`", "stand-ins"):
        assert part in card
    assert "Research use only" in card


def test_row_as_columns_is_what_the_row_says() -> None:
    columns = table_row(OUTCOME.rows[-1])
    assert (columns["name"], columns["psnr"], columns["psnr 95 %"]) == (
        "best trial",
        29.25,
        "28.25 to 30.25",
    )
