"""The adversarial systems: who gets which gradient, and what the discriminator is told."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from mfdiff_core.comparison.adversarial import discriminator_loss, from_tanh, least_squares, to_tanh
from mfdiff_core.comparison.system import System
from tests.comparison.toy_systems import ADVERSARIAL, NAMES, Slices, extra, restored, thin

# Nothing but the adversarial term.
ALONE = {
    "ea-gan": {"l1_weight": 0.0, "edge_weight": 0.0},
    "hi-net": {"l1_weight": 0.0, "reconstruction_weight": 0.0},
    "cncl": {"l1_weight": 0.0},
}


def parts(system: System) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the restorer, and of the discriminator."""
    named = list(system.named_parameters())
    judge = [p for n, p in named if n.startswith("discriminator.")]
    return [p for n, p in named if not n.startswith("discriminator.")], judge


def power(parameters: Iterable[nn.Parameter]) -> float:
    """Summed squares of the gradients there are."""
    return sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)


def test_only_the_gans_have_a_discriminator() -> None:
    assert tuple(n for n in NAMES if thin(n).discriminator is not None) == ADVERSARIAL


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_term_alone_reaches_the_restorer_and_spares_the_discriminator(
    name: str, slices: Slices
) -> None:
    system = thin(name, **ALONE[name])
    loss = system.training_losses(*slices.images, *extra(system, slices)).restoration
    loss.backward()  # type: ignore[no-untyped-call]
    restorer, judge = parts(system)
    assert power(restorer) > 0
    assert all(p.grad is None for p in judge)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_discriminators_loss_spares_the_restorer(name: str, slices: Slices) -> None:
    system = thin(name)
    loss = system.training_losses(*slices.images, *extra(system, slices)).discriminator
    assert loss is not None
    loss.backward()  # type: ignore[no-untyped-call]
    restorer, judge = parts(system)
    assert power(judge) > 0
    assert all(p.grad is None for p in restorer)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_one_backward_pass_of_the_total_gives_each_part_its_own_gradient(
    name: str, slices: Slices
) -> None:
    system = thin(name).double()
    images = [x.double() for x in slices.images]
    drawn = [x.double() for x in extra(system, slices)]

    def gradients(of: str) -> list[Tensor | None]:
        system.zero_grad()
        torch.manual_seed(0)  # dropout
        getattr(system.training_losses(*images, *drawn), of).backward()
        return [p.grad for p in system.parameters()]

    both, of_restoration, of_judge = map(gradients, ("total", "restoration", "discriminator"))
    for total, a, b in zip(both, of_restoration, of_judge, strict=True):
        expected = b if a is None else a
        assert total is not None
        assert expected is not None
        torch.testing.assert_close(total, expected)


def test_tanh_units_hold_intensities_up_to_the_top() -> None:
    x = torch.tensor([0.0, 0.625, 1.25])
    assert to_tanh(x, 1.25).tolist() == [-1.0, 0.0, 1.0]
    torch.testing.assert_close(from_tanh(to_tanh(x, 1.25), 1.25), x)


@pytest.mark.parametrize("name", ["ea-gan", "hi-net"])
def test_lesions_hotter_than_one_can_be_restored(name: str, slices: Slices) -> None:
    system = thin(name).eval()
    for parameter_name, parameter in system.named_parameters():
        if parameter_name.endswith(("head.1.bias", "head.1.weight")):
            torch.nn.init.constant_(parameter, 20.0 if "bias" in parameter_name else 0.0)
    torch.testing.assert_close(restored(system, slices), torch.full_like(slices.x_p, 1.25))


def test_least_squares_takes_one_label_for_all_or_one_per_row() -> None:
    scores = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    assert float(least_squares(scores, 1.0)) == 1.0
    assert float(least_squares(scores, torch.tensor([0.0, 2.0]))) == 0.0


def test_discriminator_that_tells_all_apart_has_no_loss() -> None:
    real, fake = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    assert float(discriminator_loss(nn.Identity(), (real,), (fake,))) == 0.0
    assert float(discriminator_loss(nn.Identity(), (fake,), (real,))) == 1.0
