"""The command line as a script sees it: exit code, stdout, stderr."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import click
import pytest

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.manifest import MANIFEST
from mfdiff_core.errors import ConfigError
from mfdiff_platform.cli import run
from mfdiff_platform.cli.common import parse_settings, table
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.progress import say, task
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import ENVIRONMENT

Output = pytest.CaptureFixture[str]


@pytest.fixture
def site(store: TrackingStore, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a dataset of domain toy; commands use it without being told."""
    shutil.copytree(dataset_folder, store.workspace / "data" / "toy")
    monkeypatch.setenv(ENVIRONMENT, str(store.workspace))
    return store.workspace


def refused(code: int, words: str, arguments: list[str], output: Output) -> str:
    """stderr of a command that must end with ``code`` and one sentence."""
    assert run(arguments) == code
    captured = output.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    faults = [line for line in captured.err.splitlines() if line.startswith("Error: ")]
    assert len(faults) == 1
    assert re.search(words, faults[0]), faults[0]
    return captured.err


@pytest.mark.parametrize(
    ("code", "words", "command"),
    [
        (2, "No such command 'train'", "train"),
        (2, "No such option '--fast'|No such option: --fast", "simulate --fast"),
        (2, "Missing option '--domain'", "simulate"),
        (2, "unknown domain 'ood9'; simulated are phantom, ood1", "simulate --domain ood9"),
        (2, "domain name '../x'", "adapt --domain ../x"),
        (2, "no pretrained mfdiff model .*`mfdiff-platform pretrain`", "adapt --domain toy"),
        (2, "--gpus or --cpus", "pretrain --gpus 1 --cpus 1"),
        (2, "unknown preset 'huge'; valid presets are tiny", "pretrain --preset huge"),
        (2, "train.optim.rate: unknown key", "pretrain --set train.optim.rate=1"),
        (2, "--set takes a.b=value, got 'lr'", "pretrain --set lr"),
        (2, "no site model 'mfdiff-toy@candidate'; none is", "model show mfdiff-toy@candidate"),
        (2, "nowhere.yaml: no such", "search-space show ood3 --space nowhere.yaml"),
        (4, "data/leeds: no dataset .*`mfdiff-platform simulate`", "adapt --domain leeds"),
        (4, "data/phantom: no dataset", "pretrain --cpus 1 --preset tiny"),
    ],
)
def test_fault_of_the_user_is_one_sentence_and_its_code(
    site: Path, capsys: Output, code: int, words: str, command: str
) -> None:
    refused(code, words, command.split(), capsys)


def restoring(site: Path, *more: str) -> list[str]:
    scan = ["--pet", str(site / "pet.nii.gz"), "--mr", str(site / "t1.nii.gz")]
    return ["restore", *scan, "--out", str(site / "out.nii.gz"), *more]


def test_model_that_is_not_registered_is_unknown(site: Path, capsys: Output) -> None:
    command = restoring(site, "--model", "mfdiff-toy@candidate")
    refused(2, "no site model 'mfdiff-toy@candidate'", command, capsys)


def test_scan_that_is_not_there_is_named(site: Path, capsys: Output, pretrained: Bundle) -> None:
    command = restoring(site, "--model", str(pretrained.folder))
    refused(4, r"pet\.nii\.gz", command, capsys)


def test_existing_output_stays_unless_overwrite_is_given(
    site: Path, capsys: Output, pretrained: Bundle
) -> None:
    (site / "out.nii.gz").write_text("kept")
    command = restoring(site, "--model", str(pretrained.folder))
    refused(2, "exists; give --overwrite", command, capsys)
    assert (site / "out.nii.gz").read_text() == "kept"
    refused(4, r"pet\.nii\.gz", [*command, "--overwrite"], capsys)


def test_output_of_another_format_is_refused(site: Path, capsys: Output) -> None:
    command = ["restore", "--model", "m", "--pet", "p", "--mr", "m", "--out", "out.dcm"]
    refused(2, r"must end with \.nii or \.nii\.gz", command, capsys)


def test_store_out_of_reach_is_told_within_seconds(
    site: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URI_VARIABLE, "http://127.0.0.1:9")
    refused(7, "http://127.0.0.1:9 cannot be used.*" + URI_VARIABLE, ["model", "list"], capsys)


@pytest.mark.ray
def test_more_gpus_than_there_are_end_with_numbers_and_an_alternative(
    site: Path, capsys: Output, ray_cluster: Cluster
) -> None:
    shutil.copytree(site / "data" / "toy", site / "data" / "phantom")
    command = ["pretrain", "--gpus", "8", "--preset", "tiny", "--batch-size", "8"]
    words = "needs 8 CPUs and 8 GPUs, this cluster has 3 CPUs; try --cpus 3"
    refused(3, words, command, capsys)


@pytest.fixture
def impatient(site: Path) -> Iterator[None]:
    """Sends SIGINT once a simulation has begun."""

    def wait() -> None:
        while not (site / "data" / "phantom").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join()


@pytest.mark.ray
def test_ctrl_c_ends_with_130_and_leaves_no_half_dataset(
    ray_cluster: Cluster, site: Path, impatient: None, capsys: Output
) -> None:
    assert run(["simulate", "--domain", "phantom", "--quick", "--subjects", "20"]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the same command goes on where it stopped" in captured.err
    assert not (site / "data" / "phantom" / MANIFEST).exists()


def test_model_list_of_a_new_site_is_empty_in_both_forms(site: Path, capsys: Output) -> None:
    assert run(["model", "list"]) == 0
    assert capsys.readouterr().out == "no site models yet\n"
    assert run(["model", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"models": []}


def test_search_space_is_shown_as_text_and_as_its_own_yaml(capsys: Output) -> None:
    assert run(["search-space", "show", "ood3", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert Path(values["file"]).read_text() == values["yaml"]
    assert run(["search-space", "show", "ood3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(values["file"])
    assert "references: external, two-stage (paper), internal" in text


def test_commands_on_given_folders_make_no_workspace(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, pretrained: Bundle
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.chdir(tmp_path)
    run(restoring(tmp_path, "--model", str(pretrained.folder)))
    run(["search-space", "show", "ood3"])
    assert list(tmp_path.iterdir()) == []


def test_brackets_in_a_message_are_text_and_no_markup(capsys: Output) -> None:
    say("expected [b, c] in scan[/x].nii", mark="[red]✗[/] ")
    with task("Restoring [bold]", 2) as shown:
        shown.update(2, "[/b] dB")
    told = capsys.readouterr()
    assert told.out == ""
    assert "✗ expected [b, c] in scan[/x].nii" in told.err
    assert "Restoring [bold] ..." in told.err
    assert "[/b] dB" in told.err


def test_line_without_a_terminal_tells_the_time_left_at_the_pace_since_the_first_update(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("mfdiff_platform.progress.time.monotonic", lambda: now[0])
    with task("Pretraining run", 1000) as shown:
        for now[0], step in ((10.0, 500), (11.0, 501), (30.0, 510)):  # a resumed run
            shown.update(step, "loss 0.5")
    assert capsys.readouterr().err.splitlines()[1:3] == [
        "  Pretraining run: 500/1000 loss 0.5",
        "  Pretraining run: 510/1000, 0:16:20 left loss 0.5",
    ]


def test_version_names_what_matters(capsys: Output) -> None:
    assert run(["--version"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["python", "mfdiff-platform", "torch", "ray", "mlflow", "optuna"]


def test_settings_are_read_as_people_write_numbers() -> None:
    given = ("train.optim.lr=2e-4", "train.precision=bf16", "model.x=[1, 2]", "augment=none")
    assert parse_settings(given) == {
        "train.optim.lr": 2e-4,
        "train.precision": "bf16",
        "model.x": [1, 2],
        "augment": "none",
    }


@pytest.mark.parametrize("setting", ["lr", "=1"])
def test_setting_without_name_or_value_is_refused(setting: str) -> None:
    with pytest.raises(click.UsageError, match=r"a\.b=value"):
        parse_settings((setting,))


def test_setting_that_is_no_yaml_names_itself() -> None:
    with pytest.raises(ConfigError, match=r"--set train\.seed"):
        parse_settings(("train.seed=[1",))


def test_table_is_aligned() -> None:
    text = table(("method", "PSNR"), [("LPET", "20.00"), ("best trial", "9.00")])
    assert text.splitlines() == [
        "method       PSNR",
        "-----------------",
        "LPET        20.00",
        "best trial   9.00",
    ]
