"""`compare`: from a dataset to a table, once, twice and after an interruption."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner

from mfdiff_core.comparison.fb_sem import FBSEMConfig
from mfdiff_core.config import override
from mfdiff_core.data.batches import Batch, BatchStream
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import read_json, write_json
from mfdiff_core.model import MODELS, ModelConfig, RestorationModel, preset
from mfdiff_core.training.loop import Event, Validated, train
from mfdiff_core.training.state import TrainState
from mfdiff_core.training.strategies import Recipe, Strategy, start
from mfdiff_platform import (
    compare_plan,
    compare_restoration,
    compare_training,
    compare_workers,
)
from mfdiff_platform.cli import cli
from mfdiff_platform.cluster import Cluster, Resources
from mfdiff_platform.compare import Compared, _name, compare
from mfdiff_platform.compare_bench import open_bench
from mfdiff_platform.compare_facts import facts
from mfdiff_platform.compare_plan import (
    CompareScale,
    Comparison,
    Method,
    default_recipe,
    own,
    table,
)
from mfdiff_platform.compare_restoration import Restoration
from mfdiff_platform.compare_training import Trained, find_trained
from mfdiff_platform.durable import locked
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

MakeDataset = Callable[..., Path]
TORCH = f"torch {torch.__version__} on 1 CPU thread"
COSTS = ("training_s", "slice_s")
EVALUATIONS = {
    **{"LPET": "", "LPET, Gaussian": "", "LPET, non-local means": ""},
    **{"M-UNet": "1", "FB-SEM": "12", "EA-GAN": "1", "Hi-Net": "1", "CNCL": "1"},
    **{"CSRD, mean of 2": "10", "CSRD": "5"},
    **{"MFdiff (paper), mean of 2": "6", "MFdiff (paper)": "20"},
    **{"MFdiff, mean of 2": "4", "MFdiff": "2"},
}
"""Of Table 1's rows, with the shortened chains of `few_steps`."""


def few_steps(name: str, system: str = "mfdiff") -> Any:
    """Presets with long chains cut short: the paper's thousand steps to 20, CSRD's 18 to 3."""
    config = preset(name, system)
    if system == "csrd":
        return override(config, {"num_steps": 3})
    if name != "paper" or system != "mfdiff":
        return config
    return override(config, {"diffusion.num_steps": 20, "sampler.num_evaluations": 20})


@pytest.fixture
def workspace(
    tmp_path: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    monkeypatch.setattr(compare_plan, "preset", few_steps)
    workspace = Workspace(tmp_path / "workspace")
    geometry = FBSEMConfig().geometry
    make_dataset(workspace.dataset("phantom"), "phantom", sinograms=geometry)
    make_dataset(workspace.dataset("site"), "site", seed=1)
    return workspace


def with_the_data_of(workspace: Workspace, tmp_path: Path) -> Workspace:
    """Another workspace that has trained nothing yet."""
    fresh = Workspace(tmp_path / "fresh")
    fresh.root.mkdir()
    (fresh.root / "data").symlink_to(workspace.root / "data")
    return fresh


def scale(**changes: Any) -> CompareScale:
    recipe = replace(default_recipe("tiny", 2, 2), warmup=0)
    small = {"size": "tiny", "recipe": recipe, "adapt_iterations": 1, "samples": 2}
    return CompareScale(**{**small, "test_slices": 1, **changes})


def numbers(compared: Compared) -> Any:
    """All of a table's JSON but wall times."""
    values = read_json(compared.folder / "table.json")
    for row in values["rows"]:
        for name in COSTS if row["cost"] else ():
            del row["cost"][name]
    return values


def test_comparison_is_the_same_twice_and_trains_once(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = own(["m-unet", "fb-sem", "csrd"], "phantom", 2)
    first = numbers(compare(workspace, store, chosen, scale()))
    fresh = with_the_data_of(workspace, tmp_path)
    assert numbers(compare(fresh, store, chosen, scale())) == first
    monkeypatch.setattr(compare_training, "train", lambda *_, **__: pytest.fail("trained again"))
    assert numbers(compare(workspace, store, chosen, scale())) == first


def test_interrupted_comparison_goes_on_from_its_checkpoint(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen, longer = own(["m-unet"], "phantom", 1), replace(scale().recipe, iterations=4)
    straight = numbers(compare(workspace, store, chosen, scale(recipe=longer)))
    fresh = with_the_data_of(workspace, tmp_path)
    steps: list[int] = []

    def stopping(state: Any, batches: Any, *args: Any, **settings: Any) -> Any:
        def watched(step: int) -> Any:
            steps.append(step)
            if len(steps) == 3:
                raise KeyboardInterrupt
            return batches(step)

        return train(state, watched, *args, **settings)

    monkeypatch.setattr(compare_training, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(fresh, store, chosen, scale(recipe=longer))
    again = numbers(compare(fresh, store, chosen, scale(recipe=longer)))
    assert steps == [0, 1, 2, 2, 3]
    assert again == straight


def test_interrupted_restoration_keeps_the_slices_it_has(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compare_restoration, "BATCH_SIZE", 1)
    chosen = own(["csrd"], "phantom", 1)
    straight = numbers(compare(workspace, store, chosen, scale()))
    fresh = with_the_data_of(workspace, tmp_path)
    starts, restore_batch = [], compare_restoration._restore_batch

    def stopping(model: Any, slices: Any, rows: slice, *more: Any) -> Restoration:
        starts.append(rows.start)
        if len(starts) == 2:
            raise KeyboardInterrupt
        return restore_batch(model, slices, rows, *more)

    monkeypatch.setattr(compare_restoration, "_restore_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(fresh, store, chosen, scale())
    assert numbers(compare(fresh, store, chosen, scale())) == straight
    assert starts == [0, 1, 1]
    assert not list(fresh.comparison("restored").glob("*.parts"))


def test_chains_hold_rows_that_begin_with_the_same_training(workspace: Workspace) -> None:
    bench = open_bench(workspace, table("table1", 8), scale())
    assert [[row.label for row in chain] for chain in bench.chains()] == [
        *(["M-UNet"], ["FB-SEM"], ["EA-GAN"], ["Hi-Net"], ["CNCL"]),
        *(["CSRD, mean of 8", "CSRD"], ["MFdiff (paper), mean of 8", "MFdiff (paper)"]),
        ["MFdiff, mean of 8", "MFdiff"],
    ]
    stages: tuple[Strategy, ...] = ("external", "internal", "two_stage")
    methods = tuple(Method(label=stage, system="m-unet", strategy=stage) for stage in stages)
    staged = Comparison(name="stages", title="t", domain="site", methods=methods)
    chains = open_bench(workspace, staged, scale()).chains()
    assert [[row.label for row in chain] for chain in chains] == [
        ["external", "two_stage"],
        ["internal"],
    ]


@pytest.mark.ray
def test_rows_side_by_side_are_those_of_one_process(
    workspace: Workspace, store: TrackingStore, tmp_path: Path, ray_cluster: Cluster
) -> None:
    chosen, longer = own(["m-unet", "munet"], "site", 1), replace(scale().recipe, iterations=3)
    straight = numbers(compare(workspace, store, chosen, scale(recipe=longer)))
    fresh = with_the_data_of(workspace, tmp_path)
    beside = compare(fresh, store, chosen, scale(recipe=longer), concurrent=2)
    assert numbers(beside) == straight
    assert not list(fresh.comparison("at-work").iterdir())


@pytest.mark.ray
def test_a_row_whose_worker_is_killed_goes_on_from_its_checkpoint(
    workspace: Workspace, store: TrackingStore, tmp_path: Path, ray_cluster: Cluster
) -> None:
    chosen = own(["m-unet", "munet"], "phantom", 1)
    longer = scale(recipe=replace(scale().recipe, iterations=160))
    straight = numbers(compare(workspace, store, chosen, longer))
    fresh = with_the_data_of(workspace, tmp_path)
    title = f"ray::compare:{chosen.name}:M-UNet"
    left: set[int] = set()
    after: set[int] = set()
    killed: list[int] = []
    ended = Flag()

    def checkpoints() -> set[int]:
        found = fresh.root.glob("comparisons/models/m-unet-*/checkpoints/step_*")
        return {int(folder.name.removeprefix("step_")) for folder in found}

    def kill_half_way() -> None:
        while max(checkpoints(), default=0) < 80 and not ended.wait(0.01):
            pass
        for process in psutil.Process().children(recursive=True):
            if title in " ".join(process.cmdline()):
                process.kill()
                process.wait(60)
                killed.append(process.pid)
        left.update(checkpoints())  # two: older ones are gone, and would come again from the start
        while not ended.wait(0.01):
            after.update(checkpoints())

    killer = Thread(target=kill_half_way, daemon=True)
    killer.start()
    found = numbers(compare(fresh, store, chosen, longer, concurrent=2))
    ended.set()
    killer.join(60)
    assert found == straight
    assert len(killed) == 1
    assert min(after - left) > max(left) >= 80


@pytest.mark.parametrize(
    ("have", "places", "node_cpus", "each"),
    [
        (Resources(cpus=2), 2, 2, Resources(cpus=1)),
        (Resources(cpus=16), 8, 16, Resources(cpus=2)),
        (Resources(cpus=3), 8, 3, Resources(cpus=1)),
        (Resources(cpus=16), 2, 4, Resources(cpus=4)),  # four nodes: no task spans two
        (Resources(cpus=16, gpus=8), 8, 16, Resources(cpus=1, gpus=1)),
        (Resources(cpus=16, gpus=8), 2, 16, Resources(cpus=1, gpus=1)),
        (Resources(cpus=16, gpus=2), 3, 16, Resources(cpus=1, gpus=0.5)),
        (Resources(cpus=2, gpus=1), 4, 2, Resources(cpus=0.5, gpus=0.25)),
    ],
)
def test_share_of_a_row(have: Resources, places: int, node_cpus: float, each: Resources) -> None:
    assert compare_workers._share(have, places, node_cpus) == each


def test_second_command_waits_for_a_training_of_the_first(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = own(["m-unet"], "phantom", 1)
    bench = open_bench(workspace, chosen, scale())
    bench.carry_out(chosen.methods[0])
    folder = bench.arm(chosen.methods[0]).folder(workspace.comparison("models"))
    monkeypatch.setattr(compare_training, "train", lambda *_, **__: pytest.fail("trained twice"))
    done = Flag()

    def second() -> None:
        bench.carry_out(chosen.methods[0])
        done.set()

    with locked(folder / compare_training.LOCK):
        (folder / "bundle").rename(folder / "not yet")
        Thread(target=second, daemon=True).start()
        assert not done.wait(0.5)
        (folder / "not yet").rename(folder / "bundle")
    assert done.wait(20)


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path

import torch

from mfdiff_core.data.batches import BatchStream
from mfdiff_platform.compare import compare
from mfdiff_platform.compare_plan import CompareScale, default_recipe, own
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

torch.set_num_threads(1)
root, tracking = map(Path, sys.argv[1:])
steps, batch = [], BatchStream.__call__

def counted(stream, step):
    steps.append(step)
    if steps == [0, 1, 2, 3, 0, 1, 2]:  # the third step of the second row
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(stream, step)

BatchStream.__call__ = counted
recipe = replace(default_recipe("tiny", 4, 2), warmup=0)
scale = CompareScale(size="tiny", recipe=recipe, adapt_iterations=1, samples=2, test_slices=1)
compare(Workspace(root), TrackingStore(tracking), own(["m-unet", "munet"], "phantom", 1), scale)
"""


def test_table_killed_in_its_second_row_goes_on_there_and_ends_the_same(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = own(["m-unet", "munet"], "phantom", 1)
    longer = scale(recipe=replace(scale().recipe, iterations=4))
    straight = numbers(compare(workspace, store, chosen, longer))
    fresh = with_the_data_of(workspace, tmp_path)
    command = [sys.executable, "-c", KILLED, str(fresh.root), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    steps: list[int] = []
    batch = BatchStream.__call__

    def counted(stream: BatchStream, step: int) -> Batch:
        steps.append(step)
        return batch(stream, step)

    monkeypatch.setattr(BatchStream, "__call__", counted)
    assert numbers(compare(fresh, store, chosen, longer)) == straight
    assert steps == [2, 3]


def test_second_stage_starts_from_the_first_and_settings_have_their_own_table(
    workspace: Workspace, store: TrackingStore
) -> None:
    done = compare(workspace, store, own(["m-unet"], "site", 1), scale())
    assert {row.setting for row in done.table.rows} == {"ld", "uld"}
    row = done.table.rows[-1]
    assert row.cost is not None
    assert row.cost.iterations == 2 + 1
    assert len(list((workspace.root / "comparisons/models").glob("m-unet-*"))) == 2


def test_second_stage_begins_with_the_weights_of_the_first(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Mapping[str, torch.Tensor] | None] = []

    def watched(model: RestorationModel, recipe: Recipe, given: Any) -> TrainState:
        begun.append(given)
        return start(model, recipe, given)

    monkeypatch.setattr(compare_training, "start", watched)
    bench = open_bench(workspace, own(["m-unet"], "site", 1), scale())
    (method,) = bench.comparison.methods
    bench.carry_out(method)
    parent = bench.arm(method).parent
    assert parent is not None
    first = find_trained(parent, workspace.comparison("models"))
    assert first is not None
    assert begun[0] is None
    assert begun[1] is not None
    torch.testing.assert_close(dict(begun[1]), first.weights(), rtol=0, atol=0)


@pytest.mark.parametrize(("iterations", "steps"), [(1, [1]), (4, [2, 4]), (5, [3, 5])])
def test_a_training_is_validated_half_way_and_at_the_end(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, iterations: int, steps: list[int]
) -> None:
    validated: list[int] = []

    def watched(state: Any, *args: Any, **settings: Any) -> Iterator[Event]:
        for event in train(state, *args, **settings):
            if isinstance(event, Validated):
                validated.append(state.step)
            yield event

    monkeypatch.setattr(compare_training, "train", watched)
    recipe = replace(scale().recipe, iterations=iterations)
    bench = open_bench(workspace, own(["m-unet"], "phantom", 1), scale(recipe=recipe))
    bench.carry_out(bench.comparison.methods[0])
    assert validated == steps


@pytest.fixture
def feet(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Foot of a table whose rows were never trained."""

    def foot(chosen: Comparison, **changes: Any) -> dict[str, str]:
        recipe = replace(default_recipe("tiny", 100, 2), weight_decay=0.02)
        bench = open_bench(
            workspace,
            replace(chosen, domain="site" if chosen.domain == "ood1" else chosen.domain),
            scale(recipe=recipe, adapt_iterations=40, adapt_rate=0.5, **changes),
        )
        labels = [method.label for method in bench.comparison.methods]
        done = {label: Trained(None, 1, 1.0, (f"code {label[0]}",)) for label in labels}  # type: ignore[arg-type]
        restored = {label: Restoration(torch.zeros(1), by="code 1") for label in labels}
        return facts(bench, done, restored)

    return foot


def test_foot_has_the_stages_of_each_row(feet: Callable[..., dict[str, str]]) -> None:
    assert feet(table("table6", 1))["training"] == (
        "MFdiff, external only: 100 iterations on phantom at 0.004 (warm-up 5);"
        " MFdiff, internal only: 40 iterations on site at 0.004 (warm-up 2);"
        " MFdiff, external + internal: 100 iterations on phantom at 0.004 (warm-up 5), then 40"
        " iterations on site at 0.002 (warm-up 2)"
    )
    single = "CSRD, single stage / MFdiff, single stage: 140 iterations on site mixed with phantoms"
    assert (
        f"{single} at 0.004 (warm-up 5)"
        in feet(replace(table("table7", 1), setting=""))["training"]
    )


def test_foot_says_what_rows_share_once_and_what_they_do_not_by_name(
    feet: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_plan, "MEAN_EVALUATIONS", 3)
    foot = feet(table("table1", 8))
    assert foot["training"] == "100 iterations on phantom at 0.004 (warm-up 5)"
    assert (
        "batch 2, AdamW (cosine rate, weight decay 0.02), averaged at 0.995"
        in foot["all trainings"]
    )
    assert "EA-GAN / Hi-Net / CNCL: 0.5 and 0.999, as published" in foot["Adam's betas"]
    assert foot["trained by"] == (
        "M-UNet / MFdiff (paper) / MFdiff: code M; FB-SEM: code F; EA-GAN: code E; Hi-Net: code H;"
        " CNCL / CSRD: code C"
    )
    assert foot["restored by"] == "code 1"
    assert foot["weights kept"] == (
        "of each stage those of the better of 2 validations, half-way and at the end, by PSNR on at"
        " most 8 slices of each setting; MFdiff (paper) by dpmpp2m in 10 evaluations"
    )
    assert foot["samplers"].startswith(
        "CSRD, mean of 8 / CSRD: Heun's method, 5 evaluations a sample;"
        " MFdiff (paper), mean of 8: dpmpp2m, 3 evaluations a sample; MFdiff (paper): ddpm, 20"
    )
    assert "phantoms" not in foot
    assert "samplers" not in feet(own(["m-unet"], "phantom", 1))


def test_other_scale_rows_or_data_have_a_folder_of_their_own(workspace: Workspace) -> None:
    def folder(chosen: Comparison, **changes: Any) -> str:
        return _name(open_bench(workspace, chosen, scale(**changes)))

    chosen = own(["m-unet"], "phantom", 1)
    recipe = replace(scale().recipe, ema=0.9)
    assert folder(chosen) == folder(chosen)
    assert folder(chosen).startswith("phantom-m-unet-tiny-2-")
    others: list[dict[str, Any]] = [
        {"test_slices": 2},
        {"seed": 1},
        {"recipe": recipe},
        {"adapt_rate": 0.5},
    ]
    names = {folder(chosen), *(folder(chosen, **changes) for changes in others)}
    names |= {folder(own(["csrd"], "phantom", samples)) for samples in (1, 2)}
    moved = open_bench(workspace, chosen, scale(), workspace.dataset("site"))
    names.add(_name(moved))
    split = workspace.dataset("phantom") / "split.json"
    parts = json.loads(split.read_text())
    parts["test"], parts["validation"] = parts["validation"], parts["test"]
    split.write_text(json.dumps(parts))
    assert len(names | {folder(chosen)}) == 9


def test_rows_that_other_code_made_are_named(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = own(["m-unet", "munet"], "phantom", 1)
    monkeypatch.setattr(compare_training, "code_fingerprint", lambda: "older")
    compare(workspace, store, own(["m-unet"], "phantom", 1), scale())
    monkeypatch.setattr(compare_training, "code_fingerprint", lambda: "newer")
    page = compare(workspace, store, chosen, scale()).markdown
    assert f"- trained by: M-UNet: older, {TORCH}; MUNet: newer, {TORCH}" in page
    assert f"- restored by: M-UNet: older, {TORCH}; MUNet: newer, {TORCH}" in page


def test_both_stages_say_which_code_trained_them_and_caches_of_before_that_none_did(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = own(["m-unet"], "site", 1)
    bench = open_bench(workspace, chosen, scale())
    parent = bench.arm(chosen.methods[0]).parent
    assert parent is not None
    monkeypatch.setattr(compare_training, "code_fingerprint", lambda: "older")
    compare_training.trained(parent, workspace.comparison("models"))
    monkeypatch.setattr(compare_training, "code_fingerprint", lambda: "newer")
    page = compare(workspace, store, chosen, scale()).markdown
    assert f"- trained by: older, {TORCH}, then newer, {TORCH}\n" in page
    for name in ("clock.json", "facts.json"):
        for path in (workspace.root / "comparisons").rglob(name):
            write_json(path, {k: v for k, v in read_json(path).items() if k != "by"})
    page = compare(workspace, store, chosen, scale()).markdown
    assert "- trained by: code that was not noted\n" in page
    assert "- restored by: code that was not noted\n" in page


def test_training_that_other_code_went_on_with_names_both(tmp_path: Path) -> None:
    compare_training._Clock(tmp_path, 2, "newer").save()  # a checkpoint whose clock was lost
    assert read_json(tmp_path / "clock.json")["by"] == ["code that was not noted", "newer"]
    compare_training._Clock(tmp_path, 0, "older").save()
    compare_training._Clock(tmp_path, 2, "newer").save()
    compare_training._Clock(tmp_path, 3, "newer").save()
    assert read_json(tmp_path / "clock.json")["by"] == ["older", "newer"]
    compare_training._Clock(tmp_path, 0, "anew").save()
    assert read_json(tmp_path / "clock.json")["by"] == ["anew"]


def test_external_stage_on_the_test_subjects_is_refused(
    workspace: Workspace, store: TrackingStore
) -> None:
    twin = Path(shutil.copytree(workspace.dataset("site"), workspace.root / "twin"))
    split = json.loads((twin / "split.json").read_text())
    name = split["test"][0]
    split["test"][0], split["train"][0] = split["train"][0], split["test"][0]
    (twin / "split.json").write_text(json.dumps(split))
    chosen = own(["m-unet"], "site", 1)
    with pytest.raises(DataError, match=rf"twin: trains on test subjects of .*site \({name}\)"):
        compare(workspace, store, chosen, scale(), phantom=twin)
    assert not (workspace.root / "comparisons").exists()


def test_phantoms_of_another_size_are_refused(workspace: Workspace) -> None:
    opened = open_bench(workspace, table("table7", 1), scale(), workspace.dataset("site"))
    assert opened.phantom is not None
    larger = replace(opened.phantom, manifest=replace(opened.phantom.manifest, image_size=64))
    with pytest.raises(ConfigError, match="phantom: slices of 64x64 pixels, the model takes 32x32"):
        replace(opened, phantom=larger).check()


@pytest.mark.parametrize("name", ["strategy", "freeze", "iterations", "l2sp", "nonsense"])
def test_settings_that_a_comparison_decides_itself_are_refused(name: str, tmp_path: Path) -> None:
    command = f"compare table1 --set {name}=1 --workspace {tmp_path}".split()
    result = CliRunner().invoke(cli, command)
    assert result.exit_code != 0
    assert isinstance(result.exception, ConfigError)
    assert f"--set {name}" in str(result.exception)
    assert "settings are lr, warmup" in str(result.exception)


def test_arms_of_tables_6_and_7_differ_in_their_stages_alone(
    workspace: Workspace, store: TrackingStore
) -> None:
    stages: tuple[Strategy, ...] = ("external", "internal", "single_stage", "two_stage")
    methods = tuple(Method(label=stage, system="m-unet", strategy=stage) for stage in stages)
    chosen = Comparison(name="stages", title="t", domain="site", methods=methods, setting="uld")
    done = compare(workspace, store, chosen, scale())
    assert {row.setting for row in done.table.rows} == {"uld"}
    iterations = {row.method: row.cost.iterations for row in done.table.rows if row.cost}
    assert iterations == {"external": 2, "internal": 1, "single_stage": 3, "two_stage": 3}
    # The external stage is trained once, for itself and for the two stages.
    models = [read_json(path) for path in workspace.comparison("models").glob("*/arm.json")]
    assert len(models) == 4
    (single,) = (arm for arm in models if arm["recipe"]["strategy"] == "single_stage")
    (second,) = (arm for arm in models if arm["recipe"]["strategy"] == "two_stage")
    assert single["phantom"]
    assert second["parent"]


def test_networks_of_another_size_are_refused_before_anything_is_done(
    workspace: Workspace, store: TrackingStore
) -> None:
    with pytest.raises(ConfigError, match="slices of 32x32 pixels, the model takes 128x128"):
        compare(workspace, store, own(["m-unet"], "phantom", 1), scale(size="small"))
    assert not (workspace.root / "comparisons").exists()


def test_table_1_from_the_command_line_has_every_row_and_every_form(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    shutil.copyfile(empty_database, workspace.root / "mlflow.db")
    monkeypatch.setattr(compare_plan, "MEAN_EVALUATIONS", 3)
    words = "compare table1 --preset tiny --iterations 5 --batch-size 2 --samples 2 --json"
    # In this process, where the chains are cut short.
    options = ["--test-slices", "1", "--concurrent", "1", "--workspace", str(workspace.root)]
    result = CliRunner().invoke(cli, [*words.split(), *options])
    assert result.exit_code == 0, result.output
    folder = Path(json.loads(result.stdout)["folder"])
    with (folder / "table.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["setting"] == "ld"]
    assert {row["method"]: row["evaluations"] for row in rows} == EVALUATIONS
    page = (folder / "table.md").read_text()
    assert "This convention ranks" in page
    assert "lesions in PET only" in page
    assert (
        "CSRD: squared error of the residual, weighted by noise level; MFdiff (paper): squared"
        " error of the noise; MFdiff: squared error over 0.05^2 + 0.3 (1 - SSIM), of the clipped"
        " clean image"
    ) in page
    assert r"\begin{tabular}" in (folder / "table.tex").read_text()
    for figure in ("slices", "psnr", "agreement"):
        assert (folder / f"{figure}-ld.png").stat().st_size > 1000


def test_row_as_in_the_paper_predicts_eps_in_a_thousand_ancestral_steps() -> None:
    row = next(method for method in table("table1", 8).methods if method.label == "MFdiff (paper)")
    config = row.restoring("small")
    assert isinstance(config, ModelConfig)
    assert config.network == preset("small").network
    assert config.diffusion.target == "eps"
    assert (config.sampler.name, config.sampler.num_evaluations) == ("ddpm", 1000)
    assert config.sampler.num_samples == 1


@pytest.mark.parametrize("name", [f"table{number}" for number in range(1, 8)])
def test_every_table_of_the_paper_has_its_rows(name: str) -> None:
    chosen = table(name, 8)
    systems = {method.system for method in chosen.methods}
    assert "mfdiff" in systems
    assert len({method.label for method in chosen.methods}) == len(chosen.methods)
    assert chosen.methods[-1].label.startswith("MFdiff")
    rivals = {"m-unet", "fb-sem", "ea-gan", "hi-net", "cncl", "csrd"}
    wanted = dict.fromkeys(("table1", "table2", "table3", "table4"), rivals)
    wanted |= {"table5": {"unet", "munet", "gmunet", "dmunet", "cmunet"}}
    wanted |= {"table6": set(), "table7": {"csrd"}}
    assert systems - {"mfdiff"} == wanted[name]


def test_a_model_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="unknown model 'resnet'; valid models are mfdiff"):
        own(["resnet"], "phantom", 1)


def test_fb_sem_is_left_out_with_the_reason_where_there_are_no_sinograms(
    workspace: Workspace, store: TrackingStore
) -> None:
    done = compare(workspace, store, own(["fb-sem", "m-unet"], "site", 1), scale())
    assert "FB-SEM" not in {row.method for row in done.table.rows}
    assert "FB-SEM is left out: it reconstructs from measured sinograms" in done.markdown
    with pytest.raises(ConfigError, match="nothing to compare: give --models other than fb-sem"):
        compare(workspace, store, own(["fb-sem"], "site", 1), scale())


def test_a_long_list_of_models_still_names_a_folder(tmp_path: Path) -> None:
    everything = own([name for name in MODELS if name != "fb-sem"], "phantom", 1)
    fewer = own([name for name in MODELS if name not in ("fb-sem", "unet")], "phantom", 1)
    assert everything.name != fewer.name
    assert Workspace(tmp_path).comparison(f"{everything.name}-small-50000-0123ab")


@pytest.mark.parametrize(("size", "expected"), [("small", (400, 64)), ("base", (50_000, None))])
def test_large_sizes_train_as_long_as_the_paper_and_test_on_all_slices(
    size: str, expected: tuple[int, int | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[CompareScale] = []

    def listening(*arguments: Any, **_: Any) -> None:
        asked.append(arguments[3])
        raise ConfigError("heard")

    monkeypatch.setattr("mfdiff_platform.compare.compare", listening)
    command = ["compare", "table1", "--preset", size, "--workspace", str(tmp_path)]
    assert CliRunner().invoke(cli, command).exit_code != 0
    assert [(scale.recipe.iterations, scale.test_slices) for scale in asked] == [expected]
    assert asked[0].adapt_iterations == 2 * expected[0] // 5
    assert asked[0].adapt_rate == (1.0 if size == "base" else 0.5)


def test_a_stage_after_the_external_one_alone_has_the_lower_rate(workspace: Workspace) -> None:
    data = workspace.dataset("site")
    slower = scale(adapt_rate=0.5)
    for name, rates in (("table6", [1, 1, 0.5]), ("table7", [1, 0.5, 1, 0.5])):
        bench = open_bench(workspace, table(name, 1), slower, data)
        arms = [bench.arm(method) for method in bench.comparison.methods]
        assert [arm.recipe.lr / slower.recipe.lr for arm in arms] == rates
        assert all(arm.parent.recipe.lr == slower.recipe.lr for arm in arms if arm.parent)


def test_training_of_a_table_is_the_same_for_every_row() -> None:
    assert default_recipe("base", 100, 4) == Recipe(
        strategy="internal", iterations=100, batch_size=4, augment="flip"
    )
