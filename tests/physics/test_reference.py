"""The LPET row of Table 1: 21.13 dB, SSIM 0.839, NMSE 0.176, each image by its own maximum."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from mfdiff_core.config import override
from mfdiff_core.physics.simulate import SimulatedSlice, list_subjects, recipe, simulate_subject

REAL = os.environ.get("MFDIFF_TEST_DATA")
ONE_TURN = {"slices.num_rotations": 1}


def lpet_row(slices: list[SimulatedSlice]) -> NDArray[np.float64]:
    """Mean PSNR, SSIM and NMSE of LPET against SPET."""
    rows = []
    for s in slices:
        low, standard = s.x_p / s.x_p.max(), s.x_s / s.x_s.max()
        error = np.square(low - standard)
        ssim = structural_similarity(low, standard, data_range=1.0)
        rows.append((-10 * np.log10(error.mean()), ssim, error.sum() / np.square(standard).sum()))
    mean: NDArray[np.float64] = np.mean(rows, axis=0)
    return mean


@pytest.mark.slow
def test_embedded_phantoms_give_the_papers_lpet_row() -> None:
    config = override(recipe("phantom"), ONE_TURN)
    subjects = list_subjects(config)
    psnr, ssim, nmse = lpet_row([s for p in subjects for s in simulate_subject(config, p, 0)])
    assert psnr == pytest.approx(21.1, abs=1.5)
    assert ssim == pytest.approx(0.84, abs=0.03)
    assert nmse == pytest.approx(0.176, abs=0.05)


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="MFDIFF_TEST_DATA names no folder with real files")
def test_a_real_brainweb_subject_gives_the_same_row() -> None:
    config = recipe("phantom")
    (subject,) = list_subjects(config, Path(str(REAL)) / "brainweb")[:1]
    psnr, ssim, nmse = lpet_row(simulate_subject(config, subject, 0))
    assert psnr == pytest.approx(21.1, abs=1.5)
    assert ssim == pytest.approx(0.84, abs=0.03)
    assert nmse == pytest.approx(0.176, abs=0.05)
