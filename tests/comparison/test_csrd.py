from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mfdiff_core.comparison.csrd import CSRD, CSRDConfig, heun
from mfdiff_core.comparison.score_unet import ScoreUNet, ScoreUNetConfig
from mfdiff_core.diffusion.noise import NoiseSource
from tests.comparison.toy_systems import Slices, extra, restored, thin


def awake(**changes: Any) -> CSRD:
    """A thin CSRD whose network says something."""
    system = thin("csrd", **changes).eval()
    assert isinstance(system, CSRD)
    torch.nn.init.normal_(system.unet.conv_out.weight, std=0.1)
    return system


def level(sigma: float) -> Tensor:
    return torch.full((4,), sigma)


def test_network_has_the_published_size_of_the_score_model_it_follows() -> None:
    """EDM's CIFAR-10 model: 55,733,891, of which attention at 16 x 16 and labels are not here."""
    with torch.device("meta"):
        config = ScoreUNetConfig(channels=128, multipliers=(2, 2, 2))
        size = sum(p.numel() for p in ScoreUNet(config, 3, 3).parameters())
    c = 256
    attention = 2 * c + (3 * c * c + 3 * c) + (c * c + c)
    assert size + 5 * attention + 9 * 128 == 55_733_891


@torch.no_grad()
def test_denoiser_tends_to_the_identity_as_sigma_vanishes(slices: Slices) -> None:
    system = awake()
    x = slices.x_s - slices.x_p
    errors = [
        float((system.denoise(x, level(sigma), slices.x_p, slices.x_m) - x).abs().max())
        for sigma in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    assert errors[0] > 8 * errors[1] > 64 * errors[2] > 0
    assert errors[3] < 1e-2 * errors[0]


@torch.no_grad()
def test_denoiser_of_a_silent_network_is_the_best_linear_one(slices: Slices) -> None:
    """E[r | r + n] of a Gaussian r with standard deviation sigma_data."""
    system = awake(sigma_data=0.3)
    for parameter in system.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    x = slices.x_s - slices.x_p
    denoised = system.denoise(x, level(0.4), slices.x_p, slices.x_m)
    torch.testing.assert_close(denoised, x * 0.09 / 0.25)


def test_weighted_loss_of_a_silent_network_is_about_one() -> None:
    """What the weight is for: every noise level counts alike, Karras et al. 2022, Sec. 5."""
    system = awake(residual_std=0.5)
    for parameter in system.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    source = torch.Generator().manual_seed(0)
    x_p = torch.rand(64, 1, 32, 32, generator=source)
    x_s = x_p + 0.5 * torch.randn(x_p.shape, generator=source)
    drawn = system.draw(x_p.shape, 0.0, source)
    loss = system.training_losses(x_p, x_p, x_s, *drawn).restoration
    assert float(loss.detach()) == pytest.approx(1.0, abs=0.02)


def test_training_noise_levels_are_log_normal() -> None:
    system = CSRD(CSRDConfig(unet=ScoreUNetConfig(channels=4, blocks=1)))
    sigma, eps = system.draw(torch.Size((20_000, 1, 1, 1)), 0.0, torch.Generator().manual_seed(0))
    assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(sigma.log().std()) == pytest.approx(1.2, abs=0.03)
    assert float(eps.std()) == pytest.approx(1.0, abs=0.02)


@torch.no_grad()
@pytest.mark.parametrize("residual_std", [0.5, 0.1])
def test_a_perfect_residual_restores_the_spet(
    slices: Slices, residual_std: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = awake(residual_std=residual_std)
    r = (slices.x_s - slices.x_p) * 0.5 / residual_std
    monkeypatch.setattr(system, "denoise", lambda *_: r)
    torch.testing.assert_close(restored(system, slices), slices.x_s, atol=1e-5, rtol=0)
    sigma, eps = extra(system, slices)
    assert float(system(*slices.images, sigma, eps)) == pytest.approx(0.0, abs=1e-9)


def test_restored_image_is_the_lpet_plus_the_residual(slices: Slices) -> None:
    system = awake(sigma_min=1e-6, sigma_max=1e-5)
    expected = slices.x_p  # no noise, no residual
    torch.testing.assert_close(restored(system, slices), expected, atol=1e-4, rtol=0)


def test_levels_fall_from_sigma_max_to_sigma_min_and_end_at_zero() -> None:
    levels = CSRD(CSRDConfig(unet=ScoreUNetConfig(channels=4, blocks=1))).levels()
    assert len(levels) == 19
    assert levels[0] == pytest.approx(80.0)
    assert levels[-2] == pytest.approx(0.002)
    assert levels[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_heun_follows_the_exact_path_of_gaussian_data_to_second_order() -> None:
    """D(x) = x s^2 / (s^2 + sigma^2) has the solution x sqrt((s^2 + sigma^2) / ...)."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x * 0.25 / (0.25 + sigma**2)

    def error(steps: int) -> float:
        levels = [2.0 * (1 - i / steps) for i in range(steps + 1)]
        start = torch.ones(1, dtype=torch.float64)
        exact = math.sqrt(0.25 / (0.25 + 4.0))
        return abs(float(heun(denoise, start, levels)) - exact)

    assert error(40) < 0.35 * error(20)  # a quarter, but for the last step, which is Euler's
    assert error(80) < 0.35 * error(40)


def test_sampler_counts_and_reports_its_evaluations(slices: Slices) -> None:
    system = awake(num_steps=3, num_samples=2)
    calls: list[tuple[int, int]] = []
    drawn = system.restore(
        slices.x_p,
        slices.x_m,
        NoiseSource(0, ("a", "b", "c", "d"), (32, 32)),
        on_step=lambda *call: calls.append(call),
    )
    assert drawn.num_evaluations == 10
    assert calls == [(i, 10) for i in range(1, 11)]
    assert float(drawn.std.mean()) > 0


def test_loss_is_finite_at_the_extremes_of_sigma(slices: Slices) -> None:
    system = awake()
    _, eps = extra(system, slices)
    for sigma in (1e-4, 1e3):
        assert torch.isfinite(system(*slices.images, level(sigma), eps))
