"""Cosines between the pixel maps of channels, the products of channel attention (Eq. 3).

Symbols: B batch, C channels of the query and of the key, N pixels; w [B, 2C, N] holds the maps of
both, the query's first. With G = w w' the cosine of maps i and j is G_ij / sqrt(G_ii G_jj), so one
matrix product gives products and norms, and the gradient is one more: with respect to w it is M w
for a symmetric M [2C, 2C]. Left to autograd, normalising costs several passes over all pixels and
leaves gradients in another memory format than the maps: 3.5 times the time on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEAST_NORM = 1e-12


def channel_cosine(w: Tensor) -> Tensor:
    """Cosines [B, C, C] of each query map with each key map of w [B, 2C, N].

    In float32, or w's own precision where that is higher; a map of zeros has cosine 0 with all.
    """
    cosine: Tensor = _ChannelCosine.apply(w)  # type: ignore[no-untyped-call]
    return cosine


class _ChannelCosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        products = (w @ w.transpose(1, 2)).to(torch.promote_types(w.dtype, torch.float32))
        norms = products.diagonal(dim1=1, dim2=2).clamp_min(LEAST_NORM**2).sqrt()
        norm_q, norm_k = norms.unsqueeze(2).chunk(2, dim=1)
        channels = w.shape[1] // 2
        cosine = products[:, :channels, channels:] / norm_q / norm_k.transpose(1, 2)
        ctx.save_for_backward(w, norms, cosine)
        return cosine

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        w: Tensor
        w, norms, cosine = ctx.saved_tensors
        channels = cosine.shape[1]
        norm_q, norm_k = norms.unsqueeze(2).chunk(2, dim=1)
        across = gradient / norm_q / norm_k.transpose(1, 2)
        # A map's own norm takes back what lies along the map.
        along = gradient * cosine
        own = torch.cat((along.sum(dim=2), along.sum(dim=1)), dim=1) / norms.square()
        m = torch.diag_embed(-own)
        m[:, :channels, channels:] = across
        m[:, channels:, :channels] = across.transpose(1, 2)
        m = m.to(w.dtype)
        if w.stride(1) == 1:  # the gradient in the format of w
            return (w.transpose(1, 2) @ m).transpose(1, 2)
        return m @ w
