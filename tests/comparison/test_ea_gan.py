from __future__ import annotations

import math

import pytest
import torch

from mfdiff_core.comparison.ea_gan import EAGAN, EAGANConfig, edges
from tests.comparison.toy_systems import Slices, extra, thin


def test_flat_image_has_no_edges_inside() -> None:
    inside = edges(torch.full((1, 1, 8, 8), 0.3))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.full_like(inside, -1.0), atol=1e-5, rtol=0)


def test_edge_map_of_a_ramp_is_the_closed_form() -> None:
    """A Sobel kernel answers a slope of s per pixel with 8 s."""
    ramp = 0.02 * torch.arange(10.0).expand(1, 1, 10, 10)
    expected = 2 * math.tanh(8 * 0.02) - 1
    for image in (ramp, ramp.transpose(2, 3)):
        inside = edges(image)[..., 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.full_like(inside, expected))


def test_edges_of_flat_images_have_a_finite_gradient() -> None:
    y = torch.zeros(1, 1, 6, 6, requires_grad=True)
    edges(y).sum().backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()


def test_edge_weight_grows_to_its_end_over_the_first_20_of_150_epochs() -> None:
    system = thin("ea-gan")
    grown = [
        float(system.draw(torch.Size((2, 1, 32, 32)), epoch / 150, torch.Generator())[0][0])
        for epoch in (0, 10, 20, 150)
    ]
    assert grown == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_labels_are_soft_and_drawn_for_every_slice_and_step() -> None:
    system, source = thin("ea-gan"), torch.Generator().manual_seed(0)
    shape = torch.Size((50, 1, 32, 32))
    first, second = (system.draw(shape, 0.5, source) for _ in range(2))
    _, real, fake = first
    assert 0.7 <= float(real.min()) < 0.75 < 1.15 < float(real.max()) <= 1.2
    assert 0.0 <= float(fake.min()) < 0.03 < 0.27 < float(fake.max()) <= 0.3
    assert not torch.equal(real, second[1])


def test_edge_error_counts_as_much_as_it_has_grown(slices: Slices) -> None:
    def loss(grown: float, weight: float) -> float:
        system = thin("ea-gan", edge_weight=weight)
        _, real, fake = extra(system, slices)
        shares = torch.full((4,), grown)
        return float(
            system.training_losses(*slices.images, shares, real, fake).restoration.detach()
        )

    assert loss(0.0, 100.0) == pytest.approx(loss(1.0, 0.0))
    assert loss(0.5, 100.0) == pytest.approx(loss(1.0, 50.0))
    assert loss(1.0, 100.0) > loss(0.5, 100.0)


@pytest.mark.parametrize(("sees_edges", "channels"), [(True, 4), (False, 3)])
def test_discriminator_sees_the_edges_in_dea_gan_alone(sees_edges: bool, channels: int) -> None:
    with torch.device("meta"):
        judge = EAGAN(EAGANConfig(edge_discriminator=sees_edges)).discriminator
        scores = judge(torch.empty(1, channels, 192, 192))
    assert scores.shape == (1, 1, 27, 27)


def test_generator_halves_six_times_and_drops_out_once() -> None:
    with torch.device("meta"):
        generator = EAGAN(EAGANConfig()).generator
    assert len(generator.down) == 6
    dropouts = [m.p for m in generator.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    assert dropouts == [0.5]
