from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfdiff_core.physics.osem import osem
from mfdiff_core.physics.projector import Geometry, Projector
from mfdiff_core.physics.psf import GaussianBlur

N = 24
GEOMETRY = Geometry(image_px=N, voxel_mm=2.0, num_bins=30, bin_mm=1.7, num_views=20)
PSF = GaussianBlur(3.0, 2.0)


def projector(num_subsets: int) -> Projector:
    return Projector(GEOMETRY, num_subsets, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(a: Projector, scale: float = 1e3) -> tuple[Tensor, Tensor, Tensor]:
    """Truth [N, N, 2], factors, and noise-free data."""
    x = torch.zeros(N, N, 2, dtype=torch.float64)
    x[4:20, 5:19] = scale * (0.2 + random(16, 14, 2))
    factors = 0.1 + random(20, 30, 2, seed=1)
    return x, factors, factors * a.project(PSF(x).reshape(-1, 2))


def test_one_subset_is_mlem() -> None:
    a = projector(1)
    x, an, y = problem(a)
    y *= 0.8 + 0.4 * random(20, 30, 2, seed=2)
    estimate = torch.ones_like(x)
    sensitivity = PSF(a.adjoint(0, an.reshape(-1, 2)).view(N, N, 2))
    for _ in range(4):
        expected = an * a.project(PSF(estimate).reshape(-1, 2))
        back = a.adjoint(0, (an * y / expected).reshape(-1, 2)).view(N, N, 2)
        estimate = estimate * PSF(back) / sensitivity
    assert torch.allclose(osem(y, an, a, PSF, 4), estimate, rtol=1e-10)


def test_mlem_keeps_the_counts() -> None:
    a = projector(1)
    _, an, y = problem(a)
    y *= 0.5 + random(20, 30, 2, seed=3)
    x = osem(y, an, a, PSF, 3)
    modelled = an * a.project(PSF(x).reshape(-1, 2))
    assert torch.allclose(modelled.sum((0, 1)), y.sum((0, 1)), rtol=1e-10)


@pytest.mark.parametrize("num_subsets", [1, 3, 7])
def test_truth_is_a_fixed_point_of_every_subset(num_subsets: int) -> None:
    a = projector(num_subsets)
    x, an, y = problem(a)
    x = x + 1.0  # what is zero stays zero anyway
    y = an * a.project(PSF(x).reshape(-1, 2))
    assert torch.allclose(osem(y, an, a, PSF, 2, start=x), x, rtol=1e-10)


def test_truth_is_a_fixed_point_with_background_too() -> None:
    a = projector(3)
    x, an, _ = problem(a)
    x, b = x + 1.0, 50 * random(20, 30, 2, seed=4)
    y = an * a.project(PSF(x).reshape(-1, 2)) + b
    assert torch.allclose(osem(y, an, a, PSF, 2, background=b, start=x), x, rtol=1e-10)


@pytest.mark.parametrize("num_subsets", [1, 7, 20])
def test_osem_never_produces_negative_activity(num_subsets: int) -> None:
    a = projector(num_subsets)
    _, an, y = problem(a, scale=0.05)
    noisy = torch.poisson(y, generator=torch.Generator().manual_seed(0))
    assert (noisy == 0).any()
    x = osem(noisy, an, a, PSF, 10)
    assert torch.isfinite(x).all()
    assert (x >= 0).all()


def test_osem_approaches_noise_free_truth() -> None:
    a = projector(5)
    x, an, y = problem(a)
    errors = [float((osem(y, an, a, PSF, n) - x).square().sum()) for n in (1, 5, 40)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * float(x.square().sum())


def test_images_do_not_influence_each_other() -> None:
    a = projector(3)
    _, an, y = problem(a)
    both = osem(y, an, a, PSF, 3)
    alone = osem(y[:, :, 1:].contiguous(), an[:, :, 1:].contiguous(), a, PSF, 3)
    assert torch.allclose(both[:, :, 1:], alone, rtol=1e-12)


def test_pixels_that_no_line_meets_are_zero() -> None:
    a = Projector(
        Geometry(image_px=24, voxel_mm=2.0, num_bins=4, bin_mm=1.0, num_views=3),
        dtype=torch.float64,
    )
    ones = torch.ones(3, 4, 1, dtype=torch.float64)
    x = osem(ones, ones, a, GaussianBlur(0.0, 2.0), 2)
    unseen = a.adjoint(0, ones.view(-1, 1)).view(24, 24, 1) == 0
    assert unseen.any()
    assert x[unseen].max() < 1e-12


@pytest.mark.gpu
def test_the_same_arrays_give_the_same_image_on_cuda() -> None:
    a, b = Projector(GEOMETRY, 3), Projector(GEOMETRY, 3, device="cuda")
    _, an, y = (t.float() for t in problem(projector(3)))
    on_cuda = osem(y.cuda(), an.cuda(), b, PSF, 3).cpu()
    assert torch.allclose(on_cuda, osem(y, an, a, PSF, 3), rtol=1e-3, atol=1e-2)
