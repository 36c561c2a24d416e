"""Restormer block and channel attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mfdiff_core.networks.blocks import ChannelAttention, PixelLayerNorm, RestormerBlock

FORMATS = [torch.contiguous_format, torch.channels_last]


def features(channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 6, 8, generator=generator, dtype=dtype)


def literal_attention(module: ChannelAttention, x: Tensor) -> Tensor:
    """Restormer's formula, head by head: softmax(tau q k') v with unit q and k, then 1x1."""
    q, k, v = module.qkv_conv(module.qkv(x)).chunk(3, dim=1)
    heads = []
    for tau, q_h, k_h, v_h in zip(
        module.temperature,
        *(part.flatten(2).split(module.head_channels, dim=1) for part in (q, k, v)),
        strict=True,
    ):
        cosine = F.normalize(q_h, dim=2) @ F.normalize(k_h, dim=2).transpose(1, 2)
        heads.append((tau * cosine).softmax(dim=2) @ v_h)
    out: Tensor = module.project(torch.cat(heads, dim=1).view_as(x))
    return out


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_equals_the_formula_head_by_head(
    heads: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    module = ChannelAttention(8, heads).double()
    torch.nn.init.uniform_(module.temperature, 0.5, 5.0)
    x = features(8).contiguous(memory_format=memory_format)
    torch.testing.assert_close(module(x), literal_attention(module, x))


def test_attention_weights_sum_to_one_and_stay_within_heads() -> None:
    module = ChannelAttention(8, 4).double()
    weights = module.attention(features(16).flatten(2))
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 8, dtype=torch.float64))
    head = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    outside = head[:, None] != head
    assert (weights[:, outside] == 0).all()


def test_attention_to_an_all_zero_feature_is_finite() -> None:
    module = ChannelAttention(8, 4)
    x = torch.zeros(1, 8, 4, 4, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_norm_gives_every_pixel_zero_mean_and_unit_variance(
    memory_format: torch.memory_format,
) -> None:
    x = (5.0 + 3.0 * features(16)).contiguous(memory_format=memory_format)
    out = PixelLayerNorm(16).double()(x)
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(2, 6, 8, dtype=torch.float64))
    torch.testing.assert_close(
        out.var(dim=1, correction=0),
        torch.ones(2, 6, 8, dtype=torch.float64),
        atol=1e-5,  # the norm's eps over a variance of about 9
        rtol=0,
    )


@pytest.mark.parametrize("memory_format", FORMATS)
def test_block_keeps_shape_and_memory_format(memory_format: torch.memory_format) -> None:
    x = features(8, torch.float32).contiguous(memory_format=memory_format)
    out = RestormerBlock(8, 2, 2.0)(x)
    assert out.shape == x.shape
    assert out.is_contiguous(memory_format=memory_format)


def test_checkpointing_changes_no_gradient() -> None:
    x = features(8, torch.float32)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        block = RestormerBlock(8, 2, 2.0, checkpointing=checkpointing)
        block(x).square().sum().backward()
        gradients.append([p.grad for p in block.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_bf16_autocast_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    block, x = RestormerBlock(16, 4, 2.0), features(16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = block(x)
    # bfloat16 keeps 8 bits: each of about ten roundings adds up to 2^-9 of values around 1.
    torch.testing.assert_close(low.float(), block(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("ffn_ratio", "qkv_conv", "expected"),
    [(2.0, "depthwise", 45_256), (1.0, "depthwise", 31_816), (1.0, "full", 363_016)],
)
def test_block_of_64_channels_has_the_published_size(
    ffn_ratio: float, qkv_conv: str, expected: int
) -> None:
    block = RestormerBlock(64, 8, ffn_ratio, qkv_conv)  # type: ignore[arg-type]
    assert sum(p.numel() for p in block.parameters()) == expected
