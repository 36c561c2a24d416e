"""Cosines between the pixel maps of channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mfdiff_core.networks.channel_cosine import channel_cosine


def maps(channels_last: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    """Query and key maps [2, 6, 20], as a slice of a wider tensor like those of attention."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 20, 9, generator=generator, dtype=dtype)
    wide = pixels.transpose(1, 2)
    return (wide if channels_last else wide.contiguous())[:, :6]


def literal(w: Tensor) -> Tensor:
    q, k = F.normalize(w, dim=2).chunk(2, dim=1)
    return q @ k.transpose(1, 2)


@pytest.mark.parametrize("channels_last", [True, False])
def test_cosine_equals_the_product_of_normalised_maps(channels_last: bool) -> None:
    w = maps(channels_last)
    torch.testing.assert_close(channel_cosine(w), literal(w))


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradient_equals_that_of_normalising(channels_last: bool) -> None:
    weights = torch.linspace(-1, 2, 2 * 3 * 3, dtype=torch.float64).view(2, 3, 3)
    gradients: list[Tensor] = []
    for cosine in (channel_cosine, literal):
        w = maps(channels_last).requires_grad_()
        gradients += torch.autograd.grad((cosine(w) * weights).sum(), w)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradient_has_the_format_of_the_maps(channels_last: bool) -> None:
    w = maps(channels_last).clone().requires_grad_()
    side = 1 if channels_last else 2
    assert w.stride(side) == 1
    (gradient,) = torch.autograd.grad(channel_cosine(w).sum(), w)
    assert gradient.stride(side) == 1


def test_gradient_passes_the_numerical_check() -> None:
    assert torch.autograd.gradcheck(channel_cosine, maps(True).requires_grad_())


def test_map_of_zeros_has_cosine_and_gradient_that_are_finite() -> None:
    w = maps(False).clone()
    w[:, 1] = 0.0
    w[:, 4] = 0.0
    w.requires_grad_()
    cosine = channel_cosine(w)
    assert (cosine[:, 1] == 0).all()
    assert (cosine[:, :, 1] == 0).all()
    (gradient,) = torch.autograd.grad(cosine.sum(), w)
    assert torch.isfinite(gradient).all()


def test_bfloat16_maps_give_float32_cosines() -> None:
    w = maps(True, torch.float32)
    low = channel_cosine(w.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, literal(w), atol=2**-6, rtol=0)
