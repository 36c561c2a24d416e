"""Patches as cosine coefficients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor

from mfdiff_core.networks.patches import PatchTransform


def image(size: int = 16) -> Tensor:
    return torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_join_undoes_split(p: int) -> None:
    transform = PatchTransform(p)
    torch.testing.assert_close(transform.join(transform.split(image())), image())


@pytest.mark.parametrize("p", [2, 4])
def test_coefficients_are_scipys_cosine_transform(p: int) -> None:
    x = image()
    coefficients = PatchTransform(p).split(x)
    patch = x[1, 0, p : 2 * p, 2 * p : 3 * p].numpy()
    expected = torch.tensor(dctn(patch, norm="ortho")).flatten()
    torch.testing.assert_close(coefficients[1, :, 1, 2], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("p", [2, 4])
def test_transform_keeps_lengths_so_noise_stays_white(p: int) -> None:
    x = image()
    torch.testing.assert_close(PatchTransform(p).split(x).square().sum(), x.square().sum())


def test_images_stay_apart() -> None:
    x = torch.cat((image(), image().flip(0)), dim=1)
    together = PatchTransform(4).split(x)
    first, second = (PatchTransform(4).split(part) for part in x.chunk(2, dim=1))
    torch.testing.assert_close(together, torch.cat((first, second), dim=1))


@pytest.mark.parametrize("whiten", [False, True])
def test_patch_size_one_is_the_paper(whiten: bool) -> None:
    x = image()
    assert torch.equal(PatchTransform(1).split(x, whiten=whiten), x)
    assert torch.equal(PatchTransform(1).join(x), x)


@pytest.mark.parametrize("p", [2, 4, 8])
def test_whitening_evens_out_an_image_whose_amplitude_is_one_over_frequency(p: int) -> None:
    frequency = torch.fft.fftfreq(256)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).clamp_min(1 / 256)
    noise = torch.randn(8, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    x = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real

    def spread(whiten: bool) -> float:
        std = PatchTransform(p).split(x, whiten=whiten).std(dim=(0, 2, 3))[1:]
        return (std.max() / std.min()).item()

    assert spread(whiten=True) < min(2.0, spread(whiten=False))


def test_buffers_are_no_part_of_the_state() -> None:
    assert not PatchTransform(4).state_dict()


def test_one_patch_depends_on_no_other() -> None:
    x = image().requires_grad_()
    (gradient,) = torch.autograd.grad(PatchTransform(4).split(x)[0, :, 1, 2].sum(), x)
    outside = F.pad(torch.zeros(4, 4), (8, 4, 4, 8), value=1.0)
    assert (gradient[0, 0] * outside == 0).all()


def test_image_that_is_no_multiple_of_the_patch_is_refused_rather_than_cut() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 16x18"):
        PatchTransform(4).split(torch.zeros(1, 1, 16, 18))
