from __future__ import annotations

import base64
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.known import Known, point_of
from mfdiff_platform.outcome import Outcome, Row
from mfdiff_platform.recipe_file import RECIPE, read_recipe
from mfdiff_platform.report import markdown_table, model_card, table_row, write_report
from mfdiff_platform.search_summary import importance, saving
from mfdiff_platform.study import PAPER_RECIPE, Study, StudyRequest, claim_study
from mfdiff_platform.suggestion import Suggestion

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


def test_page_tells_points_that_a_study_was_given_from_those_it_searched(study: Study) -> None:
    Known(points=(Suggestion(0, POINT),)).save(study.folder)
    text = Page(write_report(study, OUTCOME)).text
    assert "3 · tried first " in text
    assert "4 · search " in text


def test_page_says_what_it_is_not(study: Study) -> None:
    text = Page(write_report(study, OUTCOME)).text
    assert "not a medical device" in text
    assert "simulated, not measured on a scanner" in text


def test_page_gives_the_winning_recipe_in_full(study: Study) -> None:
    import yaml

    written = write_report(study, OUTCOME).read_text()
    (recipe,) = re.findall("<pre>(.*?)</pre>", written, re.S)
    assert from_dict(Recipe, yaml.safe_load(unescape(recipe))["recipe"]) == from_dict(Recipe, POINT)


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


SPACE = """
parameters:
  iterations: {value: 90}
  lr: {low: 1e-4, high: 1e-2, log: true}
  schedule: {choices: [constant, cosine]}
  freeze: {choices: [none, encoders]}
  unfreeze_at: {choices: [1.0, 0.5], when: {freeze: encoders}}
"""


@pytest.fixture
def searched(tmp_path: Path) -> Study:
    """Three references, eight full points whose learning rate decides, two stopped ones."""
    request = StudyRequest(
        name="searched",
        domain="toy",
        data="",
        data_fingerprint="",
        phantom="",
        pretrained="",
        pretrained_sha256="",
        setting="",
        space=SPACE,
        metrics=("psnr", "bias"),
    )
    study = claim_study(tmp_path / "w/studies/searched", request)
    for number, (name, recipe) in enumerate(request.references().items()):
        study.ledger.add({"recipe": to_dict(recipe), "reference": name, "distributions": None})
        end(study, number, "finished", 25.0 + number, recipe.iterations)
    for number in range(3, 13):
        lr = 1e-4 * 10 ** ((number - 3) / 5)
        drawn: dict[str, Any] = {"iterations": 90, "lr": lr, "schedule": "cosine", "freeze": "none"}
        if number % 2:
            drawn |= {"freeze": "encoders", "unfreeze_at": 0.5}
        point = point_of(request.search_space(), drawn)
        assert point is not None
        config = {"recipe": drawn, "reference": "", "distributions": point.distributions}
        study.ledger.add(config, number)
        stopped = number > 10
        state, iterations = ("pruned", 10) if stopped else ("finished", 90)
        end(study, number, state, 20.0 + number, iterations)
    return study


def end(study: Study, number: int, state: str, psnr: float, iterations: int) -> None:
    metrics = {"psnr": psnr, "bias": 0.1 + psnr / 100}
    study.ledger.update(number, state=state, metrics=metrics, iterations=iterations)


def test_importance_finds_the_parameter_that_decides(searched: Study) -> None:
    found = importance(searched)
    assert max(found, key=lambda name: found[name]) == "lr"


def test_page_tells_what_mattered_what_was_saved_and_the_best_compromises(
    searched: Study,
) -> None:
    page = Page(write_report(searched, replace(OUTCOME, best=10)))
    assert "Importance of each parameter" in page.text
    assert "Early stopping ended 2 trials" in page.text
    saved = saving(searched)
    assert (saved.stopped, saved.done, saved.full) == (2, 10 * 90 + 20, 12 * 90)
    # Bias grows with PSNR, so no finished trial beats another in both.
    assert page.text.count("Best compromises") == 1
    assert [record.number for record in searched.pareto()] == [*range(11)]


def test_few_points_have_no_importance(study: Study) -> None:
    assert importance(study) == {}


def test_page_shows_each_subject_and_each_seed(study: Study) -> None:
    rows = (*OUTCOME.rows[:-1], replace(OUTCOME.rows[-1], seed_psnr=(29.0, 29.5)))
    text = Page(write_report(study, replace(OUTCOME, rows=rows))).text
    assert "Per subject" in text
    assert "29.00, 29.50" in text


def test_recipe_beside_the_page_can_be_read_again(study: Study) -> None:
    write_report(study, OUTCOME)
    file = read_recipe(study.folder / RECIPE)
    assert file.recipe == from_dict(Recipe, POINT)
    assert file.pretrained_sha256 == study.request.pretrained_sha256
