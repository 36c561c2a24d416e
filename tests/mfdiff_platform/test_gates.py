"""Gates on figures made by hand: each limit from both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_core.evaluation.lesions import LesionSummary
from mfdiff_core.evaluation.statistics import Estimate
from mfdiff_platform.gate_evidence import Evidence
from mfdiff_platform.gates import GateLimits, gates_file, judge, load_gates
from mfdiff_platform.names import check_name

LIMITS = load_gates(gates_file("toy"))


def gain(mean: float, low: float | None = None) -> Estimate:
    low = mean - 0.1 if low is None else low
    facts: dict[str, Any] = {"level": 0.95, "per_subject": {}, "num_slices": 4}
    return Estimate(mean=mean, low=low, high=mean + 0.1, slice_mean=mean, slice_std=0.1, **facts)


LESIONS = LesionSummary(
    num_pet_only=20,
    lost_share=0.1,
    mean_recovery=0.8,
    num_mr_only=20,
    invented_share=0.05,
    threshold=0.2,
)
GOOD = Evidence(
    model="mfdiff-toy/2",
    weights_sha256="w",
    data_fingerprint="d",
    setting="all",
    subject_names=("s1", "s2"),
    slices=8,
    champion="mfdiff-toy/1",
    missing_provenance=(),
    gain_over_lpet=gain(2.0),
    gain_over_champion=gain(0.2),
    activity_bias=(0.01, 0.015),
    region_bias={"grey matter": -0.02, "white matter": 0.01},
    lesions=LESIONS,
    notes=(),
)


def failed(evidence: Evidence, limits: GateLimits = LIMITS) -> list[str]:
    return [result.gate for result in judge(evidence, limits).failed]


def test_a_good_model_passes_every_shipped_gate() -> None:
    verdict = judge(GOOD, LIMITS)
    assert verdict.passed
    assert verdict.summary == "passed (7 gates)"
    assert {result.state for result in verdict.results} == {"passed"}


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("provenance", {"missing_provenance": ("study",)}),
        ("gain over LPET", {"gain_over_lpet": gain(0.99)}),
        ("gain over LPET", {"gain_over_lpet": gain(2.0, low=-0.01)}),
        ("gain over LPET", {"gain_over_lpet": gain(float("nan"))}),
        ("gain over champion", {"gain_over_champion": gain(0.0)}),
        ("gain over champion", {"gain_over_champion": gain(-0.1)}),
        ("activity", {"activity_bias": (0.021, 0.03)}),
        ("activity", {"activity_bias": (float("nan"), float("nan"))}),
        ("regions", {"region_bias": {"grey matter": 0.01, "white matter": -0.051}}),
        ("lesions lost", {"lesions": replace(LESIONS, lost_share=0.21)}),
        ("lesions invented", {"lesions": replace(LESIONS, invented_share=0.16)}),
    ],
)
def test_each_gate_refuses_alone_and_names_its_figure(gate: str, change: dict[str, Any]) -> None:
    verdict = judge(replace(GOOD, **change), LIMITS)
    assert [result.gate for result in verdict.failed] == [gate]
    assert not verdict.passed
    assert gate in verdict.summary
    assert verdict.failed[0].told
    assert verdict.to_dict()["passed"] is False


def test_every_gate_is_told_even_if_the_first_fails() -> None:
    bad = replace(GOOD, missing_provenance=("study",), activity_bias=(0.5, 0.5))
    assert len(judge(bad, LIMITS).results) == 7
    assert failed(bad) == ["provenance", "activity"]


def test_datasets_without_lesions_skip_the_lesion_gates_and_say_why() -> None:
    for lesions in (None, replace(LESIONS, num_pet_only=4, num_mr_only=4, lost_share=1.0)):
        verdict = judge(replace(GOOD, lesions=lesions), LIMITS)
        skipped = [result for result in verdict.results if result.state == "skipped"]
        assert [result.gate for result in skipped] == ["lesions lost", "lesions invented"]
        assert all("5 are needed" in result.told for result in skipped)
        assert verdict.passed


def test_the_first_champion_and_the_present_one_have_no_rival() -> None:
    for champion in ("", "mfdiff-toy/2"):
        verdict = judge(replace(GOOD, champion=champion, gain_over_champion=None), LIMITS)
        assert verdict.results[2].state == "skipped"


def test_a_gate_switched_off_is_told_as_skipped(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("lesions: null\nactivity: {max_bias: 0.5}\n")
    limits = load_gates(tmp_path / "g.yaml")
    bad = replace(GOOD, lesions=replace(LESIONS, lost_share=1.0), activity_bias=(0.4, 0.4))
    assert failed(bad, limits) == []
    assert judge(bad, limits).results[-1].told == "switched off in the gates file"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lesion: {}", "lesion: unknown key 'lesion'; valid keys are activity"),
        ("activity: {max_bias: -1}", "activity: max_bias must be 0 or more, got -1.0"),
        ("activity: {max_bias: .nan}", "max_bias must be 0 or more"),
        ("activity: {}", "activity.max_bias: missing"),
        ("- 1", "a mapping of gates"),
        ("a: [", "line"),
    ],
)
def test_faults_of_a_gates_file_are_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_gates(tmp_path / "g.yaml")
    with pytest.raises(ConfigError, match="no such gates file"):
        gates_file("toy", tmp_path / "nowhere.yaml")


def test_every_shipped_gates_file_is_read() -> None:
    folder = gates_file("toy").parent
    files = sorted(folder.glob("*.yaml"))
    assert files
    for path in files:
        check_name("domain", path.stem)
        load_gates(path)
