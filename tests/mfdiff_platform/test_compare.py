"""`compare`: from a dataset to a table, once, twice and after an interruption."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mfdiff_core.errors import ConfigError
from mfdiff_core.files import read_json
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform import compare_plan, compare_training
from mfdiff_platform.cli import cli
from mfdiff_platform.compare import Compared, compare
from mfdiff_platform.compare_plan import CompareScale, default_recipe, own, table
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

MakeDataset = Callable[..., Path]
COSTS = ("training_s", "slice_s")


@pytest.fixture
def workspace(tmp_path: Path, make_dataset: MakeDataset) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    make_dataset(workspace.dataset("phantom"), "phantom")
    make_dataset(workspace.dataset("site"), "site", seed=1)
    return workspace


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
    chosen = own(["m-unet", "munet"], "phantom", 1)
    first = numbers(compare(workspace, store, chosen, scale()))
    fresh = Workspace(tmp_path / "fresh")
    (fresh.root).mkdir()
    (fresh.root / "data").symlink_to(workspace.root / "data")
    assert numbers(compare(fresh, store, chosen, scale())) == first
    monkeypatch.setattr(compare_training, "train", lambda *_, **__: pytest.fail("trained again"))
    assert numbers(compare(workspace, store, chosen, scale())) == first


def test_interrupted_comparison_goes_on_from_its_checkpoint(
    workspace: Workspace, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen, longer = own(["m-unet"], "phantom", 1), replace(scale().recipe, iterations=4)
    straight = numbers(compare(workspace, store, chosen, scale(recipe=longer)))
    fresh = Workspace(tmp_path / "fresh")
    fresh.root.mkdir()
    (fresh.root / "data").symlink_to(workspace.root / "data")
    train, steps = compare_training.train, []

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


def test_second_stage_starts_from_the_first_and_settings_have_their_own_table(
    workspace: Workspace, store: TrackingStore
) -> None:
    done = compare(workspace, store, own(["m-unet"], "site", 1), scale())
    assert {row.setting for row in done.table.rows} == {"ld", "uld"}
    row = done.table.rows[-1]
    assert row.cost is not None
    assert row.cost.iterations == 2 + 1
    assert "internal stage: 1 iterations on site" in done.markdown
    assert len(list((workspace.root / "comparisons/models").glob("m-unet-*"))) == 2


def test_command_writes_every_form_of_the_table_with_its_definitions(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    monkeypatch.delenv("MFDIFF_TRACKING_URI", raising=False)
    (workspace.root / "mlflow.db").write_bytes(empty_database.read_bytes())
    words = "compare --models mfdiff,csrd,fb-sem --preset tiny --iterations 1 --samples 2"
    options = ["--test-slices", "1", "--workspace", str(workspace.root), "--json"]
    short = ["--set", "lr=1e-4", "--batch-size", "2"]
    monkeypatch.setattr(compare_plan, "MEAN_EVALUATIONS", 3)
    result = CliRunner().invoke(cli, [*words.split(), *options, *short])
    assert result.exit_code == 0, result.output
    folder = Path(json.loads(result.stdout)["folder"])
    page = (folder / "table.md").read_text()
    labels = ["LPET", "LPET, Gaussian", "LPET, non-local means"]
    labels += [
        f"MFdiff{as_in}{k}" for as_in in (" (paper)", "") for k in (", mean of 2", "")
    ]
    labels += ["CSRD, mean of 2", "CSRD"]
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows if row["setting"] == "ld"] == labels
    evaluations = {row["method"]: row["evaluations"] for row in rows}
    assert evaluations["MFdiff (paper)"] == "1000"
    assert evaluations["MFdiff, mean of 2"] == "4"
    assert evaluations["CSRD, mean of 2"] == "70"
    assert "FB-SEM is left out: it reconstructs from measured sinograms" in page
    assert "This convention ranks" in page
    assert r"\begin{tabular}" in (folder / "table.tex").read_text()
    for name in ("slices", "psnr", "agreement"):
        assert (folder / f"{name}-ld.png").stat().st_size > 1000


@pytest.mark.parametrize("name", [f"table{number}" for number in range(1, 8)])
def test_every_table_of_the_paper_has_its_rows(name: str) -> None:
    chosen = table(name, 8)
    systems = {method.system for method in chosen.methods}
    assert "mfdiff" in systems
    assert len({method.label for method in chosen.methods}) == len(chosen.methods)
    assert chosen.methods[-1].label.startswith("MFdiff")
    rivals = {"m-unet", "ea-gan", "hi-net", "cncl", "csrd"}
    wanted = dict.fromkeys(("table1", "table2", "table3", "table4"), rivals)
    wanted |= {"table5": {"unet", "munet", "gmunet", "dmunet", "cmunet"}}
    wanted |= {"table6": set(), "table7": {"csrd"}}
    assert systems - {"mfdiff"} == wanted[name]


@pytest.mark.parametrize(
    ("models", "message"),
    [(["resnet"], "unknown model 'resnet'; valid models are mfdiff"), (["fb-sem"], "sinograms")],
)
def test_models_that_cannot_be_compared_are_refused(models: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own(models, "phantom", 1)


def test_training_of_a_table_is_the_same_for_every_row() -> None:
    assert default_recipe("base", 100, 4) == Recipe(
        strategy="internal", iterations=100, batch_size=4, augment="flip"
    )
