"""Blocks of the fusion module: channel attention, gated feed-forward, the block of Eq. (3).

Symbols: B batch, C channels, H x W pixels, N = H*W, h heads, c = C/h channels per head.
Every block maps [B, C, H, W] to [B, C, H, W] and keeps the memory format of its input.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfdiff_core.networks.channel_cosine import channel_cosine

QkvConv = Literal["depthwise", "full"]


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of one pixel of [B, C, H, W] lie side by side in memory."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class Pointwise(nn.Conv2d):
    """1x1 convolution; a matrix product over pixels where they lie channels_last.

    Forward and backward take 0.6 to 0.9 of the convolution's time on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H, W] in the format of x."""
        return mix_pixels(x, self.weight, self.bias)


def mix_pixels(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution of x [B, C, H, W] with weight [D, C, 1, 1]."""
    if x.stride(1) != 1:
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class PixelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, affine with bias (LN of Eq. 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]; without a copy where x is channels_last."""
        normed = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed if is_channels_last(x) else normed.contiguous()


class ChannelAttention(nn.Module):
    """Multi-head attention across channels (MHA of Eq. 3, as in Restormer).

    A head relates its c channels by the cosine between their pixel maps, so the cost is linear
    in N. The c x c maps of all heads are kept as one block-diagonal C x C matrix; the output
    projection is multiplied into that, so that the values are read once and written once.

    Args:
        channels: C.
        heads: h; divides C.
        qkv_conv: the 3x3 convolution behind the 1x1 of query, key and value: "depthwise", or
            "full" across all 3C channels (as CDDFuse's code has it).
    """

    other_head: Tensor

    def __init__(self, channels: int, heads: int, qkv_conv: QkvConv = "depthwise") -> None:
        super().__init__()
        width = 3 * channels
        groups = width if qkv_conv == "depthwise" else 1
        self.qkv = Pointwise(channels, width)
        self.qkv_conv = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.temperature = nn.Parameter(torch.ones(heads))
        self.project = Pointwise(channels, channels)
        self.head_channels = channels // heads
        head = torch.arange(channels) // self.head_channels
        self.register_buffer("other_head", head[:, None] != head, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend across the channels of [B, C, H, W]."""
        channels = x.shape[1]
        q_and_k, v = self.qkv_conv(self.qkv(x)).split((2 * channels, channels), dim=1)
        attention = self.attention(q_and_k.flatten(2))
        mixing = self.project.weight.flatten(1) @ attention.to(self.project.weight.dtype)
        return _mix_channels(mixing.to(v.dtype), v)

    def attention(self, q_and_k: Tensor) -> Tensor:
        """Block-diagonal weights [B, C, C] of maps [B, 2C, N]; norms and softmax in float32."""
        temperature = self.temperature.repeat_interleave(self.head_channels)
        scores = channel_cosine(q_and_k) * temperature.unsqueeze(1)
        weights: Tensor = scores.masked_fill(self.other_head, float("-inf")).softmax(dim=2)
        return weights


def _mix_channels(mixing: Tensor, v: Tensor) -> Tensor:
    """Each pixel's channels of v [B, C, H, W] times mixing [B, C, C], in the format of v."""
    if v.stride(1) == 1:  # a slice of a channels_last tensor
        mixed = (v.flatten(2).transpose(1, 2) @ mixing.transpose(1, 2)).transpose(1, 2)
    else:
        mixed = mixing @ v.flatten(2)
    return mixed.view(v.shape)


class GatedFeedForward(nn.Module):
    """Gated convolutional feed-forward (MLP of Eq. 3, as in Restormer): GELU(a) * b.

    Args:
        channels: C.
        ratio: hidden channels of each gate half over C.
        group_channels: channels that one 3x3 filter sees: 1 is depthwise.
    """

    def __init__(self, channels: int, ratio: float, group_channels: int = 1) -> None:
        super().__init__()
        width = 2 * int(channels * ratio)
        self.expand = Pointwise(channels, width)
        self.local = nn.Conv2d(
            width, width, 3, padding=1, groups=width // group_channels, bias=False
        )
        self.project = Pointwise(width // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Feed [B, C, H, W] forward."""
        gate, value = self.local(self.expand(x)).chunk(2, dim=1)
        if gate.device.type == "cpu":  # GELU of a slice takes four times as long as of a copy
            gate = gate.clone()
        out: Tensor = self.project(F.gelu(gate) * value)
        return out


class RestormerBlock(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual, Eq. (3).

    Args:
        channels: C.
        heads: h; divides C.
        ffn_ratio: hidden over input channels of the feed-forward part.
        qkv_conv: see `ChannelAttention`; "full" also widens the feed-forward's 3x3 filters to
            two channels, which together is CDDFuse's base block.
        checkpointing: recompute the block in the backward pass instead of storing it.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        ffn_ratio: float,
        qkv_conv: QkvConv = "depthwise",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.norm_attention = PixelLayerNorm(channels)
        self.attention = ChannelAttention(channels, heads, qkv_conv)
        self.norm_ffn = PixelLayerNorm(channels)
        self.ffn = GatedFeedForward(channels, ffn_ratio, 1 if qkv_conv == "depthwise" else 2)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(
                self._transform, x, use_reentrant=False, preserve_rng_state=False
            )
            return out
        return self._transform(x)

    def _transform(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        out: Tensor = x + self.ffn(self.norm_ffn(x))
        return out
