"""Multi-modality feature fusion: LPET and MR to one feature F (Sec. 3.1).

Intra-modality learning (Sec. 3.1.1) and cross-modality aggregation (Sec. 3.1.2):

    x_p -> encoder_p -> f_p,   f_p -> global_p -> g_p,   f_p -> detail_p -> d_p
    x_m -> encoder_m -> f_m,   f_m -> global_m -> g_m,   f_m -> detail_m -> d_m
    g_p, g_m -> global_fuse -> g_fuse,   d_p, d_m -> detail_fuse -> d_fuse
    g_fuse, d_fuse -> decoder -> F

Symbols: x_p LPET, x_m MR [B, 1, H, W] (or p*p channels of a coarser grid); f, g, d, F
[B, C, H, W] shallow, global, detail and fused features. Nothing is downsampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mfdiff_core.networks.blocks import Pointwise, QkvConv, RestormerBlock
from mfdiff_core.networks.coupling import CouplingForm, DetailBranch

Branches = Literal["global+detail", "global", "detail"]
Merge = Literal["sum", "concat"]


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Shape of the fusion module; the defaults follow PAPER.md.

    Attributes:
        channels: C; even, a multiple of `heads`.
        heads: attention heads of every Transformer block.
        encoder_blocks: Transformer blocks of each modality encoder.
        decoder_blocks: Transformer blocks of the decoder.
        ffn_ratio: hidden over input channels in encoder and decoder blocks.
        global_ffn_ratio: the same in the global branches.
        qkv_conv: 3x3 convolution of the global branches' attention, "depthwise" or "full".
        coupling: layer of the detail branches, "paper" (Eq. 4) or "cddfuse".
        couplings: coupling layers of each detail branch.
        fusion_couplings: coupling layers of the detail fusion layer.
        merge: how two modalities enter a fusion layer: "sum", or "concat" and a 1x1.
        share_global: one global branch for both modalities.
        branches: "global+detail"; or two branches of one kind (the ablations of Table 5:
            "global" is GMUNet's fusion, "detail" is DMUNet's).
        checkpointing: store only the inputs of Transformer blocks for the backward pass.
    """

    channels: int = 64
    heads: int = 8
    encoder_blocks: int = 4
    decoder_blocks: int = 2
    ffn_ratio: float = 2.0
    global_ffn_ratio: float = 1.0
    qkv_conv: QkvConv = "depthwise"
    coupling: CouplingForm = "paper"
    couplings: int = 3
    fusion_couplings: int = 3
    merge: Merge = "sum"
    share_global: bool = False
    branches: Branches = "global+detail"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.channels < 2 or self.channels % self.heads or self.channels % 2:
            raise ValueError(
                "channels must be even and a multiple of heads, "
                f"got channels={self.channels}, heads={self.heads}"
            )
        for name in ("encoder_blocks", "decoder_blocks", "couplings", "fusion_couplings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        for name in ("ffn_ratio", "global_ffn_ratio"):
            if int(self.channels * getattr(self, name)) < 1:
                raise ValueError(
                    f"{name} must leave a hidden channel, got {name}={getattr(self, name)}"
                )


class Encoder(nn.Module):
    """Modality encoder f_theta of Eq. (2): 3x3 embedding, then Transformer blocks."""

    def __init__(self, config: FusionConfig, in_channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, config.channels, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*_transformer_blocks(config, config.encoder_blocks))

    def forward(self, x: Tensor, memory_format: torch.memory_format) -> Tensor:
        """Shallow features [B, C, H, W] of one modality."""
        features: Tensor = self.blocks(self.embed(x).contiguous(memory_format=memory_format))
        return features


class FusionLayer(nn.Module):
    """Global or detail fusion layer: both modalities merged, then a branch of that kind."""

    def __init__(self, config: FusionConfig, kind: Branches) -> None:
        super().__init__()
        channels = config.channels
        self.reduce: nn.Module | None = None
        if config.merge == "concat":
            self.reduce = Pointwise(2 * channels, channels)
        self.branch = _branch(config, kind, config.fusion_couplings)

    def forward(self, of_p: Tensor, of_m: Tensor) -> Tensor:
        """Fuse two features [B, C, H, W] into one."""
        fused: Tensor = self.branch(self._merge(of_p, of_m))
        return fused

    def _merge(self, of_p: Tensor, of_m: Tensor) -> Tensor:
        if self.reduce is None:
            return of_p + of_m
        merged: Tensor = self.reduce(torch.cat((of_p, of_m), dim=1))
        return merged


class Decoder(nn.Module):
    """Decoder of Sec. 3.1.2: 1x1 from 2C to C channels, then Transformer blocks; no head."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.reduce = Pointwise(2 * config.channels, config.channels)
        self.blocks = nn.Sequential(*_transformer_blocks(config, config.decoder_blocks))

    def forward(self, g_fuse: Tensor, d_fuse: Tensor) -> Tensor:
        """Fused feature F [B, C, H, W]."""
        f: Tensor = self.blocks(self.reduce(torch.cat((g_fuse, d_fuse), dim=1)))
        return f


class FusionNet(nn.Module):
    """Fusion module: x_p and x_m to F; computed once per image, as F does not depend on t.

    Args:
        config: its shape.
        in_channels: channels of either input; p*p with a patch size of p.
    """

    # On the CPU this format is 1.1 to 1.4 times faster here than the contiguous one.
    memory_format: torch.memory_format = torch.channels_last

    def __init__(self, config: FusionConfig, in_channels: int = 1) -> None:
        super().__init__()
        first, second = _branch_kinds(config.branches)
        self.encoder_p = Encoder(config, in_channels)
        self.encoder_m = Encoder(config, in_channels)
        self.global_p = _branch(config, first, config.couplings)
        # A shared branch is registered once, so that state dicts name each tensor once.
        self.global_m = None if config.share_global else _branch(config, first, config.couplings)
        self.detail_p = _branch(config, second, config.couplings)
        self.detail_m = _branch(config, second, config.couplings)
        self.global_fuse = FusionLayer(config, first)
        self.detail_fuse = FusionLayer(config, second)
        self.decoder = Decoder(config)

    def forward(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """F [B, C, H, W] of LPET x_p and MR x_m, both [B, in_channels, H, W]."""
        f_p = self.encoder_p(x_p, self.memory_format)
        f_m = self.encoder_m(x_m, self.memory_format)
        global_m = self.global_p if self.global_m is None else self.global_m
        g_fuse = self.global_fuse(self.global_p(f_p), global_m(f_m))
        d_fuse = self.detail_fuse(self.detail_p(f_p), self.detail_m(f_m))
        f: Tensor = self.decoder(g_fuse, d_fuse)
        return f


def _branch_kinds(branches: Branches) -> tuple[Branches, Branches]:
    return ("global", "detail") if branches == "global+detail" else (branches, branches)


def _branch(config: FusionConfig, kind: Branches, couplings: int) -> nn.Module:
    if kind == "detail":
        return DetailBranch(config.channels, couplings, config.coupling)
    return RestormerBlock(
        config.channels,
        config.heads,
        config.global_ffn_ratio,
        config.qkv_conv,
        config.checkpointing,
    )


def _transformer_blocks(config: FusionConfig, count: int) -> list[RestormerBlock]:
    return [
        RestormerBlock(
            config.channels,
            config.heads,
            config.ffn_ratio,
            checkpointing=config.checkpointing,
        )
        for _ in range(count)
    ]
