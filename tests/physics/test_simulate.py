from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mfdiff_core.config import override
from mfdiff_core.errors import DataError
from mfdiff_core.physics import simulate
from mfdiff_core.physics.head import build_head
from mfdiff_core.physics.osem import osem
from mfdiff_core.physics.phantom import Tissue
from mfdiff_core.physics.projector import Projector
from mfdiff_core.physics.psf import GaussianBlur
from mfdiff_core.physics.simulate import (
    SimulatedSlice,
    SimulationConfig,
    label_subject,
    list_subjects,
    recipe,
    simulate_subject,
)
from mfdiff_core.physics.subjects import subject_anatomy

ARRAYS = ("x_p", "x_m", "x_s", "tissue", "lesions")

TURNED = {"slices.num_rotations": 2, "lesions.num_pet": 0}


def same(first: Iterable[SimulatedSlice], second: Iterable[SimulatedSlice]) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in ARRAYS
    )


def test_slices_come_by_rotation_slice_and_setting(coarse_phantom: SimulationConfig) -> None:
    slices = simulate_subject(coarse_phantom, list_subjects(coarse_phantom)[0], 0)
    order = [(s.rotation_index, s.slice_index, s.setting) for s in slices]
    assert order == [(r, i, "ld") for r in (0, 1) for i in (66, 74)]


def test_slices_are_what_training_expects(coarse_ood3: SimulationConfig) -> None:
    for s in simulate_subject(coarse_ood3, list_subjects(coarse_ood3)[0], 0):
        for name in ARRAYS:
            image = getattr(s, name)
            assert image.shape == (32, 32)
            assert image.flags.c_contiguous
            assert image.dtype == (np.uint8 if name in ("tissue", "lesions") else np.float32)
            assert np.isfinite(image).all()
            assert (image >= 0).all()


def test_subject_does_not_depend_on_what_was_simulated_before(
    coarse_phantom: SimulationConfig,
) -> None:
    first, second = list_subjects(coarse_phantom, num_subjects=2)
    forwards = [simulate_subject(coarse_phantom, s, 0) for s in (first, second)]
    backwards = [simulate_subject(coarse_phantom, s, 0) for s in (second, first)]
    assert same(forwards[0], backwards[1])
    assert same(forwards[1], backwards[0])


def test_osem_of_the_kept_data_is_the_lpet_and_keeping_them_changes_nothing(
    coarse_phantom: SimulationConfig,
) -> None:
    config, subject = coarse_phantom, list_subjects(coarse_phantom)[0]
    slices = simulate_subject(config, subject, 0, sinograms=True)
    plain = simulate_subject(config, subject, 0)
    assert same(slices, plain)
    assert all(s.sinogram is None for s in plain)
    recon = config.settings[0].low.recon
    psf = GaussianBlur(recon.psf_mm, config.grid.recon_mm)
    for s in slices:
        assert s.sinogram is not None
        y, factors = torch.from_numpy(s.sinogram)[..., None]
        projector = Projector(config.geometry, recon.num_subsets)
        x = osem(y, factors, projector, psf, recon.num_iterations)[..., 0]
        assert np.allclose(x.numpy(), s.x_p, rtol=1e-4, atol=1e-4 * s.x_p.max())


def test_seed_changes_lesions_and_noise_but_not_the_person(
    coarse_phantom: SimulationConfig,
) -> None:
    subject = list_subjects(coarse_phantom)[0]
    a, b = (simulate_subject(coarse_phantom, subject, seed)[0] for seed in (0, 1))
    assert np.array_equal(a.tissue, b.tissue)
    assert not np.array_equal(a.x_p, b.x_p)
    assert not np.array_equal(a.x_m, b.x_m)


def test_rotations_and_anatomy_do_not_depend_on_the_choice_of_slices(
    coarse_phantom: SimulationConfig,
) -> None:
    subject = list_subjects(coarse_phantom)[0]
    one = override(coarse_phantom, {"slices.indices": (74,)})
    few, many = (simulate_subject(c, subject, 0) for c in (one, coarse_phantom))
    for a, b in zip(few, many[1::2], strict=True):
        assert a.rotation_deg == b.rotation_deg
        assert a.num_counts == pytest.approx(b.num_counts)
        assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("x_m", "tissue"))
        assert np.allclose(a.x_p, b.x_p, rtol=1e-2, atol=0.1)


def test_rotation_comes_before_projection(coarse_phantom: SimulationConfig) -> None:
    config, subject = coarse_phantom, list_subjects(coarse_phantom)[1]
    anatomy = subject_anatomy(config, subject)
    head = build_head(anatomy, config.lesions, config.contrast, (0, subject.name))
    views = list(simulate._views(config, head, subject.name, 0))
    low = config.settings[0].low
    exposures = list(simulate._exposures(config, low, head, views, subject.name, 0))
    for view, exposure in zip(views, exposures, strict=True):
        # whatever is not air has activity and attenuates
        assert np.array_equal(exposure.activity > 0, exposure.mu_per_mm > 0)
        assert (exposure.activity > 0)[view.tissue > 0].all()
        assert (exposure.activity > 0).mean() < 1.3 * (view.tissue > 0).mean()
    assert abs(views[2].rotation_deg) > 1
    assert not np.array_equal(views[0].tissue, views[2].tissue)


def test_standard_image_lies_on_its_tissue() -> None:
    config = override(recipe("phantom", quick=True), {"slices.indices": (74,), **TURNED})
    for s in simulate_subject(config, list_subjects(config)[0], 0):
        expected = config.activity.fixed.table()[s.tissue]
        assert np.corrcoef(expected.ravel(), s.x_s.ravel())[0, 1] > 0.9


def test_slices_of_a_rotation_share_angle_and_dose(coarse_phantom: SimulationConfig) -> None:
    config = override(coarse_phantom, {"slices.num_rotations": 3})
    slices = simulate_subject(config, list_subjects(config)[0], 0)
    by_rotation = {s.rotation_index: (s.rotation_deg, round(s.num_counts)) for s in slices}
    assert len(set(by_rotation.values())) == 3
    for s in slices:
        assert (s.rotation_deg, round(s.num_counts)) == by_rotation[s.rotation_index]


def test_counts_are_divided_as_configured(coarse_phantom: SimulationConfig) -> None:
    for s in simulate_subject(coarse_phantom, list_subjects(coarse_phantom)[0], 0):
        assert 9e7 / 160 <= s.num_counts <= 12e7 / 160


def test_low_dose_is_noisier_than_standard_dose(coarse_phantom: SimulationConfig) -> None:
    for s in simulate_subject(coarse_phantom, list_subjects(coarse_phantom)[0], 0):
        white = s.tissue == Tissue.WHITE
        assert s.x_p[white].std() > s.x_s[white].std()


def test_standard_image_shows_the_recipes_activity() -> None:
    config = override(
        recipe("phantom", quick=True), {"slices.indices": (74,), "lesions.num_pet": 0}
    )
    image = simulate_subject(config, list_subjects(config)[0], 0)[0]
    grey, white = (np.median(image.x_s[image.tissue == t]) for t in (Tissue.GREY, Tissue.WHITE))
    assert 80 < grey < 100
    assert 30 < white < 42


def test_stand_ins_are_in_bq_per_ml_at_the_start_of_the_scan(coarse_ood3: SimulationConfig) -> None:
    slices = simulate_subject(coarse_ood3, list_subjects(coarse_ood3)[0], 0)
    level = {s.setting: np.percentile(s.x_s, 95) for s in slices if s.slice_index == 74}
    # 263 MBq into 70 kg, standardised uptake of 4 to 9 in what a voxel of 8 mm shows of a brain
    assert 4 < level["bolus"] / (262.9e6 / 70e3) < 9
    assert level["infusion"] < level["hybrid"] < level["bolus"]


def test_counts_of_stand_ins_follow_dose_and_time() -> None:
    coarse = {"slices.indices": (74,), "slices.num_rotations": 1}
    config = override(recipe("ood1", quick=True), coarse)
    frame, two_minutes = simulate_subject(config, list_subjects(config)[0], 0)
    assert two_minutes.num_counts == pytest.approx(8 * frame.num_counts, rel=0.02)
    assert np.array_equal(frame.x_s, two_minutes.x_s)


def test_lesions_are_seen_in_their_own_modality() -> None:
    config = override(recipe("phantom", quick=True), {"lesions.radius_mm": (8.0, 8.0)})
    seen = 0
    for subject in list_subjects(config, num_subjects=2):
        for s in simulate_subject(config, subject, 0):
            hot_pet = (s.lesions == 1) & (s.x_s > 120)
            hot_mr = (s.lesions == 2) & (s.x_m > 200)
            if hot_pet.sum() > 20:
                assert np.median(s.x_m[hot_pet]) < 190
            if hot_mr.sum() > 20:
                assert np.median(s.x_s[hot_mr]) < 110
            seen += int(hot_pet.any()) + int(hot_mr.any())
    assert seen >= 4


def test_sources_travel_to_other_processes() -> None:
    sources = list_subjects(recipe("ood1"), num_subjects=3)
    assert pickle.loads(pickle.dumps(sources)) == sources
    assert [s.name for s in sources] == ["ood1-01", "ood1-02", "ood1-03"]


def test_more_subjects_than_usual_are_still_different_people() -> None:
    assert list_subjects(recipe("phantom"), num_subjects=25)[24].name == "mni-25"


def test_brainweb_folder_is_listed(tmp_path: Path) -> None:
    for name in ("subject_04.bin.gz", "subject_05.bin.gz"):
        (tmp_path / name).write_bytes(b"")
    sources = list_subjects(recipe("phantom"), brainweb=tmp_path)
    assert [(s.name, s.kind) for s in sources] == [
        ("brainweb-04", "brainweb"),
        ("brainweb-05", "brainweb"),
    ]
    with pytest.raises(DataError, match="holds 2 subjects, 3 are asked for"):
        list_subjects(recipe("phantom"), brainweb=tmp_path, num_subjects=3)
    with pytest.raises(ValueError, match="other people"):
        list_subjects(recipe("ood1"), brainweb=tmp_path)


def test_no_subjects_are_refused() -> None:
    with pytest.raises(ValueError, match="num_subjects=0"):
        list_subjects(recipe("phantom"), num_subjects=0)


def test_any_segmentation_can_be_a_phantom(
    coarse_phantom: SimulationConfig, tmp_path: Path
) -> None:
    grid = np.indices((90, 90, 90)) - 44.5
    radius = np.sqrt((grid**2).sum(0))
    values = np.where(radius < 35, np.where(radius < 25, 3, 42), 0).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), tmp_path / "seg.nii.gz")
    subject = label_subject("site-01", tmp_path / "seg.nii.gz", {3: "white", 42: "grey"})
    for s in simulate_subject(coarse_phantom, subject, 0):
        assert s.subject == "site-01"
        assert {Tissue.GREY, Tissue.WHITE} <= set(s.tissue.ravel().tolist())
        assert s.x_s.max() > 50
