"""What the adversarial systems share: least-squares GAN losses with gradients kept apart.

Generator and discriminator are updated at once, from the same weights: the generator's loss goes
through a discriminator whose weights are constants, the discriminator's through an image cut off
from the generator. So a step is one backward pass, whatever the launcher, and both parts live in
one optimiser and one saved state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def constant_scores(discriminator: nn.Module, *images: Tensor) -> Tensor:
    """Scores of ``images``; the gradient passes to them, none reaches the discriminator."""
    weights = {name: p.detach() for name, p in discriminator.named_parameters()}
    scores: Tensor = functional_call(discriminator, weights, (torch.cat(images, dim=1),))
    return scores


def least_squares(scores: Tensor, label: Tensor | float) -> Tensor:
    """Mean squared distance of scores [B, 1, h, w] to a label, one per row or for all; float32."""
    scores = scores.float()
    if isinstance(label, Tensor):
        label = label.to(scores).view(-1, 1, 1, 1)
    return (scores - label).square().mean()


def discriminator_loss(
    discriminator: nn.Module,
    real: tuple[Tensor, ...],
    fake: tuple[Tensor, ...],
    labels: tuple[Tensor | float, Tensor | float] = (1.0, 0.0),
) -> Tensor:
    """Half the loss of real images plus that of restored ones, which get no gradient.

    Args:
        discriminator: scores images that are stacked on the channels.
        real, fake: images [B, k, H, W] each.
        labels: what real and fake ones should score.
    """
    of_real = least_squares(discriminator(torch.cat(real, dim=1)), labels[0])
    cut = torch.cat([image.detach() for image in fake], dim=1)
    return 0.5 * (of_real + least_squares(discriminator(cut), labels[1]))


def to_tanh(x: Tensor, top: float) -> Tensor:
    """Intensities in [0, top] to the range [-1, 1] of a tanh."""
    return x * (2.0 / top) - 1.0


def from_tanh(y: Tensor, top: float) -> Tensor:
    """The inverse of `to_tanh`."""
    return (y + 1.0) * (top / 2.0)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference in float32."""
    return F.l1_loss(a.float(), b.float())


def normal_start(std: float = 0.02) -> Callable[[nn.Module], None]:
    """Initialiser for `Module.apply`: N(0, std) weights, N(1, std) norm gains, zero biases."""

    def start(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, std)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, std)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)

    return start


def patch_stage(
    in_channels: int,
    out_channels: int,
    norm: nn.Module | None,
    *,
    stride: int = 2,
    padding: int = 1,
) -> nn.Sequential:
    """4x4 convolution of a patch discriminator, norm, leaky ReLU.

    No bias in front of a batch normalisation, which would take it away again.
    """
    bias = not isinstance(norm, nn.BatchNorm2d)
    conv = nn.Conv2d(in_channels, out_channels, 4, stride, padding, bias=bias)
    return nn.Sequential(conv, norm or nn.Identity(), nn.LeakyReLU(0.2))
