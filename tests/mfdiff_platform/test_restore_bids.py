"""BIDS in, BIDS derivatives out; from ingest to a restored participant."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.data.splits import PARTS
from mfdiff_core.model import RestorationModel
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform import restore_bids
from mfdiff_platform.cli import run
from mfdiff_platform.trial import TrialSetting, run_trial
from mfdiff_platform.trial_data import PackedSlices, TrialData
from mfdiff_platform.workspace import ENVIRONMENT

MakeBids = Callable[..., Path]
Output = pytest.CaptureFixture[str]
TRAPS: dict[str, dict[str, Any]] = {
    "01": {"misnamed": True},
    "02": {"starts": [0.0, 16.0, 32.0, *(96 + 16.0 * i for i in range(20))], "FrameDuration": 16},
    "03": {"FrameTimesStart": [86399.0, *(16.0 * i for i in range(1, 24))]},
}
"""Traps of real sets; every sidecar contradicts the header's dose and has keys of yesterday."""
MORE_TRAPS: dict[str, dict[str, Any]] = {
    "04": {"runs": (10, 10, 4), "masks": True},
    "05": {"DecayCorrectionFactor": 1.07238, "ScatterFraction": 44.32, "TimeZero": "15:01:59"},
}
BAD: dict[str, dict[str, Any]] = {
    "06": {"annexed": True},
    "07": {"RadionuclideTotalDose": 249.8},
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


@dataclass(frozen=True)
class Way:
    """What is left of the whole way, from scans to restored scans."""

    dataset: Dataset
    refused: list[str]
    out: Path
    restored: Any


@pytest.fixture
def way(site: Path, make_bids: MakeBids, model: Bundle, capsys: Output) -> Way:
    """A 4-D set with every trap, its dataset, a model adapted to it, and BIDS derivatives."""
    root = make_bids(site / "set", TRAPS | MORE_TRAPS | BAD, noise=0.0)
    options = ["--planes", "8:18:3", "--set", "image_size=32", "--set", "voxel_mm=6.0", "--json"]
    window = ["--window", "16:368", "--lpet", "16s=16", "--lpet", "48s=48", "--no-register"]
    assert run(["ingest", "bids", str(root), "--domain", "toy", *window, *options]) == 5
    made = json.loads(capsys.readouterr().out)
    dataset = open_dataset(Path(made["out"]))
    adapted = adapt(dataset, model, site / "study")
    assert adapted.provenance.voxel_mm == 6.0
    assert adapted.provenance.sha256 != model.provenance.sha256
    command = [root, site / "out", "participant", "--model", adapted.folder, *WINDOW]
    restored = restore(capsys, 5, *command, "--participant-label", "02", "04", "06")
    return Way(dataset, [each["code"] for each in made["refused"]], site / "out", restored)


def adapt(dataset: Dataset, model: Bundle, folder: Path) -> Bundle:
    """One trial of a few iterations, as `adapt` runs them."""
    train, held_out = (PackedSlices.pack(dataset.part(part)) for part in PARTS[:2])
    setting = TrialSetting(
        study="s",
        domain="toy",
        folder=folder,
        pretrained=model.folder,
        data=dataset.manifest.fingerprint,
        seed=0,
        validations=1,
    )
    recipe = Recipe(iterations=4, batch_size=2, lr=1e-3)
    return run_trial(0, recipe, setting, TrialData(train, held_out, None), lambda _: None)


def test_set_with_all_traps_goes_in_with_the_right_pairs_and_comes_out_restored(way: Way) -> None:
    """Frames brighten with time and nothing else, so that each image tells when it was taken."""
    assert way.refused == ["MF-IN-03", "MF-IN-38"]
    assert len(way.dataset.shards) == len(TRAPS | MORE_TRAPS)
    for subject, shard in zip(way.dataset.manifest.subjects, way.dataset.shards, strict=True):
        (facts,) = way.dataset.manifest.origin["subjects"][subject]["sessions"]
        assert facts["windows_s"]["16s"] == [176, 192]
        assert facts["windows_s"]["48s"] == [160, 208]
        assert facts["dose_mbq"] == pytest.approx(249.8)
        gap = facts["num_frames"]["SPET"] < 22
        starts = [t for t in range(16, 368, 16) if not (gap and 48 <= t < 96)]
        assert facts["num_frames"]["SPET"] == len(starts)
        weights = 2 ** (-(np.array(starts) + 8) / 6586.2)
        level = 1 + np.average(starts, weights=weights) / 20_000
        for x_p, x_s in zip(shard.arrays["x_p"], shard.arrays["x_s"], strict=True):
            # 16 s at 176 s, and 48 s at 160 to 208 s, are of the same mean brightness
            expected = (1 + 176 / 20_000) / level
            assert x_p.sum() / x_s.sum() == pytest.approx(expected, rel=1e-5)
    assert way.restored["refused"] == {"sub-06": "MF-IN-03"}
    assert [each["scan"] for each in way.restored["restored"]] == ["sub-02", "sub-04"]
    images = sorted(way.out.glob("sub-*/pet/*_desc-restored_pet.nii.gz"))
    gappy, untimed = (nibabel.load(path).get_fdata() for path in images)
    assert untimed == pytest.approx(gappy, rel=1e-4, abs=1)  # the same frame, found by its time


def test_sidecar_that_says_finished_is_written_last(
    site: Path, make_bids: MakeBids, model: Bundle, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that was killed would leave an old image that counts as the new one."""
    root, out = make_bids(site / "set", {"01": {}}), site / "out"
    command = [root, out, "participant", "--model", model.folder, *WINDOW]
    restore(capsys, 0, *command)

    def full(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(restore_bids, "write_volume", full)
        with pytest.raises(OSError, match="No space"):
            run(["restore", "bids", *map(str, command), "--seed", "1"])
    (again,) = restore(capsys, 0, *command, "--seed", 1)["restored"]
    assert not again["skipped"]
