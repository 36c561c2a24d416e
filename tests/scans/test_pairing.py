from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.data.nifti import read_volume
from mfdiff_core.data.slices import SliceRecord
from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import ConfigError, InputFault
from mfdiff_core.scans.bids import BidsScan, find_scans, participants
from mfdiff_core.scans.dynamic import open_bids_pet
from mfdiff_core.scans.pairing import PairedScan, pair, registered
from mfdiff_core.scans.pairing_config import PRESETS, PairingConfig
from mfdiff_core.scans.slicing import to_records

MakeBids = Callable[..., Path]
SHORT = PairingConfig(
    start_s=16, end_s=368, lpet_s={"16s": 16.0, "48s": 48.0}, image_size=48, voxel_mm=5.0
)


def scan_of(root: Path, label: str) -> BidsScan:
    (scan,) = find_scans(root, label, columns=participants(root).get(label))
    return scan


def paired(root: Path, label: str = "01", config: PairingConfig = SHORT) -> PairedScan:
    scan = scan_of(root, label)
    return pair(open_bids_pet(scan), read_volume(scan.t1, "mr"), config, scan.columns)


def still(config: PairingConfig = SHORT, **changes: Any) -> PairingConfig:
    return replace(config, register=False, **changes)


# --- windows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trait",
    [
        {},
        {"misnamed": True},
        {"FrameDuration": 16},
        {"FrameTimesStart": [86399.0, *(16.0 * i for i in range(1, 24))]},
        {"Unit": None, "Units": "Bq/mL"},
        {"masks": True},
        {"DecayCorrectionFactor": [1.07238] * 24, "ScatterFraction": [44.32] * 24},
        {"DecayCorrectionFactor": 1.07238, "ReconFilterSize": 4, "FrameDuration": 16},
        {"TimeZero": "15:01:59", "ScanStart": "15:01:59", "InjectionStart": "15:02:32"},
        {"FrameTimesStartUnit": "s", "FrameDurationUnit": "s"},
        {"FrameDurationUnit": "ms", "FrameDuration": [16_000] * 24},
    ],
)
def test_traps_of_real_sets_change_nothing_but_the_notes(
    tmp_path: Path, make_bids: MakeBids, trait: dict[str, Any]
) -> None:
    root = make_bids(tmp_path / "set", {"01": {}, "02": trait})
    clean, odd = paired(root, "01"), paired(root, "02")
    for name, image in clean.lpets.items():
        assert np.array_equal(odd.lpets[name].data, image.data)
    assert np.array_equal(odd.spet.data, clean.spet.data)
    assert odd.dose_mbq == clean.dose_mbq == pytest.approx(249.8)


def test_images_are_of_the_frames_that_their_times_say(tmp_path: Path, make_bids: MakeBids) -> None:
    """Each frame of the toy set is brighter than the one before, so an image tells its time."""
    starts = [0.0, 16.0, 32.0, *(96 + 16.0 * i for i in range(20))]
    root = make_bids(tmp_path / "set", {"01": {}, "02": {"starts": starts}}, noise=0.0)
    full, gappy = paired(root, "01"), paired(root, "02")
    assert gappy.used["16s"][0].start_s == full.used["16s"][0].start_s
    assert gappy.used["16s"][0].index == full.used["16s"][0].index - 3
    head = full.spet.data > 5000
    assert gappy.lpets["16s"].data[head] == pytest.approx(full.lpets["16s"].data[head], rel=1e-5)
    level = full.lpets["16s"].data[head].sum() / full.spet.data[head].sum()
    middle = 1 + full.used["16s"][0].start_s / 20_000
    mean = 1 + np.mean([frame.start_s for frame in full.used["SPET"]]) / 20_000
    assert level == pytest.approx(middle / mean, rel=1e-4)
    assert any("cover 86%" in note for note in gappy.notes)


def test_runs_without_times_are_one_scan(tmp_path: Path, make_bids: MakeBids) -> None:
    """ds003397: one file per run, no timing keys, the clock time of each run alone."""
    root = make_bids(tmp_path / "set", {"01": {}, "02": {"runs": (10, 10, 4)}}, noise=0.0)
    whole, split = paired(root, "01"), paired(root, "02")
    assert len(split.frames) == 24
    for name, image in whole.lpets.items():
        assert split.lpets[name].data == pytest.approx(image.data, rel=1e-5)
    assert any("clock times of the runs" in note for note in split.notes)


@pytest.mark.parametrize(
    ("trait", "words"),
    [
        ({"annexed": True}, r"content not fetched \(1260.0 MB\); run `datalad get` on it"),
        ({"RadionuclideTotalDose": None, "InjectedRadioactivity": None}, "no injected dose"),
        ({"RadionuclideTotalDose": 249.8}, "0.0002498 MBq is not plausible"),
        ({"FrameTimesStart": None}, "no frame times"),
        ({"FrameTimesStart": [0.0, 16.0]}, "2 frame times for 24 frames"),
        ({"FrameDuration": [17.0] * 24}, "starts at 16 s, before frame 0 ends"),
        ({"FrameDuration": [*([16.0] * 23), 0.0]}, "frame 23 lasts 0 s"),
        ({"FrameDuration": [16_000.0] * 24}, "milliseconds"),
        ({"ImageDecayCorrected": False, "RadionuclideHalfLife": None}, "no RadionuclideHalfLife"),
    ],
)
def test_unusable_scan_is_refused_in_one_sentence(
    tmp_path: Path, make_bids: MakeBids, trait: dict[str, Any], words: str
) -> None:
    root = make_bids(tmp_path / "set", {"01": trait})
    with pytest.raises(InputFault, match=words):
        paired(root)


def test_dose_may_be_unknown_when_that_is_said(tmp_path: Path, make_bids: MakeBids) -> None:
    nothing = {"RadionuclideTotalDose": None, "InjectedRadioactivity": None}
    root = make_bids(tmp_path / "set", {"01": nothing})
    scan = paired(root, config=replace(SHORT, without_dose=True))
    assert np.isnan(scan.dose_mbq)


def test_runs_on_different_grids_are_refused(tmp_path: Path, make_bids: MakeBids) -> None:
    import nibabel

    root = make_bids(tmp_path / "set", {"01": {"runs": (12, 12)}})
    second = root / "sub-01" / "pet" / "sub-01_task-rest_run-2_pet.nii.gz"
    image = nibabel.Nifti1Image.from_bytes(second.read_bytes())
    second.write_bytes(nibabel.Nifti1Image(image.dataobj, 1.1 * image.affine).to_bytes())
    with pytest.raises(InputFault, match=r"run-2.*another grid than the first run"):
        paired(root)


# --- presets -------------------------------------------------------------------------------


def test_dose_names_the_setting_of_ood2(tmp_path: Path, make_bids: MakeBids) -> None:
    people = {"01": {}, "04": {"RadionuclideTotalDose": 167.6e6}}
    root = make_bids(tmp_path / "set", people)
    config = replace(SHORT, lpet_s={"16s": 16.0}, rule="dose")
    assert list(paired(root, "01", config).lpets) == ["ld"]
    assert list(paired(root, "04", config).lpets) == ["uld"]


def test_group_names_the_setting_of_ood3(tmp_path: Path, make_bids: MakeBids) -> None:
    groups = {"01": "B", "06": "I", "11": "BI"}
    root = make_bids(tmp_path / "set", {key: {} for key in [*groups, "12"]}, groups=groups)
    config = replace(SHORT, lpet_s={"16s": 16.0}, rule="group")
    found = [next(iter(paired(root, label, config).lpets)) for label in groups]
    assert found == ["bolus", "infusion", "hybrid"]
    with pytest.raises(InputFault, match="no group B, I or BI"):
        paired(root, "12", config)


def test_presets_have_the_papers_windows_and_planes() -> None:
    for config in PRESETS.values():
        assert (config.start_s, config.end_s, config.planes) == (1800, 3600, "130:150:2")
        assert (config.grid, config.voxel_mm, config.image_size) == ("mr", 1.0, 192)
        assert from_dict(PairingConfig, to_dict(config)) == config
    assert PRESETS["ood1"].lpet_s == {"16s": 16, "2min": 120}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"planes": "150:130:2"}, "FIRST:STOP:STEP"),
        ({"planes": "1-5"}, "FIRST:STOP:STEP"),
        ({"lpet_s": {}}, "at least one LPET"),
        ({"lpet_s": {"long": 1000.0}}, "at most half"),
        ({"rule": "dose"}, "one LPET duration"),
        ({"image_size": 100}, "multiple of 8"),
        ({"voxel_mm": 9.0}, "0.5 to 8"),
        ({"plane_step_mm": 0.1}, "1 to 50"),
        ({"end_s": 100.0}, "0 <= start < end"),
    ],
)
def test_settings_out_of_range_name_their_rule(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(PairingConfig, setting)


# --- slices --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory, make_bids: MakeBids) -> PairedScan:
    root = make_bids(tmp_path_factory.mktemp("bids") / "set", {"01": {}}, noise=0.0)
    return paired(root)


def cut(scan: PairedScan, config: PairingConfig) -> list[SliceRecord]:
    return to_records(scan, "toy", "p-1", config)


@pytest.mark.parametrize("grid", ["pet", "mr"])
def test_slices_are_aligned_scaled_and_carry_their_facts(scan: PairedScan, grid: Any) -> None:
    records = cut(scan, still(grid=grid))
    assert len({record.info.key for record in records}) == len(records) > 10
    assert {record.info.setting for record in records} == {"16s", "48s"}
    for record in records:
        assert record.info.dose_mbq == pytest.approx(249.8)
        assert record.info.voxel_mm == 5.0
        head, inside = record.x_s > 0.1, record.x_m > 0.1
        assert (head & inside).sum() > 0.9 * head.sum()
        assert 0.5 < np.percentile(record.x_p, 99.5) < 1
        assert not record.tissue.any()
    activity = records[0].x_s * records[0].info.scale
    assert 8000 < np.median(activity[activity > 6000]) < 12_000


def test_both_grids_show_the_same_head(scan: PairedScan) -> None:
    """Nose up, right on the right: the same lesions at the same places."""
    pet = cut(scan, still(grid="pet", voxel_mm=5.0))
    mr = cut(scan, still(grid="mr", voxel_mm=5.0))
    middle = [records[len(records) // 2].x_s for records in (pet, mr)]
    assert np.corrcoef(middle[0].ravel(), middle[1].ravel())[0, 1] > 0.97


def test_planes_asked_for_are_cut_and_planes_without_head_are_refused(scan: PairedScan) -> None:
    records = cut(scan, still(planes="8:18:3"))
    assert sorted({record.info.slice_index for record in records}) == [8, 11, 14, 17]
    with pytest.raises(InputFault, match="none of the chosen planes"):
        cut(scan, still(planes="400:410:1"))


def test_planes_found_by_themselves_are_evenly_spaced_through_the_wide_head(
    scan: PairedScan,
) -> None:
    records = cut(scan, still(plane_step_mm=12.0))
    planes = sorted({record.info.slice_index for record in records})
    assert set(np.diff(planes)) == {2}
    assert 4 <= len(planes) <= 9


def test_field_smaller_than_the_scan_still_holds_a_head_beside_the_centre(
    scan: PairedScan,
) -> None:
    shifted = np.eye(4)
    pad = ((0, 10), (0, 12), (0, 0))
    wide = Volume(np.pad(scan.spet.data, pad), scan.spet.affine @ shifted)
    lpets = {n: Volume(np.pad(v.data, pad), v.affine) for n, v in scan.lpets.items()}
    moved = replace(scan, spet=wide, lpets=lpets)
    config = still(image_size=32, voxel_mm=None, planes="13:14:1")
    beside, centred = cut(moved, config)[0], cut(scan, config)[0]
    total = beside.x_s.sum() * beside.info.scale
    assert total == pytest.approx(centred.x_s.sum() * centred.info.scale, rel=0.01)


def test_mr_elsewhere_is_refused(scan: PairedScan) -> None:
    far = np.eye(4)
    far[:3, 3] = 400
    with pytest.raises(InputFault, match="MR covers 0 %"):
        cut(replace(scan, mr=scan.mr.moved(far)), still())


@pytest.mark.parametrize("grid", ["pet", "mr"])
def test_registration_brings_an_mr_with_a_wrong_affine_back(
    scan: PairedScan, rigid: Callable[..., Any], grid: Any
) -> None:
    pytest.importorskip("SimpleITK")
    wrong = replace(scan, mr=scan.mr.moved(rigid((3, -2, 4), (5, -6, 4))))
    config = replace(SHORT, grid=grid)
    found, motion = registered(wrong, config)
    assert motion.moved_mm > 5
    good, mended = cut(scan, still(grid=grid)), cut(found, config)
    middle = [records[len(records) // 2] for records in (good, mended)]
    if grid == "pet":
        assert middle[1].x_m == pytest.approx(middle[0].x_m, abs=0.25)
    head = middle[1].x_s > 0.1
    assert ((middle[1].x_m > 0.1) & head).sum() > 0.97 * head.sum()
