from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core import files
from mfdiff_core.errors import DataError
from mfdiff_platform.ledger import Ledger, TrialRecord, config_key


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "trials")


def test_a_trial_reads_back_as_it_was_written(ledger: Ledger) -> None:
    ledger.add({"strategy": "two_stage", "lr": 1e-4, "groups": [1, 2]})
    ledger.update(
        0,
        state="finished",
        metrics={"psnr": 30.1},
        bundle="trials/0000/bundle",
        seconds=2.5,
        iterations=100,
    )
    assert Ledger(ledger.folder)[0] == TrialRecord(
        number=0,
        config={"strategy": "two_stage", "lr": 1e-4, "groups": [1, 2]},
        state="finished",
        metrics={"psnr": 30.1},
        bundle="trials/0000/bundle",
        seconds=2.5,
        iterations=100,
    )


def test_a_trial_is_one_readable_file_named_by_its_number(ledger: Ledger) -> None:
    ledger.add({"lr": 1}, number=3)
    (path,) = ledger.folder.iterdir()
    assert path.name == "0003.json"
    assert json.loads(path.read_text())["config"] == {"lr": 1}


def test_numbers_go_up_and_are_never_taken_twice(ledger: Ledger) -> None:
    assert [ledger.add({}).number, ledger.add({}, 12_000).number, ledger.add({}).number] == [
        0,
        12_000,
        12_001,
    ]
    assert [record.number for record in ledger] == [0, 12_000, 12_001]
    with pytest.raises(DataError, match="recorded already"):
        ledger.add({}, number=0)


def test_trials_are_sorted_by_how_they_ended(ledger: Ledger) -> None:
    for state in ("running", "finished", "pruned", "failed"):
        ledger.update(ledger.add({}).number, state=state)
    assert [record.number for record in ledger.finished()] == [1]
    assert [record.number for record in ledger.ended()] == [1, 2, 3]
    assert [record.number for record in ledger.in_state("running", "failed")] == [0, 3]
    assert len(ledger) == 4


def test_a_config_is_found_whatever_its_order_and_number_type(ledger: Ledger) -> None:
    ledger.add({"lr": 1e-4, "warmup": 50, "replay": 1.0})
    found = ledger.find({"replay": 1, "warmup": 50, "lr": 0.0001})
    assert found is not None
    assert found.number == 0
    assert ledger.find({"lr": 2e-4, "warmup": 50, "replay": 1}) is None


def test_of_equal_configs_the_one_that_got_furthest_is_found(ledger: Ledger) -> None:
    for state in ("failed", "finished", "pruned"):
        ledger.update(ledger.add({"lr": 1}).number, state=state)
    found = ledger.find({"lr": 1})
    assert found is not None
    assert found.state == "finished"


def test_the_key_tells_configs_apart() -> None:
    configs: list[dict[str, Any]] = [
        {"a": 1},
        {"a": "1"},
        {"a": True},
        {"a": None},
        {"b": 1},
        {"a": [1]},
        {"a": 1.5},
    ]
    assert len({config_key(config) for config in configs}) == len(configs)


def test_metrics_that_are_not_finite_survive_as_strict_json(ledger: Ledger) -> None:
    ledger.add({})
    ledger.update(0, metrics={"loss": math.nan, "psnr": math.inf, "ssim": 0.5})
    text = (ledger.folder / "0000.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    metrics = ledger[0].metrics
    assert math.isnan(metrics["loss"])
    assert metrics["psnr"] == math.inf


def test_what_a_kill_leaves_behind_is_passed_over(ledger: Ledger) -> None:
    ledger.add({"lr": 1})
    (ledger.folder / ".0001.json.4711.tmp").write_text('{"number": 1, "conf')
    assert [record.number for record in ledger] == [0]
    assert ledger.add({}).number == 1


def test_a_kill_while_writing_leaves_the_old_record(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add({"lr": 1})

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_sync_tree", die)
    with pytest.raises(KeyboardInterrupt):
        ledger.update(0, state="finished")
    assert ledger[0].state == "running"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"number": 0', '"number": 1'),
        lambda text: text.replace('"lr": 1', '"lr": 2'),
        lambda text: text.replace('"state": "running"', '"state": "runing"'),
        lambda text: text.replace('"seconds"', '"second"'),
    ],
)
def test_a_damaged_record_is_named(ledger: Ledger, damage: object) -> None:
    ledger.add({"lr": 1})
    path = ledger.folder / "0000.json"
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"0000\.json"):
        list(ledger)


def test_a_trial_that_is_not_there_is_named(ledger: Ledger) -> None:
    with pytest.raises(DataError, match=r"0007\.json"):
        ledger.update(7, state="finished")


def test_unknown_states_and_negative_numbers_are_refused(ledger: Ledger) -> None:
    ledger.add({})
    with pytest.raises(ValueError, match=r"self\.state='done'"):
        ledger.update(0, state="done")
    with pytest.raises(ValueError, match="0 or more"):
        ledger.add({}, number=-1)
