"""DDPM U-Net."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mfdiff_core.config import from_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.networks import UNet, UNetConfig
from mfdiff_core.networks.unet_blocks import (
    Downsample,
    ResBlock,
    SpatialAttention,
    timestep_features,
)

SMALL = UNetConfig(
    channels=8, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(8,), norm_groups=4
)


def small_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL, 3, 2, 16)


def num_parameters(config: UNetConfig, in_channels: int, out_channels: int, size: int) -> int:
    with torch.device("meta"):
        net = UNet(config, in_channels, out_channels, size)
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("config", "channels", "size", "expected"),
    [
        (
            UNetConfig(multipliers=(1, 2, 2, 2), attention_resolutions=(16,), dropout=0.1),
            3,
            32,
            35_746_307,
        ),
        (UNetConfig(attention_resolutions=(16,)), 3, 256, 113_673_219),
    ],
    ids=["CIFAR-10", "CelebA-HQ"],
)
def test_size_equals_the_published_ddpm_models(
    config: UNetConfig, channels: int, size: int, expected: int
) -> None:
    assert num_parameters(config, channels, channels, size) == expected


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (UNetConfig(), 113.74),
        (UNetConfig(multipliers=(1, 2, 2, 2), attention_resolutions=(24,)), 35.82),
        (UNetConfig(channels=64), 28.48),
        (UNetConfig(channels=64, multipliers=(1, 2, 4, 8), attention_resolutions=(24,)), 61.87),
    ],
)
def test_size_with_66_input_channels_at_192(config: UNetConfig, millions: float) -> None:
    assert round(num_parameters(config, 66, 1, 192) / 1e6, 2) == millions


def test_output_is_zero_before_training_and_has_the_shape_asked_for() -> None:
    out = small_unet()(torch.randn(2, 3, 16, 24), torch.tensor([0, 999]))
    assert out.shape == (2, 2, 16, 24)
    assert (out == 0).all()


def test_every_parameter_learns_once_the_last_layers_are_not_zero() -> None:
    net = small_unet()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net(torch.randn(2, 3, 16, 16), torch.tensor([3, 500])).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("resolutions", [(), (12,), (24, 12), (192, 6)])
def test_requested_attention_is_built_and_no_other(resolutions: tuple[int, ...]) -> None:
    config = UNetConfig(channels=32, blocks=2, attention_resolutions=resolutions)
    with torch.device("meta"):
        net = UNet(config, 66, 1, 192)
    # Two blocks down and three up per level, and the middle.
    attentions = sum(isinstance(m, SpatialAttention) for m in net.modules())
    assert attentions == 5 * len(resolutions) + 1


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"attention_resolutions": (16,)}, 192, r"\(192, 96, 48, 24, 12, 6\), got \[16\]"),
        ({}, 200, "divisible by 32, got 200x200"),
    ],
)
def test_attention_never_reached_or_uneven_halving_is_refused(
    changes: dict[str, Any], size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(from_dict(UNetConfig, changes), 66, 1, size)


def test_input_that_does_not_halve_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 16x18"):
        small_unet()(torch.zeros(1, 3, 16, 18), torch.tensor([0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 48}, "channels=48, norm_groups=32"),
        ({"channels": 9, "norm_groups": 9}, "channels=9"),
        ({"multipliers": ()}, "multipliers"),
        ({"blocks": 0}, "blocks=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(UNetConfig, changes)


def test_time_features_are_sines_then_cosines() -> None:
    out = timestep_features(torch.tensor([0, 7]), 8).double()
    frequencies = [math.exp(-math.log(1e4) * i / 3) for i in range(4)]
    expected = [[0.0] * 4 + [1.0] * 4]
    expected += [[g(7 * w) for g in (math.sin, math.cos) for w in frequencies]]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_downsampling_pads_right_and_bottom_only() -> None:
    layer = Downsample(1)
    torch.nn.init.ones_(layer.weight)
    assert layer.bias is not None
    torch.nn.init.zeros_(layer.bias)
    out = layer(torch.ones(1, 1, 4, 4))
    assert out.squeeze().tolist() == [[9.0, 6.0], [6.0, 4.0]]


def test_residual_block_starts_as_its_shortcut() -> None:
    net = small_unet()
    block = next(m for m in net.modules() if isinstance(m, ResBlock))
    x: Tensor = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(block(x, torch.randn(2, 32)), block.shortcut(x))


def test_attention_equals_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    module = SpatialAttention(8, SMALL).double()
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    q, k, v = module.qkv(module.norm(x)).flatten(2).chunk(3, dim=1)
    weights = (q.transpose(1, 2) @ k / math.sqrt(8)).softmax(dim=2)
    expected = x + module.project((v @ weights.transpose(1, 2)).view(x.shape))
    torch.testing.assert_close(module(x), expected)
