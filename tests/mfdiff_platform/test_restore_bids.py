"""BIDS in, BIDS derivatives out; from ingest to a restored participant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.data.splits import PARTS
from mfdiff_core.model import RestorationModel
from mfdiff_platform.cli import run
from mfdiff_platform.workspace import ENVIRONMENT

MakeBids = Callable[..., Path]
Output = pytest.CaptureFixture[str]
TRAPS: dict[str, dict[str, Any]] = {
    "01": {"misnamed": True},
    "02": {"starts": [0.0, 16.0, 32.0, *(96 + 16.0 * i for i in range(20))], "FrameDuration": 16},
    "03": {"FrameTimesStart": [86399.0, *(16.0 * i for i in range(1, 24))]},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "ws"))
    return tmp_path


@pytest.fixture
def model(site: Path, tiny_model: RestorationModel) -> Bundle:
    provenance = Provenance(
        domain="toy", strategy="pretrain", iterations=0, seed=0, data="x", voxel_mm=6.0
    )
    weights = tiny_model.state_dict()
    return save_bundle(site / "bundle", tiny_model.config, weights, provenance)


def restore(output: Output, code: int, *arguments: object) -> Any:
    output.readouterr()
    assert run(["restore", "bids", *map(str, arguments), "--json"]) == code
    text = output.readouterr().out
    return json.loads(text) if text else None


WINDOW = ["--window", "176:192", "--no-register"]


def test_participants_become_derivatives_on_the_grid_of_their_pet(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output
) -> None:
    root, out = make_bids(site / "set", TRAPS), site / "out"
    labels = ["--participant-label", "01", "03"]
    command = [root, out, "participant", "--model", model.folder, *WINDOW, "--samples", 2]
    made = restore(capsys, 0, *command, *labels)
    assert [each["scan"] for each in made["restored"]] == ["sub-01", "sub-03"]
    image = nibabel.load(out / "sub-01/pet/sub-01_task-rest_desc-restored_pet.nii.gz")
    source = nibabel.load(root / "sub-03/pet/sub-03_task-rest_pet.nii.gz")
    assert np.allclose(image.affine, source.affine, atol=1e-6)
    assert image.shape == source.shape[:3]
    assert image.get_data_dtype() == np.float32
    low = np.asarray(source.dataobj)[..., 11]
    assert 0.3 < image.get_fdata().sum() / low.sum() < 3
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "mfdiff-platform"
    assert (out / "sub-01/pet/sub-01_task-rest_desc-restoredSD_pet.nii.gz").is_file()
    assert "spread of samples" in (out / "sub-01.html").read_text()
    assert not (out / "sub-02").exists()


def test_sidecar_keeps_what_is_true_and_drops_who_and_where(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output
) -> None:
    root, out = make_bids(site / "set", {"01": {}}), site / "out"
    restore(capsys, 0, root, out, "participant", "--model", model.folder, *WINDOW)
    (path,) = out.glob("sub-01/pet/*.json")
    values = json.loads(path.read_text())
    assert values["Units"] == "Bq/ml"
    assert (values["FrameTimesStart"], values["FrameDuration"]) == ([176], [16])
    assert values["TracerName"] == "FDG"
    assert values["Sources"] == ["bids:raw:sub-01/pet/sub-01_task-rest_pet.nii.gz"]
    for path in [each for each in out.rglob("*") if each.is_file()]:
        content = path.read_bytes()
        assert b"DOE^JANE" not in content
        assert b"Elsewhere" not in content


def test_finished_participants_are_skipped_until_something_changes(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output
) -> None:
    root, out = make_bids(site / "set", {"01": {}}), site / "out"
    command = [root, out, "participant", "--model", model.folder]
    skipped = [
        restore(capsys, 0, *command, *options)["restored"][0]["skipped"]
        for options in (WINDOW, WINDOW, [*WINDOW, "--overwrite"], [*WINDOW, "--seed", 1])
    ]
    assert skipped == [False, True, False, False]


def test_bad_participants_do_not_stop_the_others(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output
) -> None:
    people = {"01": {"annexed": True}, "02": {}, "03": {"no_mr": True}}
    root, out = make_bids(site / "set", people), site / "out"
    command = [root, out, "participant", "--model", model.folder, *WINDOW]
    made = restore(capsys, 5, *command)
    assert made["refused"] == {"sub-01": "MF-IN-03", "sub-03": "MF-IN-28"}
    assert [each["scan"] for each in made["restored"]] == ["sub-02"]
    assert sorted(path.name for path in out.glob("sub-*")) == ["sub-02", "sub-02.html"]


def test_dynamic_pet_needs_a_window(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output
) -> None:
    root = make_bids(site / "set", {"01": {}})
    arguments = ["bids", root, site / "out", "participant", "--model", model.folder]
    assert run(["restore", *map(str, arguments)]) == 4
    assert "24 frames where one image is restored" in capsys.readouterr().err
    assert not (site / "out").exists()


def test_static_pet_needs_none(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output
) -> None:
    nothing = {"FrameTimesStart": None, "FrameDuration": None}
    root = make_bids(site / "set", {"01": nothing}, count=1)
    command = [root, site / "out", "participant", "--model", model.folder, "--no-register"]
    assert len(restore(capsys, 0, *command)["restored"]) == 1


@pytest.mark.parametrize("place", ["set", "full"])
def test_results_do_not_mix_with_other_data(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output, place: str
) -> None:
    root = make_bids(site / "set", {"01": {}})
    (site / "full").mkdir()
    (site / "full" / "thesis.doc").write_text("x")
    restore(capsys, 4, root, site / place, "participant", "--model", model.folder, *WINDOW)


def test_what_was_ingested_trains_a_model_that_restores_the_same_set(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output
) -> None:
    """The whole way: 4-D set with traps, dataset, adapted model, BIDS derivatives."""
    from mfdiff_core.training.strategies import Recipe
    from mfdiff_platform.trial import TrialSetting, run_trial
    from mfdiff_platform.trial_data import PackedSlices, TrialData

    root = make_bids(site / "set", TRAPS)
    options = ["--planes", "8:18:3", "--set", "image_size=32", "--set", "voxel_mm=6.0"]
    window = ["--window", "16:368", "--lpet", "16s=16", "--no-register"]
    assert run(["ingest", "bids", str(root), "--domain", "toy", *window, *options]) == 0
    dataset = open_dataset(site / "ws" / "data" / "toy")
    train, held_out = (PackedSlices.pack(dataset.part(p)) for p in PARTS[:2])
    setting = TrialSetting(
        study="s",
        domain="toy",
        folder=site / "study",
        pretrained=model.folder,
        data=dataset.manifest.fingerprint,
        seed=0,
        validations=1,
    )
    recipe = Recipe(iterations=4, batch_size=2, lr=1e-3)
    adapted = run_trial(0, recipe, setting, TrialData(train, held_out, None), lambda _: None)
    assert adapted.provenance.voxel_mm == 6.0
    out = site / "out"
    command = [root, out, "participant", "--participant-label", "01"]
    made = restore(capsys, 0, *command, "--model", adapted.folder, *WINDOW)
    assert made["restored"][0]["slices"] > 10
