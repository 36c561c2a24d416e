"""Samplers, checked against data whose best predictor is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mfdiff_core.config import from_dict
from mfdiff_core.diffusion import (
    DiffusionConfig,
    DiffusionProcess,
    NoiseSource,
    SamplerConfig,
    SampleResult,
    sample,
)
from mfdiff_core.diffusion.samplers import sampling_steps
from mfdiff_core.errors import ConfigError

# The data: every pixel is N(MU, S^2), independent of the condition.
MU, S = 0.3, 0.2
SIZE = (120, 120)
Predict = Callable[[Tensor, Tensor], Tensor]


def process(**changes: Any) -> DiffusionProcess:
    return DiffusionProcess(from_dict(DiffusionConfig, {"clip": None, **changes}))


def oracle(p: DiffusionProcess) -> Predict:
    """E[target | x_t]: what a perfectly trained network would return."""

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        bar = p.schedule.alpha_bar[t].view(-1, 1, 1, 1)
        variance = bar * S**2 + 1 - bar
        x_0 = MU + bar.sqrt() * S**2 / variance * (x_t - bar.sqrt() * MU)
        eps = (1 - bar).sqrt() / variance * (x_t - bar.sqrt() * MU)
        return p.target(x_0, t, eps, torch.zeros_like(x_0))

    return predict


def restored(p: DiffusionProcess, predict: Predict | None = None, **sampler: Any) -> SampleResult:
    config = from_dict(SamplerConfig, sampler)
    x_p = torch.zeros(2, 1, *SIZE)
    return sample(predict or oracle(p), p, x_p, NoiseSource(0, ["a", "b"], SIZE), config)


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
@pytest.mark.parametrize(
    ("name", "eta", "variance"),
    [
        ("ddpm", 0.0, "posterior"),
        ("ddpm", 0.0, "beta"),
        ("ddim", 0.0, "posterior"),
        ("ddim", 1.0, "posterior"),
        ("dpmpp2m", 0.0, "posterior"),
    ],
)
def test_all_steps_with_the_oracle_return_the_data(
    name: str, eta: float, variance: str, target: str
) -> None:
    p = process(variance=variance, target=target)
    x = restored(p, name=name, eta=eta, num_evaluations=1000).mean
    # 28,800 pixels: standard errors 0.0012 and 0.4 %; T = 1000 steps cost about 2 % of S.
    assert x.mean().item() == pytest.approx(MU, rel=0.03)
    assert x.std().item() == pytest.approx(S, rel=0.03)


def ode_solution(p: DiffusionProcess, x_start: Tensor) -> Tensor:
    """Where the probability flow takes x_T: the Gaussians' quantiles are kept."""
    bar = p.schedule.alpha_bar_at(p.num_steps - 1)
    spread = math.sqrt(bar * S**2 + 1 - bar)
    return MU + S * (x_start - math.sqrt(bar) * MU) / spread


def ode_error(name: str, num_evaluations: int) -> float:
    p = process()
    x = restored(p, name=name, num_evaluations=num_evaluations).mean
    start = NoiseSource(0, ["a", "b"], SIZE)(0, p.num_steps)
    return (x - ode_solution(p, start)).abs().mean().item()


@pytest.mark.parametrize("name", ["ddim", "dpmpp2m"])
def test_deterministic_samplers_converge_to_the_probability_flow(name: str) -> None:
    errors = [ode_error(name, n) for n in (10, 100, 1000)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.01 * S


def test_the_second_order_sampler_needs_fewer_evaluations() -> None:
    assert ode_error("dpmpp2m", 50) < 0.6 * ode_error("ddim", 50)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp2m"])
def test_one_evaluation_is_the_single_estimate_of_x_0(name: str) -> None:
    p = process()
    start = NoiseSource(0, ["a", "b"], SIZE)(0, p.num_steps)
    t = torch.full((2,), 999)
    expected = p.predict_x0(oracle(p)(start, t), start, t, torch.zeros_like(start))
    result = restored(p, name=name, num_evaluations=1)
    assert torch.equal(result.mean, expected)
    assert result.num_evaluations == 1


def test_ddim_with_full_eta_takes_the_ancestral_steps() -> None:
    p = process()
    ancestral = restored(p, name="ddpm", num_evaluations=20).mean
    torch.testing.assert_close(
        restored(p, name="ddim", eta=1.0, num_evaluations=20).mean, ancestral, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("start_step", [999, 600, 99])
@pytest.mark.parametrize("num_evaluations", [1, 2, 3, 7, 10, 100])
def test_steps_begin_at_the_start_fall_and_are_even(num_evaluations: int, start_step: int) -> None:
    steps = sampling_steps(num_evaluations, start_step)
    assert len(steps) == num_evaluations
    assert steps[0] == start_step
    gaps = [t - s for t, s in zip(steps, [*steps[1:], -1], strict=True)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_as_many_evaluations_as_steps_visit_every_step() -> None:
    assert sampling_steps(1000, 999) == list(range(999, -1, -1))


def test_lpet_start_begins_with_the_noised_lpet() -> None:
    p = process()
    seen: list[tuple[Tensor, int]] = []

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((x_t, int(t[0])))
        return torch.zeros_like(x_t)

    x_p = torch.full((1, 1, 8, 8), 0.7)
    noise = NoiseSource(0, ["a"], (8, 8))
    config = SamplerConfig(start="lpet", start_step=300, num_evaluations=2)
    sample(predict, p, x_p, noise, config)
    assert [t for _, t in seen] == [300, 149]
    expected = p.add_noise(x_p, torch.tensor([300]), noise(0, 1000))
    assert torch.equal(seen[0][0], expected)


def test_mean_and_spread_are_those_of_the_k_samples() -> None:
    p = process()
    noise = NoiseSource(0, ["a", "b"], SIZE)
    x_p = torch.zeros(2, 1, *SIZE)
    settings: dict[str, Any] = {"name": "ddim", "num_evaluations": 3}

    def single(k: int) -> Tensor:
        config = from_dict(SamplerConfig, settings)
        return sample(oracle(p), p, x_p, lambda _, step: noise(k, step), config).mean

    alone = torch.stack([single(k) for k in range(4)])
    result = restored(p, num_samples=4, **settings)
    torch.testing.assert_close(result.mean, alone.mean(dim=0))
    torch.testing.assert_close(result.std, alone.std(dim=0))
    assert result.num_evaluations == 12


def test_averaging_k_samples_divides_the_variance_by_k() -> None:
    p = process()
    one, eight = (restored(p, num_evaluations=50, num_samples=k).mean.std() for k in (1, 8))
    assert (one / eight).item() == pytest.approx(math.sqrt(8), rel=0.05)


def test_a_single_sample_has_no_spread() -> None:
    assert (restored(process(), num_evaluations=2).std == 0).all()


def test_an_answer_without_chance_has_no_spread() -> None:
    p = process(target="x0")
    result = restored(p, lambda x_t, t: torch.full_like(x_t, 0.5), num_samples=3)
    assert (result.mean == 0.5).all()
    assert (result.std == 0).all()


def test_estimates_are_clipped_on_the_way() -> None:
    p = process(clip=(-1.0, 1.5))
    x = restored(p, lambda x_t, t: torch.full_like(x_t, -1e3), name="dpmpp2m").mean
    assert x.max() <= 1.5


def test_residual_output_is_added_to_the_lpet() -> None:
    p = process(target="x0", residual=True)
    x_p = torch.full((1, 1, 8, 8), 0.25)
    noise = NoiseSource(0, ["a"], (8, 8))
    result = sample(lambda x_t, t: torch.zeros_like(x_t), p, x_p, noise, SamplerConfig())
    assert torch.equal(result.mean, x_p)


def test_low_precision_outputs_do_not_lower_the_precision_of_the_chain() -> None:
    p = process()
    result = restored(p, lambda x_t, t: oracle(p)(x_t, t).bfloat16(), num_evaluations=3)
    assert result.mean.dtype == torch.float32


def test_progress_counts_every_evaluation_once() -> None:
    p, calls = process(), []
    config = SamplerConfig(num_evaluations=4, num_samples=2)
    noise = NoiseSource(0, ["a"], SIZE)
    sample(oracle(p), p, torch.zeros(1, 1, *SIZE), noise, config, lambda *c: calls.append(c))
    assert calls == [(done, 8) for done in range(1, 9)]


def test_a_batch_equals_its_slices_one_by_one() -> None:
    p, x_p = process(), torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, 16, 16)
    keys = [f"slice {i}" for i in range(6)]
    config = SamplerConfig(name="ddpm", num_evaluations=10, num_samples=2)

    def run(order: list[int]) -> Tensor:
        noise = NoiseSource(7, [keys[i] for i in order], (16, 16))
        return sample(oracle(p), p, x_p[order], noise, config).mean

    together = run([0, 1, 2, 3, 4, 5])
    shuffled = torch.cat((run([5, 2]), run([0, 4, 1, 3])))
    assert torch.equal(shuffled, together[[5, 2, 0, 4, 1, 3]])


def test_noise_differs_by_seed_slice_sample_and_step_and_by_nothing_else() -> None:
    def noise(seed: int, key: str, k: int, step: int) -> Tensor:
        return NoiseSource(seed, [key], (4, 4))(k, step)

    base = noise(0, "a", 0, 5)
    assert torch.equal(base, noise(0, "a", 0, 5))
    for other in [(1, "a", 0, 5), (0, "b", 0, 5), (0, "a", 1, 5), (0, "a", 0, 6)]:
        assert not torch.equal(base, noise(*other))


def test_intensities_halve_the_spread_and_shift_the_mean() -> None:
    result = SampleResult(torch.tensor([-1.0, 1.0]), torch.tensor([0.2, 0.2]), 3).intensities()
    torch.testing.assert_close(result.mean, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(result.std, torch.tensor([0.1, 0.1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_evaluations": 0}, "num_evaluations=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_evaluations": 10, "start_step": 5}, "start_step=5, num_evaluations=10"),
        ({"start": "lpet"}, "start='lpet' needs a start_step"),
        ({"eta": 2.0}, "eta=2.0"),
        ({"name": "ddpm", "eta": 0.5}, "eta > 0 needs name='ddim', got name='ddpm'"),
        ({"name": "euler"}, "'euler' is not one of"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(SamplerConfig, changes)


@pytest.mark.parametrize("changes", [{"num_evaluations": 11}, {"start_step": 10}])
def test_a_start_or_count_beyond_the_process_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a process of 10 steps cannot start at"):
        restored(process(num_steps=10), **changes)
