from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mfdiff_core.config import flatten, from_dict, override, to_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.physics.activity import activity_table
from mfdiff_core.physics.domains import DOMAINS
from mfdiff_core.physics.kinetics import decay_correction
from mfdiff_core.physics.phantom import Tissue
from mfdiff_core.physics.recipe import GridConfig, SlicesConfig
from mfdiff_core.physics.simulate import SimulationConfig, list_subjects, recipe

SETTINGS = {
    "phantom": ["ld"],
    "ood1": ["16s", "2min"],
    "ood2": ["ld", "uld"],
    "ood3": ["bolus", "infusion", "hybrid"],
}


def grey_and_white(config: SimulationConfig, setting: str, subject: str = "x") -> list[float]:
    frame = next(s.low.frame for s in config.settings if s.name == setting)
    table = activity_table(config.activity, frame, (0, subject))
    return [float(table[Tissue.GREY]), float(table[Tissue.WHITE])]


def test_every_domain_has_its_settings() -> None:
    assert tuple(SETTINGS) == DOMAINS
    for domain, names in SETTINGS.items():
        assert [s.name for s in recipe(domain).settings] == names


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("quick", [False, True])
def test_a_recipe_survives_json(domain: str, quick: bool) -> None:
    config = recipe(domain, quick=quick)
    assert from_dict(SimulationConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_full_recipes_make_192_pixels_over_the_same_field() -> None:
    for domain in DOMAINS:
        grid = recipe(domain).grid
        assert grid.output_px == 192
        assert grid.output_mm == pytest.approx(1.39084)


def test_cropped_view_is_the_scanners_own_grid() -> None:
    config = recipe("phantom", view="crop192")
    assert (config.grid.output_px, config.grid.output_mm) == (192, 2.08626)
    assert config.scanner.counts_divisor == 100


def test_quick_changes_the_grid_and_not_the_physics() -> None:
    for domain in DOMAINS:
        full, quick = flatten(recipe(domain)), flatten(recipe(domain, quick=True))
        changed = {key for key in full if full[key] != quick[key]}
        allowed = ("grid.", "slices.", "scanner.counts_divisor")
        assert all(key.startswith(allowed) for key in changed)


def test_phantom_recipe_is_the_papers() -> None:
    config = recipe("phantom")
    low, standard = config.settings[0].low, config.settings[0].standard
    assert config.slices.indices == tuple(range(65, 84, 2))
    assert (config.anatomy.num_subjects, config.slices.num_rotations) == (20, 5)
    assert (low.counts_3d, standard.counts_3d) == ((9e7, 12e7), (1e10, 1e10))
    assert (low.psf_data_mm, standard.psf_data_mm) == (4.0, 2.5)
    assert (standard.recon.num_iterations, standard.recon.num_subsets) == (15, 10)
    assert (low.recon.num_iterations, low.recon.num_subsets) == (10, 14)


def test_stand_ins_reconstruct_as_the_paper_says() -> None:
    for domain in ("ood1", "ood2", "ood3"):
        for setting in recipe(domain).settings:
            assert setting.low.recon == setting.standard.recon
            recon, frame = setting.standard.recon, setting.standard.frame
            assert (recon.num_iterations, recon.num_subsets) == (3, 21)
            assert recon.post_filter_mm in (4.0, 5.0)
            assert frame is not None
            assert (frame.start_s, frame.duration_s) == (1800, 1800)


def test_low_window_lies_in_the_standard_one() -> None:
    for domain in ("ood1", "ood2", "ood3"):
        for setting in recipe(domain).settings:
            low, standard = setting.low.frame, setting.standard.frame
            assert low is not None
            assert standard is not None
            assert low.start_s >= standard.start_s
            assert low.start_s + low.duration_s <= standard.start_s + standard.duration_s


def test_domains_differ_in_people_contrast_and_anatomy() -> None:
    configs = [recipe(d) for d in DOMAINS]
    subjects = [s.name for c in configs for s in list_subjects(c)]
    assert len(subjects) == len(set(subjects)) == 38
    for part in ("anatomy", "contrast"):
        assert len({json.dumps(to_dict(getattr(c, part))) for c in configs}) == 4


def test_settings_of_ood1_share_their_standard_image() -> None:
    assert len(recipe("ood1").acquisitions) == 3
    assert len(recipe("ood2").acquisitions) == 4


def test_lower_dose_means_less_activity() -> None:
    config = recipe("ood2")
    (ld, _), (uld, _) = grey_and_white(config, "ld"), grey_and_white(config, "uld")
    assert uld / ld == pytest.approx(167 / 225)


def test_protocols_differ_in_activity_and_contrast() -> None:
    config = recipe("ood3")
    level = {n: grey_and_white(config, n)[0] for n in SETTINGS["ood3"]}
    ratio = {
        n: grey / white for n in SETTINGS["ood3"] for grey, white in [grey_and_white(config, n)]
    }
    assert level["bolus"] > level["hybrid"] > level["infusion"]
    assert ratio["bolus"] > ratio["hybrid"] > ratio["infusion"]


@pytest.mark.parametrize(
    ("domain", "setting", "grey", "white"),
    [
        ("ood1", "16s", 1.00, 1.00),
        ("ood1", "2min", 1.00, 1.00),
        ("ood2", "ld", 1.00, 1.00),
        ("ood2", "uld", 1.00, 1.00),
        ("ood3", "bolus", 1.05, 1.05),
        ("ood3", "infusion", 1.16, 1.16),
        ("ood3", "hybrid", 1.10, 1.09),
    ],
)
def test_level_of_a_frame_against_the_half_hour_is_that_of_the_documentation(
    domain: str, setting: str, grey: float, white: float
) -> None:
    same = {"activity.dose_std": 0.0, "activity.rates_std": 0.0}
    config = override(recipe(domain), same)
    (pair,) = (s for s in config.settings if s.name == setting)
    low, standard = (
        activity_table(config.activity, frame, (0, "x"))
        * decay_correction(frame.start_s, frame.duration_s)
        for frame in (pair.low.frame, pair.standard.frame)
        if frame is not None
    )
    assert low[Tissue.GREY] / standard[Tissue.GREY] == pytest.approx(grey, abs=0.0051)
    assert low[Tissue.WHITE] / standard[Tissue.WHITE] == pytest.approx(white, abs=0.0051)


def test_subjects_differ_in_uptake() -> None:
    grey = [grey_and_white(recipe("ood3"), "bolus", f"s{i}")[0] for i in range(20)]
    assert 0.03 < np.std(grey) / np.mean(grey) < 0.3


@pytest.mark.parametrize("spread", ["dose_std", "rates_std"])
def test_uptake_varies_by_the_configured_spread(spread: str) -> None:
    none = {"activity.dose_std": 0.0, "activity.rates_std": 0.0}
    config = override(recipe("ood3"), {**none, f"activity.{spread}": 0.1})
    frame = config.settings[0].low.frame
    tables = [activity_table(config.activity, frame, (0, f"s{i}")) for i in range(60)]
    values = [t[Tissue.GREY] for t in tables]
    assert 0.05 < np.std(values) / np.mean(values) < 0.2


def test_trapping_alone_changes_the_brain_and_not_the_blood() -> None:
    config = override(recipe("ood3"), {"activity.dose_std": 0.0})
    frame = config.settings[0].low.frame
    tables = [activity_table(config.activity, frame, (0, f"s{i}")) for i in range(5)]
    assert len({float(t[Tissue.VESSELS]) for t in tables}) == 1
    assert len({float(t[Tissue.GREY]) for t in tables}) == 5


def test_subjects_differ_in_trapping_and_not_only_in_delivery() -> None:
    config = override(recipe("ood3"), {"activity.dose_std": 0.0, "activity.grey.vb": 0.0})
    late = config.settings[0].standard.frame
    assert late is not None
    early = dataclasses.replace(late, start_s=60.0, duration_s=30.0)
    gain = [
        np.divide(
            *(activity_table(config.activity, f, (0, f"s{i}"))[Tissue.GREY] for f in (late, early))
        )
        for i in range(20)
    ]
    assert np.std(gain) / np.mean(gain) > 0.03  # K1 alone would scale both frames alike


def test_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="phantom, ood1, ood2, ood3"):
        recipe("ood4")


def test_impossible_grids_are_refused_with_their_path() -> None:
    with pytest.raises(ConfigError, match=r"grid: recon voxels must be a multiple"):
        override(recipe("phantom"), {"grid.recon_mm": 2.0})
    with pytest.raises(ValueError, match="field_px=200"):
        GridConfig(recon_px=128, recon_mm=2.08626, field_px=200, output_px=200)


def test_impossible_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="indices"):
        SlicesConfig(indices=(127,))
    with pytest.raises(ValueError, match="max_rotation_deg"):
        SlicesConfig(max_rotation_deg=45.0)


def test_more_subsets_than_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="sd: 252 views make no 253 subsets"):
        override(recipe("phantom"), {"settings.0.standard.recon.num_subsets": 253})


def test_two_acquisitions_need_two_names() -> None:
    config = to_dict(recipe("phantom"))
    config["settings"][0]["low"]["name"] = "sd"
    with pytest.raises(ConfigError, match="two different acquisitions"):
        from_dict(SimulationConfig, config)
