"""EA-GAN: a GAN that also compares edges (Yu et al., IEEE TMI 2019; ref. [41]).

Source: the article and its official 3-D code. Adapted: 2-D, MR as second input, six halvings
instead of seven (192 = 64 * 3), two 3 x 3 Sobel kernels with their response of 4 (in 3-D it is 16,
divided by 4). The variant that is said to be better, whose discriminator sees the edges (dEa-GAN),
is the default.

Not reproduced of the official code: the pool of past images, which is detached and also fed the
generator's step, so that the adversarial term had no gradient; one pool for real and restored
images; soft labels drawn once and kept (here drawn anew for every slice and step, for the
discriminator alone). The discriminator is updated at once with the generator rather than before
it. A tanh cannot restore what lies beyond 1, as hot lesions do in units of the LPET: 1.25, where
MFdiff clips as well, is mapped to 1 instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiff_core.comparison.adversarial import (
    constant_scores,
    discriminator_loss,
    from_tanh,
    l1,
    least_squares,
    normal_start,
    patch_stage,
    to_tanh,
)
from mfdiff_core.comparison.system import Losses, OnePassSystem, SystemConfig, check_size

REAL_LABELS, FAKE_LABELS = (0.7, 1.2), (0.0, 0.3)


@dataclass(frozen=True, kw_only=True)
class EAGANConfig(SystemConfig):
    """Shape and losses of EA-GAN.

    Attributes:
        channels: of the generator's finest stage; they double up to eight times that.
        num_downs: halvings of the generator.
        discriminator_channels: of the discriminator's first stage.
        edge_discriminator: whether the discriminator sees the edges (dEa-GAN; else gEa-GAN).
        l1_weight: of the absolute error, over the adversarial term.
        edge_weight: of the absolute error of the edges, once it has grown to its end.
        edge_growth: share of the training over which it grows from 0.
        intensity_top: largest intensity that can be restored.
        dropout: probability in the innermost stages beyond the fifth.
    """

    loss_text = "absolute error, that of edges, and an adversary"
    system: Literal["ea-gan"] = "ea-gan"
    channels: int = 64
    num_downs: int = 6
    discriminator_channels: int = 64
    edge_discriminator: bool = True
    l1_weight: float = 300.0
    edge_weight: float = 100.0
    edge_growth: float = 20 / 150
    intensity_top: float = 1.25
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if min(self.channels, self.discriminator_channels) < 1 or self.num_downs < 2:
            raise ValueError(
                "widths must be positive and num_downs at least 2, got"
                f" {self.channels=}, {self.discriminator_channels=}, {self.num_downs=}"
            )
        if min(self.l1_weight, self.edge_weight) < 0 or self.edge_growth <= 0:
            raise ValueError(
                "weights must not be negative and edge_growth positive, got"
                f" {self.l1_weight=}, {self.edge_weight=}, {self.edge_growth=}"
            )
        if not 0 <= self.dropout < 1 or self.intensity_top <= 0:
            raise ValueError(
                "dropout must lie in [0, 1) and intensity_top be positive, got"
                f" {self.dropout=}, {self.intensity_top=}"
            )
        super().__post_init__()

    @property
    def size_factor(self) -> int:
        """Heights and widths that can be restored are multiples of this."""
        return 1 << self.num_downs

    @property
    def widths(self) -> list[int]:
        """Channels after each halving."""
        return [self.channels * min(8, 1 << level) for level in range(self.num_downs)]


class StridedUNet(nn.Module):
    """Generator: halvings and doublings by 4x4 convolutions, skips in between, tanh."""

    def __init__(self, config: EAGANConfig) -> None:
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.down = nn.ModuleList(
            _down(inner, outer, bare=level in (0, last))
            for level, (inner, outer) in enumerate(zip([2, *widths[:-1]], widths, strict=True))
        )
        up: list[nn.Module] = []
        for level in range(last, 0, -1):
            inputs = widths[level] if level == last else 2 * widths[level]
            dropout = config.dropout if 4 <= level < last else 0.0
            up.append(_up(inputs, widths[level - 1], dropout))
        self.up = nn.ModuleList(up)
        self.head = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(2 * widths[0], 1, 4, 2, 1), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Image [B, 1, H, W] in [-1, 1] of x [B, 2, H, W]."""
        skips: list[Tensor] = []
        for index, stage in enumerate(self.down):
            x = stage(x if index == 0 else F.leaky_relu(x, 0.2))
            skips.append(x)
        x = skips.pop()
        for stage in self.up:
            x = torch.cat((skips.pop(), stage(x)), dim=1)
        out: Tensor = self.head(x)
        return out


def _down(in_channels: int, out_channels: int, *, bare: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False)
    return nn.Sequential(conv) if bare else nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _up(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.Dropout(dropout),
    )


def edges(y: Tensor) -> Tensor:
    """Edge map in [-1, 1] of y [B, 1, H, W] in [-1, 1]: norm of both Sobel responses, squashed."""
    y = y.float() if y.dtype == torch.bfloat16 else y
    smooth, slope = y.new_tensor([1.0, 2.0, 1.0]), y.new_tensor([1.0, 0.0, -1.0])
    kernels = torch.stack((torch.outer(smooth, slope), torch.outer(slope, smooth))).unsqueeze(1)
    with torch.autocast(y.device.type, enabled=False):
        response = F.conv2d(F.pad(y, (1, 1, 1, 1), value=-1.0), kernels)
    # The root's gradient at a flat spot is made 0 rather than infinite.
    norm = (response.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()
    return 2.0 * torch.tanh(norm) - 1.0


class EAGAN(OnePassSystem):
    """U-Net generator against a patch discriminator, with errors of image and edges."""

    groups = {  # noqa: RUF012
        "down": ("generator.down.",),
        "up": ("generator.up.", "generator.head."),
        "discriminator": ("discriminator.",),
    }
    betas = (0.5, 0.999)
    discriminator: nn.Sequential

    def __init__(self, config: EAGANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = StridedUNet(config)
        self.discriminator = _discriminator(
            4 if config.edge_discriminator else 3, config.discriminator_channels
        )
        self.apply(normal_start())

    def draw(self, shape: torch.Size, progress: float, source: torch.Generator) -> list[Tensor]:
        """Share of the edge weight, and soft labels of real and restored slices."""
        grown = min(1.0, progress / self.config.edge_growth)
        labels = [
            torch.rand(shape[0], generator=source) * (high - low) + low
            for low, high in (REAL_LABELS, FAKE_LABELS)
        ]
        return [torch.full((shape[0],), grown), *labels]

    def estimate(self, x_p: Tensor, x_m: Tensor) -> Tensor:
        """The restored image."""
        top = self.config.intensity_top
        return from_tanh(self._generate(to_tanh(x_p, top), to_tanh(x_m, top)), top)

    def training_losses(self, x_p: Tensor, x_m: Tensor, x_s: Tensor, *extra: Tensor) -> Losses:
        """Adversarial term, errors of image and edges; and the discriminator's."""
        grown, real, fake = extra
        p, m, y = (to_tanh(x, self.config.intensity_top) for x in (x_p, x_m, x_s))
        y_hat = self._generate(p, m)
        judged, judged_hat = self._judged(y), self._judged(y_hat)
        adversarial = least_squares(constant_scores(self.discriminator, p, m, *judged_hat), 1.0)
        edge = l1(edges(y_hat), edges(y)) * grown.mean() * self.config.edge_weight
        return Losses(
            adversarial + self.config.l1_weight * l1(y_hat, y) + edge,
            discriminator_loss(
                self.discriminator, (p, m, *judged), (p, m, *judged_hat), (real, fake)
            ),
        )

    def _generate(self, p: Tensor, m: Tensor) -> Tensor:
        check_size(p, self.config)
        y_hat: Tensor = self.generator(torch.cat((p, m), dim=1))
        return y_hat

    def _judged(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y, edges(y)) if self.config.edge_discriminator else (y,)


def _discriminator(in_channels: int, width: int) -> nn.Sequential:
    """27 x 27 scores of 192 x 192 pixels."""
    return nn.Sequential(
        patch_stage(in_channels, width, None, padding=2),
        patch_stage(width, 2 * width, nn.BatchNorm2d(2 * width), padding=2),
        patch_stage(2 * width, 4 * width, nn.BatchNorm2d(4 * width), padding=2),
        patch_stage(4 * width, 8 * width, nn.BatchNorm2d(8 * width), stride=1, padding=2),
        nn.Conv2d(8 * width, 1, 4, padding=2),
    )
