"""Invertible detail branch, Eq. (4)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mfdiff_core.networks.coupling import (
    AffineCoupling,
    CouplingForm,
    DetailBranch,
    InvertedResidual,
    MixedCoupling,
    bounded_exp,
)


def randomised(module: nn.Module) -> nn.Module:
    """``module`` in float64 with no weight left at zero; 1x1 mixing stays a rotation."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.double().named_parameters():
        if "mix" not in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def features(scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(2, 8, 6, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("form", ["paper", "cddfuse"])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_inverse_returns_the_input_even_if_huge(form: CouplingForm, scale: float) -> None:
    branch = randomised(DetailBranch(8, 3, form))
    assert isinstance(branch, DetailBranch)
    x = features(scale)
    torch.testing.assert_close(branch.inverse(branch(x)), x, rtol=1e-9, atol=1e-12 * scale)


def test_branch_starts_as_the_identity() -> None:
    x = features()
    assert torch.equal(DetailBranch(8, 3).double()(x), x)


def test_one_layer_is_eq_4() -> None:
    layer = randomised(AffineCoupling(4, swapped=False))
    assert isinstance(layer, AffineCoupling)
    f, l = features().chunk(2, dim=1)  # noqa: E741 - the paper's symbols
    scale, shift = layer.scale(l), layer.shift(l)
    expected = f * torch.exp(2.0 * torch.tanh(scale / 2.0)) + shift
    first, second = layer(f, l)
    torch.testing.assert_close(first, expected)
    assert torch.equal(second, l)


def test_three_layers_change_both_halves() -> None:
    x = features()
    out = randomised(DetailBranch(8, 3))(x)
    for before, after in zip(x.chunk(2, dim=1), out.chunk(2, dim=1), strict=True):
        assert (before - after).abs().min(dim=1).values.max() > 1e-3


def test_scale_and_shift_have_weights_of_their_own() -> None:
    layer = AffineCoupling(4, swapped=False)
    scale, shift = ({id(p) for p in part.parameters()} for part in (layer.scale, layer.shift))
    assert len(scale) == 3
    assert not scale & shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bounded_exp_never_overflows(dtype: torch.dtype) -> None:
    u = torch.tensor([-6e4, -10.0, 0.0, 10.0, 6e4], dtype=dtype)
    out = bounded_exp(u)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert (out > 0).all()
    assert out[2] == 1


def test_bounded_exp_is_exp_near_zero() -> None:
    u = torch.linspace(-0.1, 0.1, 9, dtype=torch.float64)
    # k tanh(u/k) = u - u^3/12 + ... for k = 2, so 1e-3/12 at the ends.
    torch.testing.assert_close(bounded_exp(u), u.exp(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (InvertedResidual(32), 4_672),
        (MixedCoupling(32), 18_176),
        (DetailBranch(64, 3), 28_032),
    ],
)
def test_detail_parts_have_the_published_size(module: nn.Module, expected: int) -> None:
    assert sum(p.numel() for p in module.parameters()) == expected
