"""How the comparison systems were trained by their authors, where that is known.

Tables train all systems alike (Sec. 4.1.1). These are for whoever asks whether a system would have
done better by its own settings: `pretrain --original-settings`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mfdiff_core.errors import ConfigError
from mfdiff_core.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Original:
    """Published training of a system; Adam, without weight decay.

    Attributes:
        lr: learning rate.
        batch_size: slices per step.
        epochs: passes over the training slices; 0 where ``seen_slices`` says how long.
        seen_slices: slices seen in all, repetitions included.
        hold: share of the training before the rate falls linearly; 1 = it never does.
        ramp_slices: slices seen while the rate rises.
        half_life_slices: of the averaged weights; 0 = none are averaged.
    """

    lr: float
    batch_size: int
    epochs: int = 0
    seen_slices: int = 0
    hold: float = 1.0
    ramp_slices: int = 0
    half_life_slices: int = 0

    def iterations(self, num_slices: int) -> int:
        """Steps on ``num_slices`` training slices."""
        seen = self.seen_slices or self.epochs * num_slices
        return max(1, seen // self.batch_size)

    @property
    def optim(self) -> OptimConfig:
        """Its optimiser settings; gradients are clipped as everywhere, momenta are the system's."""
        half_life = self.half_life_slices / self.batch_size
        return OptimConfig(
            lr=self.lr,
            warmup=self.ramp_slices // self.batch_size,
            schedule="constant" if self.hold == 1 else "linear",
            hold=0.0 if self.hold == 1 else self.hold,
            weight_decay=0.0,
            ema=0.5 ** (1 / half_life) if half_life else 0.0,
        )


ORIGINALS = {
    "m-unet": Original(lr=2e-4, batch_size=4, epochs=100),
    "fb-sem": Original(lr=1e-2, batch_size=5, epochs=50),
    "ea-gan": Original(lr=2e-4, batch_size=6, epochs=150, hold=100 / 150),
    # Of the official code; its batch is not known, so this is the paper's.
    "hi-net": Original(lr=1e-3, batch_size=4, epochs=400, hold=0.25),
    "cncl": Original(lr=2e-5, batch_size=2, epochs=300),
    "csrd": Original(
        lr=2e-4,
        batch_size=16,
        seen_slices=50_000_000,
        ramp_slices=10_000_000,
        half_life_slices=500_000,
    ),
}


def original(system: str) -> Original:
    """Published training of ``system``.

    Raises:
        ConfigError: it has none besides the paper's.
    """
    if system not in ORIGINALS:
        raise ConfigError(
            f"{system} is the paper's own and has no other original settings; there are some for"
            f" {', '.join(ORIGINALS)}"
        )
    return ORIGINALS[system]
