"""README's chain at the smallest size, one command per test, in order: read it top to bottom.

Each test goes on where the one before it stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mfdiff_core.bundle import load_bundle
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_platform.cli import run
from mfdiff_platform.quickstart import test_subject as subject_to_restore
from mfdiff_platform.quickstart import to_volume

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPACE = """
parameters:
  strategy: {value: two_stage}
  iterations: {value: 4}
  batch_size: {value: 2}
  lr: {low: 5e-4, high: 2e-3, log: true}
  ema: {value: 0.0}
"""


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object that a command prints, alone, on stdout."""
    assert run([*arguments, "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


@pytest.mark.parametrize("domain", ["phantom", "ood3"])
def test_1_simulate(site: Path, capsys: pytest.CaptureFixture[str], domain: str) -> None:
    made = result(capsys, "simulate", "--domain", domain, "--quick", "--subjects", "3")
    dataset = open_dataset(site / "data" / domain)
    assert made["out"] == str(dataset.folder)
    assert made["slices"] == dataset.manifest.rows
    assert made["subjects"] == 3
    assert 10 < made["lpet"]["psnr"] < 40


def test_2_pretrain(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--preset", "quick", "--iterations", "6", "--batch-size", "2"]
    made = result(capsys, "pretrain", "--cpus", "2", *size, "--set", "train.optim.lr=2e-3")
    bundle = load_bundle(Path(made["bundle"]))
    assert bundle.folder == site / "pretrained" / "quick" / "bundle"
    assert bundle.provenance.strategy == "pretrain"
    assert made["psnr"] == bundle.provenance.metrics["psnr"]


def test_3_adapt(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "space.yaml").write_text(SPACE)
    search = ["--space", str(site / "space.yaml"), "--concurrent", "2"]
    made = result(capsys, "adapt", "--domain", "ood3", "--trials", "4", *search)
    assert made["model"] == "mfdiff-ood3/1"
    assert Path(made["report"]).is_file()
    names = [row["name"] for row in made["rows"]]
    assert names[0] == "LPET"
    recipes = [name for name in names[2:] if not name.startswith("trial ")]
    assert recipes == ["external only", "two-stage (paper)", "internal only", "best trial"]
    assert all(np.isfinite(row["psnr"]) and row["subjects"] == 1 for row in made["rows"])


def test_4_choose(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = result(capsys, "model", "list")["models"]
    assert (model["model"], model["aliases"]) == ("mfdiff-ood3/1", ["candidate"])
    card = result(capsys, "model", "show", "mfdiff-ood3@candidate")["description"]
    assert "| best trial |" in card
    assert "not a medical device" in card


def test_5_promote(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four iterations make no good model: the gates refuse it, a reason overrules them."""
    gates = ["model", "promote", "--domain", "ood3"]
    assert run([*gates, "--json"]) == 6
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert not verdict["passed"]
    made = result(capsys, *gates, "--override", "the shortest chain there is")
    assert (made["champion"], made["overridden"]) == ("mfdiff-ood3/1", True)
    logged = result(capsys, "model", "log")["decisions"]
    assert [line["action"] for line in logged] == ["refused", "overridden"]
    assert run(["model", "rollback", "--domain", "ood3"]) == 2  # to the first there is no before


@pytest.fixture(scope="module")
def scan(site: Path) -> Path:
    """A held-out scan as a scanner would deliver it: oblique, LPET and T1 on grids of their own."""
    dataset: Dataset = open_dataset(site / "data" / "ood3")
    slices = subject_to_restore(dataset)
    turn = np.deg2rad(10)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    for name, images, scale in (("lpet", "x_p", "scale"), ("t1", "x_m", "mr_scale")):
        volume = to_volume(slices, images, scale)
        image = nibabel.Nifti1Image(volume.data, tilt @ volume.affine)
        nibabel.save(image, site / f"{name}.nii.gz")
    return site


def test_6_restore(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pet, mr, out = (scan / f"{name}.nii.gz" for name in ("lpet", "t1", "spet"))
    files = ["--pet", str(pet), "--mr", str(mr), "--out", str(out)]
    made = result(capsys, "restore", "--model", "mfdiff-ood3@champion", *files)
    low, restored = nibabel.load(pet), nibabel.load(out)
    assert restored.shape == low.shape
    assert np.allclose(restored.affine, low.affine)
    values = restored.get_fdata()
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert not np.array_equal(values, low.get_fdata())
    assert 0.5 < made["activity_ratio"] < 2


def test_7_every_command_again_changes_nothing(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = result(capsys, "simulate", "--domain", "ood3", "--quick", "--subjects", "3")
    assert again["slices"] == open_dataset(site / "data" / "ood3").manifest.rows
    search = ["--space", str(site / "space.yaml"), "--concurrent", "2"]
    assert result(capsys, "adapt", "--domain", "ood3", "--trials", "4", *search)["model"] == (
        "mfdiff-ood3/1"
    )
    assert len(result(capsys, "model", "list")["models"]) == 1
