from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfdiff_core.comparison.fb_sem import FBSEM, em_subsets, fuse
from mfdiff_core.physics.osem import osem
from mfdiff_core.physics.projector import cached_projector
from mfdiff_core.physics.psf import GaussianBlur
from tests.comparison.toy_systems import TOY, Slices, thin


def fb_sem(gamma: float) -> FBSEM:
    system = thin("fb-sem").eval()
    assert isinstance(system, FBSEM)
    system.log_gamma.data = torch.tensor(gamma).log()
    return system


def osem_of(slices: Slices, system: FBSEM, num_iterations: int) -> Tensor:
    """[B, 1, n, n] by the physics' own OSEM."""
    y, factors = (s.permute(1, 2, 0).contiguous() for s in slices.scan)
    blur = GaussianBlur(system.config.psf_mm, TOY.voxel_mm)
    x = osem(y, factors, cached_projector(TOY, system.config.num_subsets), blur, num_iterations)
    return x.permute(2, 0, 1).unsqueeze(1)


@torch.no_grad()
@pytest.mark.parametrize("num_iterations", [1, 4])
def test_without_a_prior_it_is_osem(slices: Slices, num_iterations: int) -> None:
    system = fb_sem(0.0)
    x = system.reconstruct(slices.x_m, *slices.scan, num_iterations)
    torch.testing.assert_close(x, osem_of(slices, system, num_iterations), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_tends_to_osem_as_the_prior_weakens(slices: Slices) -> None:
    def distance(gamma: float) -> float:
        system = fb_sem(gamma)
        x = system.reconstruct(slices.x_m, *slices.scan, 2)
        return float((x - osem_of(slices, system, 2)).abs().max())

    distances = [distance(gamma) for gamma in (10.0, 1.0, 0.1, 0.01)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.05 * distances[0]


def test_fused_image_solves_the_quadratic() -> None:
    source = torch.Generator().manual_seed(0)
    x_em, r, weight = (
        scale * torch.rand(1000, generator=source, dtype=torch.float64) for scale in (2.0, 3.0, 1.0)
    )
    x = fuse(x_em, r, weight)
    assert (x >= 0).all()
    left = weight * x**2 + (1 - weight * r) * x - x_em
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-10, rtol=0)


def test_fusion_and_its_gradient_are_finite_where_the_published_root_is_zero_over_zero() -> None:
    x_em = torch.tensor([0.0, 0.0, 0.0, 1.0])
    weight = torch.tensor([2.0, 0.0, 0.5, 0.0])
    r = torch.tensor([5.0, 5.0, 2.0, 5.0], requires_grad=True)
    x = fuse(x_em, r, weight)
    torch.testing.assert_close(x.detach(), torch.tensor([4.5, 0.0, 0.0, 1.0]), atol=1e-4, rtol=0)
    x.sum().backward()  # type: ignore[no-untyped-call]
    assert r.grad is not None
    assert torch.isfinite(r.grad).all()


def test_em_step_passes_no_gradient(slices: Slices) -> None:
    subset = em_subsets(fb_sem(0.1).config, *slices.scan)[0]
    x = torch.ones(4, 1, 32, 32, requires_grad=True)
    assert not subset.em_step(x).requires_grad


def test_pixels_that_no_line_crosses_stay_finite(slices: Slices) -> None:
    """Image corners lie outside every view."""
    blind = slices._replace(y=0 * slices.y, factors=0 * slices.factors)
    system = fb_sem(0.1)
    with torch.no_grad():
        x = system.reconstruct(blind.x_m, *blind.scan, 2)
    assert torch.isfinite(x).all()


def test_slices_on_a_finer_grid_are_reconstructed_on_the_scanners(slices: Slices) -> None:
    system = fb_sem(0.1).train()
    fine = [torch.nn.functional.interpolate(x, scale_factor=1.5) for x in slices.images]
    system(*fine, *slices.scan).backward()
    grids: list[torch.Size] = []
    system.cnn.register_forward_pre_hook(lambda _, args: grids.append(args[0].shape))
    system(*fine, *slices.scan)
    assert set(grids) == {torch.Size((4, 2, 32, 32))}


def test_passes_differ_between_training_and_restoration(slices: Slices) -> None:
    system = thin("fb-sem", train_iterations=1, restore_iterations=2)
    assert isinstance(system, FBSEM)
    calls: list[int] = []
    system.cnn.register_forward_pre_hook(lambda *_: calls.append(1))
    system(*slices.images, *slices.scan)
    assert len(calls) == 3  # subsets
