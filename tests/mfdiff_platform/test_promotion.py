"""Promote, refuse, override, roll back: a registry with models of known quality.

A fresh network restores little more than a smoothed LPET, which on the toy slices is better than
the LPET; noise in its last layers makes it worse, by as much as one likes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mfdiff_core.bundle import Provenance, load_bundle, save_bundle
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.model import ModelConfig, build_model
from mfdiff_platform.cli import run
from mfdiff_platform.errors import GateError, TrackingError
from mfdiff_platform.gates import BiasLimits, GateLimits
from mfdiff_platform.promotion import Promotion, PromotionRequest, promote, rollback
from mfdiff_platform.promotion_log import FILE, PromotionLog
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.site_model import (
    ADMITTED_TAG,
    CHAMPION,
    GATES_TAG,
    OVERRIDE_TAG,
    RESULT_TAG,
    ModelVersion,
)
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import ENVIRONMENT, Workspace

LIMITS = GateLimits(regions=BiasLimits(max_bias=0.1), activity=BiasLimits(max_bias=0.06))
GOOD, FAIR, POOR = 0.0, 0.05, 10.0
LINEAGE = {"study": "first", "trial": 3, "setting": "all"}

Register = Callable[..., ModelVersion]


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig, dataset: Dataset
) -> dict[float, Path]:
    """Bundles by the noise in their last layers."""
    found = {}
    for noise in (GOOD, FAIR, POOR):
        model = build_model(tiny_config, seed=0)
        source = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if noise and not parameter.any():
                torch.nn.init.normal_(parameter, std=noise, generator=source)
        provenance = Provenance(
            domain="toy",
            strategy="two_stage",
            iterations=1,
            seed=0,
            data=dataset.manifest.fingerprint,
            voxel_mm=2.0,
            parent="phantom-weights",
        )
        folder = tmp_path_factory.mktemp("bundles") / "bundle"
        save_bundle(folder, tiny_config, model.state_dict(), provenance)
        found[noise] = folder
    return found


@pytest.fixture
def models(store: TrackingStore) -> SiteModels:
    return SiteModels(store)


@pytest.fixture
def place(store: TrackingStore, dataset_folder: Path) -> Workspace:
    """The workspace, with the dataset of domain toy."""
    shutil.copytree(dataset_folder, store.workspace / "data" / "toy")
    return Workspace(store.workspace)


@pytest.fixture
def register(store: TrackingStore, models: SiteModels, bundles: dict[float, Path]) -> Register:
    """``register(noise, **tags)``: a new candidate."""

    def make(noise: float, **tags: Any) -> ModelVersion:
        run_id = store.find_or_create("studies", f"first/{noise}").run_id
        return models.register_candidate("toy", bundles[noise], run_id, LINEAGE | tags, "card")

    return make


def ask(place: Workspace, models: SiteModels, **more: Any) -> Promotion:
    return promote(place, models, PromotionRequest(domain="toy", limits=LIMITS, **more))


def champion(models: SiteModels) -> str:
    found = models.champion("toy")
    return str(found.id) if found else ""


def actions(place: Workspace) -> list[str]:
    return [decision.action for decision in PromotionLog(place.root).decisions("toy")]


def test_a_candidate_that_passes_becomes_champion_with_its_result_on_record(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    made = register(GOOD)
    done = ask(place, models)
    done.require()
    assert (done.before, done.champion) == ("", str(made))
    model = models.show("mfdiff-toy@champion")
    assert model.id == made
    assert model.tags[GATES_TAG] == "passed (4 gates, 3 skipped)"
    verdict = json.loads(model.tags[RESULT_TAG])
    assert verdict["weights_sha256"] == model.tags["weights_sha256"]
    assert (verdict["subjects"], verdict["slices"]) == (1, 4)
    assert "1 test subject" in verdict["notes"][0]
    (stored,) = place.root.glob("artifacts/**/gates.json")
    assert json.loads(stored.read_text()) == verdict
    load_bundle(models.resolve("mfdiff-toy@champion")).model()


def test_a_gate_that_fails_leaves_champion_alone(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    first = register(GOOD)
    ask(place, models)
    second = register(POOR)
    done = ask(place, models)
    failed = {result.gate for result in done.verdict.failed}
    assert {"gain over LPET", "gain over champion", "activity"} <= failed
    with pytest.raises(GateError, match=f"{second} is not promoted, {first} stays champion"):
        done.require()
    assert champion(models) == str(first)
    assert models.show(str(second)).tags[GATES_TAG].startswith("failed gain over LPET")
    assert actions(place) == ["promoted", "refused"]


def test_a_better_model_replaces_the_champion_and_a_tie_does_not(
    place: Workspace, models: SiteModels, register: Register, bundles: dict[float, Path]
) -> None:
    fair, good = register(FAIR), register(GOOD)
    ask(place, models, version=fair.version)
    assert champion(models) == str(fair)
    ask(place, models, version=good.version).require()
    assert champion(models) == str(good)
    again = ask(place, models, version=fair.version)
    assert [result.gate for result in again.verdict.failed] == ["gain over champion"]


def test_an_override_promotes_and_is_recorded_with_its_reason(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    made = register(POOR)
    done = ask(place, models, override="phantom study, no patients")
    done.require()
    assert done.overridden
    assert champion(models) == str(made)
    assert models.show(str(made)).tags[OVERRIDE_TAG] == "phantom study, no patients"
    (line,) = PromotionLog(place.root).decisions("toy")
    assert (line.action, line.reason) == ("overridden", "phantom study, no patients")


def test_an_override_that_is_not_needed_is_none(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    register(GOOD)
    assert not ask(place, models, override="just in case").overridden
    assert actions(place) == ["promoted"]


def test_rollback_returns_through_earlier_champions(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    order = [register(noise) for noise in (POOR, FAIR, GOOD)]
    ask(place, models, version=order[0].version, override="the first")
    for version in order[1:]:
        ask(place, models, version=version.version).require()
    assert rollback(place, models, "toy", "streaks").champion == str(order[1])
    assert champion(models) == str(order[1])
    assert rollback(place, models, "toy", "").champion == str(order[0])
    with pytest.raises(ConfigError, match=f"{order[0]} is its first champion"):
        rollback(place, models, "toy", "")
    assert actions(place)[-2:] == ["rolled back", "rolled back"]


def test_rollback_after_judging_the_champion_again_goes_to_the_one_before(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    fair, good = register(FAIR), register(GOOD)
    for version in (fair, good, good):
        ask(place, models, version=version.version).require()
    assert rollback(place, models, "toy", "").champion == str(fair)


def test_rollback_without_champions_is_refused(place: Workspace, models: SiteModels) -> None:
    with pytest.raises(ConfigError, match="it has no champion"):
        rollback(place, models, "toy", "")


@pytest.mark.parametrize("tag", ["weights_sha256", "data_fingerprint"])
def test_a_version_without_hash_or_fingerprint_cannot_be_champion_not_even_by_override(
    place: Workspace, models: SiteModels, register: Register, store: TrackingStore, tag: str
) -> None:
    made = register(GOOD)
    store.client.delete_model_version_tag(made.name, str(made.version), tag)
    with pytest.raises(GateError, match=f"no {tag}"):
        ask(place, models, override="I know what I do")
    assert champion(models) == ""
    assert actions(place) == ["refused"]


def test_a_version_without_gate_result_cannot_be_champion_by_any_way(
    place: Workspace, models: SiteModels, register: Register, store: TrackingStore
) -> None:
    made = register(GOOD)
    with pytest.raises(GateError, match="no gate_result"):
        models.set_alias(made, CHAMPION)
    store.client.set_registered_model_alias(made.name, CHAMPION, str(made.version))  # in the UI
    with pytest.raises(GateError, match="no gate_result"):
        models.resolve("mfdiff-toy@champion")


def test_what_the_gates_refused_cannot_be_champion_by_any_way(
    place: Workspace, models: SiteModels, register: Register, store: TrackingStore
) -> None:
    good, poor = register(GOOD), register(POOR)
    ask(place, models, version=good.version)
    ask(place, models, version=poor.version)
    with pytest.raises(GateError, match="gates failed gain over LPET"):
        models.set_alias(poor, CHAMPION)
    borrowed = models.show(str(good)).tags
    for tag in (RESULT_TAG, ADMITTED_TAG, GATES_TAG):
        store.client.set_model_version_tag(poor.name, str(poor.version), tag, borrowed[tag])
    with pytest.raises(GateError, match="cannot be champion"):
        models.set_alias(poor, CHAMPION)


def test_a_champion_beaten_since_can_still_be_rolled_back_to(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    fair, good = register(FAIR), register(GOOD)
    for version in (fair, good, fair):
        ask(place, models, version=version.version)
    assert champion(models) == str(good)
    assert models.show(str(fair)).tags[GATES_TAG].startswith("failed gain over champion")
    assert rollback(place, models, "toy", "").champion == str(fair)


def test_lineage_that_is_not_on_record_fails_a_gate(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    register(GOOD, study="", trial="")
    done = ask(place, models)
    assert [result.told for result in done.verdict.failed] == ["not on record: study, trial"]


def test_the_dataset_is_the_one_of_the_fingerprint(
    place: Workspace, models: SiteModels, register: Register, make_dataset: Any, tmp_path: Path
) -> None:
    register(GOOD)
    moved = tmp_path / "moved"
    shutil.move(place.dataset("toy"), moved)
    make_dataset(place.dataset("toy"), seed=7)
    with pytest.raises(DataError, match=r"which is not in .*data/toy; give its folder: --data"):
        ask(place, models)
    assert ask(place, models, data=moved).verdict.passed


def test_a_model_of_one_setting_is_judged_on_that_setting(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    register(GOOD, setting="uld")
    verdict = ask(place, models).verdict
    assert (verdict.setting, verdict.slices) == ("uld", 2)


def test_every_look_at_the_test_subjects_is_counted(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    register(GOOD)
    assert "earlier verdict" not in " ".join(ask(place, models).verdict.notes)
    assert "for 1 earlier verdict(s)" in " ".join(ask(place, models).verdict.notes)


def test_the_log_notices_a_changed_line(
    place: Workspace, models: SiteModels, register: Register
) -> None:
    register(POOR)
    for _ in range(3):
        ask(place, models)
    path = place.root / FILE
    lines = path.read_text().splitlines()
    for damaged in ([lines[0].replace("refused", "promoted"), *lines[1:]], lines[1:]):
        path.write_text("\n".join(damaged) + "\n")
        with pytest.raises(DataError, match="does not follow the line before"):
            ask(place, models)
    path.write_text("\n".join(lines) + '\n{"cut": ')
    assert len(PromotionLog(place.root).decisions()) == 3
    ask(place, models)
    assert len(PromotionLog(place.root).decisions()) == 4


def test_commands_say_the_verdict_and_end_with_their_code(
    place: Workspace,
    register: Register,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(place.root))
    gates = tmp_path / "gates.yaml"
    gates.write_text("activity: {max_bias: 0.06}\nregions: {max_bias: 0.1}\n")
    command = ["model", "promote", "--domain", "toy", "--gates", str(gates)]
    register(POOR)
    assert run(command) == 6
    captured = capsys.readouterr()
    assert "gain over LPET      failed" in captured.out
    assert "Failed gain over LPET: -" in captured.err
    assert run([*command, "--override", "for the test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overridden"] is True
    register(GOOD)
    assert run(command) == 0
    assert "champion  mfdiff-toy/2" in capsys.readouterr().out
    assert run(["model", "rollback", "--domain", "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "before": "mfdiff-toy/2",
        "champion": "mfdiff-toy/1",
    }
    assert run(["model", "log", "--json"]) == 0
    logged = json.loads(capsys.readouterr().out)["decisions"]
    assert [line["action"] for line in logged] == [
        "refused",
        "overridden",
        "promoted",
        "rolled back",
    ]
    assert run(["model", "promote", "--domain", "../x"]) == 2


def test_a_registry_out_of_reach_promotes_nothing(place: Workspace) -> None:
    away = SiteModels(TrackingStore(place.root, "http://127.0.0.1:9"))
    with pytest.raises(TrackingError):
        ask(place, away)
    assert actions(place) == []
