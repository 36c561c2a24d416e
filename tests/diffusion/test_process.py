"""Schedule, forward process, targets and posterior: Eq. (5) to (9)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torch import Tensor

from mfdiff_core.config import from_dict
from mfdiff_core.diffusion import (
    DiffusionConfig,
    DiffusionProcess,
    NoiseSchedule,
    from_diffusion,
    to_diffusion,
)
from mfdiff_core.errors import ConfigError
from mfdiff_core.seeding import generator

STEPS = torch.tensor([0, 1, 250, 998, 999])


def process(**changes: Any) -> DiffusionProcess:
    return DiffusionProcess(from_dict(DiffusionConfig, {"clip": None, **changes}))


def images(count: int = len(STEPS), side: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.randn(3, count, 1, side, side, generator=generator(0, "images"))
    return drawn[0], drawn[1], drawn[2]


def test_alpha_bar_has_the_published_values() -> None:
    alpha_bar = NoiseSchedule.linear(1000, 1e-4, 0.02).alpha_bar
    expected = torch.tensor([0.9999, 0.078587, 4.0358e-5])
    torch.testing.assert_close(alpha_bar[[0, 499, 999]], expected, rtol=1e-5, atol=0)


def test_tables_are_rounded_once_from_double_precision() -> None:
    schedule = NoiseSchedule.linear(1000, 1e-4, 0.02)
    exact = torch.tensor(1.0 - schedule.alpha_bars).sqrt()
    # Subtracting in float32 would lose three digits at t = 0, where 1 - alpha_bar = 1e-4.
    torch.testing.assert_close(schedule.sqrt_one_minus_alpha_bar.double(), exact, rtol=1e-7, atol=0)


def test_step_minus_one_is_the_clean_image() -> None:
    assert NoiseSchedule.linear(10, 1e-4, 0.02).alpha_bar_at(-1) == 1.0


def test_one_step_at_a_time_gives_the_law_of_eq_7() -> None:
    schedule = process().schedule
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.beta.double().tolist()):
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta  # Eq. (6)
        assert mean == pytest.approx(schedule.sqrt_alpha_bar[t].item(), rel=1e-5)
        assert variance == pytest.approx(schedule.sqrt_one_minus_alpha_bar[t].item() ** 2, rel=1e-5)


def test_noised_image_has_mean_and_variance_of_eq_7() -> None:
    t, x_0 = torch.tensor([499]), torch.full((1, 1, 300, 300), 0.5)
    x_t = process().add_noise(x_0, t, torch.randn(x_0.shape, generator=generator(0)))
    # 9e4 pixels: the standard errors are 0.003 and 0.004.
    assert x_t.mean().item() == pytest.approx(math.sqrt(0.078587) * 0.5, abs=0.012)
    assert x_t.var().item() == pytest.approx(1 - 0.078587, abs=0.016)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "eps"},
        {"target": "v"},
        {"target": "x0"},
        {"target": "x0", "residual": True},
        {"target": "x0", "residual": True, "smoothing_px": 0.9, "output_scale": 0.1},
    ],
    ids=str,
)
def test_a_perfect_output_has_no_loss_and_returns_x_0(changes: dict[str, Any]) -> None:
    x_0, eps, x_p = (x.double() for x in images())
    p = process(**changes)
    x_t = p.add_noise(x_0, STEPS, eps)
    output = p.target(x_0, STEPS, eps, x_p)
    assert p.loss(output, x_0, STEPS, eps, x_p) == 0
    estimate = p.predict_x0(output, x_t, STEPS, x_p)
    # Tables are float32 (6e-8) and eps is amplified by 1/sqrt(alpha_bar) = 157 at the last step.
    torch.testing.assert_close(estimate, x_0, atol=1e-4, rtol=0)


def test_output_scale_multiplies_the_target_alone() -> None:
    x_0, eps, x_p = images()
    plain, scaled = (
        process(target="x0", output_scale=scale).target(x_0, STEPS, eps, x_p)
        for scale in (1.0, 0.1)
    )
    torch.testing.assert_close(scaled, 10.0 * plain)


def test_an_output_of_zero_restores_the_filtered_lpet() -> None:
    x_p = torch.randn(1, 1, 12, 9, generator=generator(0))
    p = process(target="x0", residual=True, smoothing_px=0.9)
    estimate = p.predict_x0(torch.zeros_like(x_p), x_p, torch.tensor([500]), x_p)
    expected = gaussian_filter(x_p[0, 0].numpy(), 0.9, mode="nearest", radius=3)
    torch.testing.assert_close(estimate[0, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_noise_aware_network_puts_back_as_much_of_the_detail_as_it_says() -> None:
    x_p = torch.randn(1, 1, 12, 9, generator=generator(0))
    p = process(target="x0", residual=True, smoothing_px=0.9, noise_aware=True, output_scale=0.1)

    def estimate(residual: float, gain: float) -> Tensor:
        output = torch.cat((torch.full_like(x_p, residual), torch.full_like(x_p, gain)), dim=1)
        return p.predict_x0(output, x_p, torch.tensor([500]), x_p)[0, 0]

    filtered = torch.tensor(gaussian_filter(x_p[0, 0].numpy(), 0.9, mode="nearest", radius=3))
    for residual, gain in ((0.0, 0.0), (0.0, 1.0), (2.0, 0.25), (0.0, -0.5)):
        expected = 0.1 * residual + (1 - gain) * filtered + gain * x_p[0, 0]
        torch.testing.assert_close(estimate(residual, gain), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("activity", "unit"), [(0.25, 1.0), (1.0, 2.0), (0.04, 0.4), (0.0, 0.02), (-0.5, 0.02)]
)
def test_a_correction_grows_with_the_square_root_of_the_activity(
    activity: float, unit: float
) -> None:
    p = process(target="x0", residual=True, activity_scaled=True, output_scale=0.1)
    x_p = to_diffusion(torch.full((1, 1, 4, 4), activity))
    estimate = p.predict_x0(torch.full_like(x_p, 3.0), x_p, torch.tensor([500]), x_p)
    torch.testing.assert_close(estimate, x_p + 0.3 * unit, atol=2e-3, rtol=0)


def test_activity_is_that_of_the_filtered_lpet() -> None:
    x_p = to_diffusion(torch.rand(1, 1, 12, 9, generator=generator(0)))
    p = process(target="x0", residual=True, smoothing_px=0.9, activity_scaled=True)
    estimate = p.predict_x0(torch.full_like(x_p, 0.5), x_p, torch.tensor([500]), x_p)
    filtered = torch.tensor(gaussian_filter(x_p[0, 0].numpy(), 0.9, mode="nearest", radius=3))
    expected = filtered + from_diffusion(filtered).sqrt()
    torch.testing.assert_close(estimate[0, 0], expected, atol=1e-3, rtol=0)
    output = p.target(estimate, STEPS[:1], x_p, x_p)
    torch.testing.assert_close(output, torch.full_like(x_p, 0.5), atol=1e-5, rtol=0)


def test_a_perfect_activity_scaled_output_returns_x_0() -> None:
    x_0, eps, x_p = (x.double() for x in images())
    p = process(target="x0", residual=True, activity_scaled=True, output_scale=0.1)
    estimate = p.predict_x0(p.target(x_0, STEPS, eps, x_p), eps, STEPS, x_p)
    torch.testing.assert_close(estimate, x_0)


def test_an_activity_scaled_error_is_no_smaller_where_it_is_dark() -> None:
    """The loss is that of the image, not of the network's output."""
    x_0 = to_diffusion(torch.tensor([[[[0.0, 0.25, 1.0]]]]))
    p = process(target="x0", residual=True, activity_scaled=True, output_scale=0.5)
    output = p.target(x_0 + 0.2, STEPS[:1], x_0, x_0)
    assert p.loss(output, x_0, STEPS[:1], x_0, x_0).item() == pytest.approx((0.2 / 0.5) ** 2)


def test_gain_of_detail_is_trained_by_the_squared_error_of_the_estimate() -> None:
    x_0, eps, x_p = images()
    p = process(target="x0", residual=True, smoothing_px=0.9, noise_aware=True, output_scale=0.5)
    output = torch.cat((eps, 0.3 * eps), dim=1).requires_grad_()
    loss = p.loss(output, x_0, STEPS, eps, x_p)
    error = (p.predict_x0(output, x_p, STEPS, x_p) - x_0) / 0.5
    torch.testing.assert_close(loss, error.square().mean())
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient[:, 1].abs().min() > 0


def test_noise_is_recovered_from_x_0() -> None:
    x_0, eps, _ = (x.double() for x in images())
    p = process()
    x_t = p.add_noise(x_0, STEPS, eps)
    torch.testing.assert_close(p.predict_eps(x_0, x_t, STEPS), eps, atol=1e-4, rtol=0)


def test_loss_is_the_mean_of_squared_errors_in_float32() -> None:
    x_0, eps, x_p = images()
    loss = process().loss(torch.zeros_like(eps).bfloat16(), x_0, STEPS, eps, x_p)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, eps.square().mean())


def test_clipped_loss_asks_for_nothing_below_zero_activity() -> None:
    """Of three pixels without activity one is above zero; others are too low, and too bright."""
    p = process(target="x0", output_scale=0.5, clip_in_loss=True, clip=(-1.0, 1.5))
    x_0 = torch.tensor([[[[-1.0, -1.0, -1.0, 0.4, 1.4]]]])
    estimate = torch.tensor([[[[-1.3, -1.0, -0.9, 0.2, 1.7]]]])
    output = (estimate / 0.5).requires_grad_()
    loss = p.loss(output, x_0, STEPS[:1], x_0, x_0)
    expected = (0.1**2 + 0.2**2 + 0.3**2) / 0.5**2 / 5
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient.sign().flatten().tolist() == [0.0, 0.0, 1.0, -1.0, 1.0]


def test_losses_with_and_without_clipping_agree_inside_the_bounds() -> None:
    x_0, eps, x_p = images()
    given = {"target": "x0", "residual": True, "output_scale": 0.1, "clip": (-99, 99)}
    plain, clipped = (process(**given, clip_in_loss=clip) for clip in (False, True))
    losses = [p.loss(0.3 * eps, x_0, STEPS, eps, x_p) for p in (plain, clipped)]
    torch.testing.assert_close(*losses)


def test_ssim_counts_beside_the_squared_error_of_the_same_estimate() -> None:
    x_0, eps, x_p = (0.5 * x for x in images(side=16))
    given = {"target": "x0", "residual": True, "output_scale": 0.1}
    given |= {"clip_in_loss": True, "clip": (-1.0, 99.0)}
    plain, both = (process(**given, ssim_weight=weight) for weight in (0.0, 0.7))
    restored = both.predict_x0(eps, x_0, STEPS, x_p)
    pairs = zip(*(from_diffusion(x)[:, 0].double().numpy() for x in (restored, x_0)), strict=True)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similar = [structural_similarity(*pair, data_range=1.0, **window) for pair in pairs]
    losses = [p.loss(eps, x_0, STEPS, eps, x_p).item() for p in (plain, both)]
    assert losses[1] - losses[0] == pytest.approx(0.7 * (1 - np.mean(similar)), rel=1e-4)


def test_gradient_of_ssim_points_to_the_image() -> None:
    """Without the squared error: a step down the gradient makes the estimate more similar."""
    x_0, eps, x_p = images(side=16)
    p = process(target="x0", output_scale=1e3, ssim_weight=1.0)
    output = (1e-3 * (x_0 + 0.1 * eps)).requires_grad_()
    loss = p.loss(output, x_0, STEPS, eps, x_p)
    (gradient,) = torch.autograd.grad(loss, output)
    assert torch.isfinite(gradient).all()
    assert p.loss(output - 1e-6 * gradient, x_0, STEPS, eps, x_p) < loss


def test_autocast_does_not_round_what_a_residual_is_added_to() -> None:
    x_0, eps, x_p = images()
    p = process(target="x0", residual=True, smoothing_px=0.9, output_scale=0.1)
    exact = p.loss(eps, x_0, STEPS, eps, x_p)
    with torch.autocast("cpu", torch.bfloat16):
        assert p.loss(eps, x_0, STEPS, eps, x_p) == exact


def test_estimates_of_x_0_are_clipped() -> None:
    _, x_t, x_p = images()
    estimate = process(clip=(-1.0, 1.5)).predict_x0(torch.zeros_like(x_t), 1e3 * x_t, STEPS, x_p)
    assert estimate.min() == -1.0
    assert estimate.max() == 1.5


@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_eq_8_is_the_posterior_mean_without_clipping(t: int) -> None:
    x_0, eps, _ = (x.double() for x in images())
    p = process()
    bar = p.schedule.alpha_bar_at(t)
    x_t = math.sqrt(bar) * x_0 + math.sqrt(1 - bar) * eps
    expected = p.posterior_mean(x_0, x_t, t, t - 1)
    torch.testing.assert_close(p.eq8_mean(eps, x_t, t), expected, rtol=1e-9, atol=1e-12)


def test_eq_8_of_the_first_step_is_x_0() -> None:
    x_0, eps, _ = (x.double() for x in images())
    p = process()
    bar = p.schedule.alpha_bar_at(0)
    x_t = math.sqrt(bar) * x_0 + math.sqrt(1 - bar) * eps
    torch.testing.assert_close(p.eq8_mean(eps, x_t, 0), x_0)
    torch.testing.assert_close(p.posterior_mean(x_0, x_t, 0, -1), x_0)


@pytest.mark.parametrize(("t", "s"), [(999, 998), (999, 400), (10, 3)])
def test_posterior_composes_with_the_forward_process(t: int, s: int) -> None:
    """q(x_s | x_0) must come out of averaging q(x_s | x_t, x_0) over q(x_t | x_0)."""
    p = process()
    bar_t, bar_s = p.schedule.alpha_bar_at(t), p.schedule.alpha_bar_at(s)
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1)
    from_x_t = p.posterior_mean(zero, one, t, s).item()
    from_x_0 = p.posterior_mean(one, zero, t, s).item()
    assert from_x_0 + from_x_t * math.sqrt(bar_t) == pytest.approx(math.sqrt(bar_s))
    assert from_x_t**2 * (1 - bar_t) + p.sigma(t, s) ** 2 == pytest.approx(1 - bar_s)


def test_sigma_is_beta_or_the_smaller_posterior_variance_and_0_at_the_end() -> None:
    posterior, beta = process(), process(variance="beta")
    assert beta.sigma(500, 499) ** 2 == pytest.approx(beta.schedule.beta[500].item())
    assert posterior.sigma(1, 0) < beta.sigma(1, 0)
    assert posterior.sigma(0, -1) == beta.sigma(0, -1) == 0.0


def test_timesteps_are_uniform_over_all_steps() -> None:
    t = process(num_steps=10).draw_timesteps(20_000, generator(0))
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)


def test_intensities_and_diffusion_units_are_inverse() -> None:
    x = torch.tensor([0.0, 0.25, 1.0, 1.2])
    assert to_diffusion(x)[0] == -1
    assert to_diffusion(x)[2] == 1
    torch.testing.assert_close(from_diffusion(to_diffusion(x)), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"beta_start": 0.0}, "beta_start=0.0"),
        ({"beta_end": 1.0}, "beta_end=1.0"),
        ({"beta_start": 0.03}, "beta_start=0.03, beta_end=0.02"),
        ({"residual": True}, "residual=True needs target='x0', got target='eps'"),
        ({"target": "x0", "activity_scaled": True}, "activity_scaled=True needs residual=True"),
        ({"smoothing_px": 0.9}, "smoothing_px=0.9, residual=False"),
        ({"target": "x0", "output_scale": 0.0}, "output_scale=0.0"),
        ({"output_scale": 0.1}, "output_scale=0.1, target='eps'"),
        ({"clip_in_loss": True}, "clip_in_loss=True needs target='x0' and a clip"),
        ({"target": "x0", "clip_in_loss": True, "clip": None}, "clip=None"),
        (
            {"target": "x0", "residual": True, "noise_aware": True},
            "noise_aware=True needs",
        ),
        ({"target": "x0", "ssim_weight": float("nan")}, "ssim_weight=nan"),
        ({"target": "x0", "ssim_weight": -0.1}, "ssim_weight=-0.1"),
        ({"ssim_weight": 0.1}, "ssim_weight=0.1, target='eps'"),
        ({"clip": (1.0, -1.0)}, r"clip=\(1.0, -1.0\)"),
        ({"target": "score"}, "'score' is not one of"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(DiffusionConfig, changes)
