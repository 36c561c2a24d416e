"""The noise level of an image, and the network that is told of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfdiff_core.diffusion.process import to_diffusion
from mfdiff_core.networks.mfdiff import MFdiff
from mfdiff_core.networks.noise_level import NoiseLevel, noise_level
from mfdiff_core.networks.presets import network_preset


def scan(sigma: float, *, side: int = 64, radius: int = 20) -> Tensor:
    """A disc of activity 1 with noise inside, in diffusion units."""
    row, column = torch.meshgrid(2 * [torch.arange(side) - side / 2], indexing="ij")
    disc = (row.hypot(column) < radius).float()
    noise = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    return to_diffusion(disc * (1 + sigma * noise))[None, None]


def test_level_of_white_noise_is_that_of_its_detail() -> None:
    """A mean over nine pixels leaves a ninth of the variance: the detail has 8/9 of it."""
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    assert noise_level(to_diffusion(noise)).item() == pytest.approx(0.5 * math.log(8 / 9), abs=0.01)


def test_level_rises_with_noise_and_not_with_activity_or_empty_space() -> None:
    levels = [noise_level(scan(sigma)).item() for sigma in (0.1, 0.2, 0.4, 0.8)]
    assert levels == sorted(levels)
    x = (scan(0.4) + 1) / 2
    assert noise_level(to_diffusion(3 * x)).item() == pytest.approx(levels[2], abs=1e-3)
    wider = torch.nn.functional.pad(x, (32,) * 4)
    assert noise_level(to_diffusion(wider)).item() == pytest.approx(levels[2], abs=1e-3)


def test_an_empty_image_has_a_level() -> None:
    assert torch.isfinite(noise_level(to_diffusion(torch.zeros(2, 1, 16, 16)))).all()


def test_an_even_image_has_no_detail_up_to_its_border() -> None:
    even = noise_level(to_diffusion(torch.ones(1, 1, 16, 16)))
    assert even.item() == pytest.approx(0.5 * math.log(1e-6), abs=1e-3)


def test_level_is_taken_in_float32() -> None:
    x = scan(0.4).bfloat16()
    level = noise_level(x)
    assert level.dtype == torch.float32
    torch.testing.assert_close(level, noise_level(x.double().float()), rtol=0, atol=0)


def test_a_level_beyond_reach_is_that_at_the_end_of_it() -> None:
    """No gain is extrapolated to a post-filter or pixels that were never trained on."""
    module = NoiseLevel(8)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    smooth, smoother = (to_diffusion(1 + sigma * noise) for sigma in (1e-2, 2e-3))
    assert noise_level(smooth) - noise_level(smoother) > 0.5
    torch.testing.assert_close(module(smooth), module(smoother))
    assert not torch.allclose(module(smooth).gain, module(scan(0.8)).gain)


def test_the_middle_level_is_nought_to_the_network() -> None:
    module = NoiseLevel(8)
    sigma = 0.5
    levels = noise_level(torch.cat([scan(sigma * 2**step) for step in range(-6, 2)]))
    nearest = int((levels + 2).abs().argmin())
    seen: list[Tensor] = []
    module.hidden.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(scan(sigma * 2 ** (nearest - 6)))
    assert seen[0].item() == pytest.approx(levels[nearest].item() + 2.0)


def test_an_untrained_network_is_not_changed_by_the_level() -> None:
    told = NoiseLevel(8)(torch.cat((scan(0.1), scan(0.8))))
    assert told.embedding.shape == (2, 32)
    assert told.gain.shape == (2, 1)
    assert not told.embedding.any()
    assert not told.gain.any()


def test_network_returns_the_gain_beside_its_image_and_hears_of_the_level() -> None:
    torch.manual_seed(0)
    net = MFdiff(network_preset("tiny"), noise_aware=True)
    assert net.noise_level is not None
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    x_p = torch.cat((scan(0.1, side=32, radius=10), scan(0.8, side=32, radius=10)))
    x_t, f, t = torch.randn(2, 1, 32, 32), net.fuse(x_p, x_p), torch.tensor([3, 3])
    output = net(x_t, t, x_p, f)
    assert output.shape == (2, 2, 32, 32)
    gain = net.noise_level(x_p).gain
    torch.testing.assert_close(output[:, 1], gain[:, :, None].expand(2, 32, 32))
    assert gain[0] != gain[1]
    torch.nn.init.zeros_(net.noise_level.embedding.weight)
    assert not torch.allclose(net(x_t, t, x_p, f)[:, 0], output[:, 0])
