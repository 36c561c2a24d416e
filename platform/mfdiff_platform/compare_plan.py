"""What a comparison consists of: the rows of the paper's tables, and those of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mfdiff_core.config import override
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import ConfigError
from mfdiff_core.files import sha256_text
from mfdiff_core.model import (
    MODELS,
    NEEDS_SINOGRAMS,
    AnyModelConfig,
    ModelConfig,
    averaging,
    preset,
)
from mfdiff_core.networks.presets import network_preset
from mfdiff_core.training.step import Precision
from mfdiff_core.training.strategies import Recipe, Strategy

PHANTOM = "phantom"
LABELS = {
    **{"m-unet": "M-UNet", "fb-sem": "FB-SEM", "ea-gan": "EA-GAN", "hi-net": "Hi-Net"},
    **{"cncl": "CNCL", "csrd": "CSRD", "unet": "UNet", "munet": "MUNet", "gmunet": "GMUNet"},
    **{"dmunet": "DMUNet", "cmunet": "CMUNet", "mfdiff": "MFdiff"},
}
RIVALS = ("m-unet", "fb-sem", "ea-gan", "hi-net", "cncl", "csrd")
LADDER = ("unet", "munet", "gmunet", "dmunet", "cmunet")
SETTINGS = ("lr", "warmup", "schedule", "weight_decay", "layer_decay", "ema", "augment")
"""Of a recipe, that a comparison leaves to its user; the rest the tables decide."""
LONGEST_NAME = 24
"""Longer lists of models are named by their number and a hash."""
MEAN_EVALUATIONS = 20
"""Evaluations per sample where K samples of the paper's thousand steps would take hours."""
LARGE = ("base", "paper")
ITERATIONS, SMALL_ITERATIONS = 50_000, 400
"""Of the external stage unless told otherwise: the paper's, and what a CPU can do."""
SMALL_TEST_SLICES = 64
"""Of each setting unless told otherwise: by the paper's thousand steps one takes 20 s on a core."""
SMALL_LR = 4e-3
"""Of every row at the small sizes: short trainings at 1e-3 end too early, see PAPER.md."""
SMALL_ADAPT_RATE = 0.5
"""Of that after the external stage: at the whole rate a stage as short as 160 iterations can spoil
more of what it begins with than it mends, see PAPER.md."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row: a trained model, and how it restores.

    Attributes:
        label: as the table has it.
        system: a name of `MODELS`.
        strategy: stages of its training; on phantoms all mean the external stage alone.
        as_in_paper: MFdiff predicting eps in 1000 ancestral steps, instead of our default.
        mean_of: K, samples whose mean is taken.
    """

    label: str
    system: str
    strategy: Strategy = "two_stage"
    as_in_paper: bool = False
    mean_of: int = 1

    def config(self, size: str) -> AnyModelConfig:
        """What is trained, at the size of preset ``size``."""
        if self.system != "mfdiff":
            return preset(size, self.system)
        return replace(
            preset("paper" if self.as_in_paper else "base"), network=network_preset(size)
        )

    def restoring(self, size: str) -> AnyModelConfig:
        """The same weights as this row restores with them."""
        config = self.config(size)
        if self.mean_of == 1:
            return config
        if isinstance(config, ModelConfig) and config.sampler.num_evaluations > MEAN_EVALUATIONS:
            fast = SamplerConfig(name="dpmpp2m", num_evaluations=MEAN_EVALUATIONS)
            config = replace(config, sampler=fast)
        return averaging(config, self.mean_of)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows and where they are compared.

    Attributes:
        name: of its folder.
        title: of its table.
        domain: whose test subjects decide.
        methods: in the order shown; the last is the one that is tested against the others.
        setting: only slices of this setting count.
        left_out: reason by method.
    """

    name: str
    title: str
    domain: str
    methods: tuple[Method, ...]
    setting: str = ""
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompareScale:
    """How much is trained; the same for every row.

    Attributes:
        size: preset of all networks.
        recipe: of the external stage; the internal one differs in iterations and learning rate.
        adapt_iterations: of the internal stage.
        adapt_rate: learning rate after an external stage over that of the external stage.
        samples: K of the rows that take a mean; 1 leaves them out.
        test_slices: at most so many of each setting, evenly spread; None takes all.
        precision: of all trainings.
        seed: keys everything.
    """

    size: str = "small"
    recipe: Recipe
    adapt_iterations: int
    adapt_rate: float = 1.0
    samples: int = 8
    test_slices: int | None = None
    precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.adapt_iterations, self.samples) < 1:
            raise ValueError(
                "adapt_iterations and samples must be at least 1, got"
                f" {self.adapt_iterations=}, {self.samples=}"
            )
        if not 0.0 < self.adapt_rate < math.inf:
            raise ValueError(f"adapt_rate must be positive, got {self.adapt_rate=}")
        if self.test_slices is not None and self.test_slices < 1:
            raise ValueError(f"test_slices must be at least 1, got {self.test_slices=}")


def default_iterations(size: str) -> int:
    """Of the external stage at preset ``size``."""
    return ITERATIONS if size in LARGE else SMALL_ITERATIONS


def default_adapt_rate(size: str) -> float:
    """Learning rate after an external stage over that of the external stage."""
    return 1.0 if size in LARGE else SMALL_ADAPT_RATE


def default_test_slices(size: str) -> int | None:
    """At most so many test slices of each setting at preset ``size``; None takes all."""
    return None if size in LARGE else SMALL_TEST_SLICES


def default_recipe(size: str, iterations: int, batch_size: int) -> Recipe:
    """The paper's training at its sizes; for the small ones a rate that pays within minutes."""
    shared = Recipe(
        strategy="internal", iterations=iterations, batch_size=batch_size, augment="flip"
    )
    if size in LARGE:
        return shared
    return replace(shared, lr=SMALL_LR, warmup=iterations // 20, schedule="cosine", ema=0.995)


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a comparison with a user's ``settings``.

    Raises:
        ConfigError: one of them is none of `SETTINGS`, or out of range.
    """
    for name in settings:
        if name not in SETTINGS:
            raise ConfigError(
                f"--set {name}: a comparison decides that itself, or there is no such setting;"
                f" settings are {', '.join(SETTINGS)}"
            )
    return override(recipe, settings)


def table(name: str, samples: int) -> Comparison:
    """One of the paper's Tables 1 to 7.

    Raises:
        ConfigError: no such table.
    """
    if name in _RESTORATION:
        domain, title = _RESTORATION[name]
        return _restoration(name, title, domain, (*RIVALS, "mfdiff"), samples)
    if name == "table5":
        title = "Table 5: ablation on phantoms"
        return _restoration(name, title, PHANTOM, (*LADDER, "mfdiff"), samples)
    if name == "table6":
        arms: tuple[Strategy, ...] = ("external", "internal", "two_stage")
        methods = tuple(_staged("mfdiff", strategy) for strategy in arms)
        title = "Table 6: external and internal stage, ood1"
        return Comparison(name=name, title=title, domain="ood1", methods=methods)
    if name == "table7":
        methods = tuple(
            _staged(system, strategy)
            for system in ("csrd", "mfdiff")
            for strategy in ("single_stage", "two_stage")
        )
        title = "Table 7: one stage on mixed slices against two, ood1 at 2 min"
        return Comparison(name=name, title=title, domain="ood1", methods=methods, setting="2min")
    raise ConfigError(f"unknown table {name!r}; there are table1 to table7")


_RESTORATION = {
    "table1": (PHANTOM, "Table 1: phantoms"),
    "table2": ("ood1", "Table 2: ood1, imaging time"),
    "table3": ("ood2", "Table 3: ood2, injected dose"),
    "table4": ("ood3", "Table 4: ood3, administration"),
}
_STAGES: dict[Strategy, str] = {
    "external": "external only",
    "internal": "internal only",
    "single_stage": "single stage",
    "two_stage": "external + internal",
}


def own(models: Sequence[str], domain: str, samples: int) -> Comparison:
    """Models of one's choice on a domain of one's own.

    Raises:
        ConfigError: an unknown model.
    """
    for model in models:
        if model not in MODELS:
            raise ConfigError(f"unknown model {model!r}; valid models are {', '.join(MODELS)}")
    chosen = tuple(dict.fromkeys(models))
    joined = "-".join(chosen)
    if len(joined) > LONGEST_NAME:
        joined = f"{len(chosen)}-models-{sha256_text(joined)[:6]}"
    name = f"{domain}-{joined}"
    return _restoration(name, f"Comparison on {domain}", domain, chosen, samples)


def _restoration(
    name: str, title: str, domain: str, systems: Sequence[str], samples: int
) -> Comparison:
    methods = tuple(row for system in systems for row in _rows(system, samples))
    return Comparison(name=name, title=title, domain=domain, methods=methods)


def without_sinograms(comparison: Comparison) -> Comparison:
    """The comparison on slices that carry none: FB-SEM is left out with the reason.

    Raises:
        ConfigError: nothing is left.
    """
    kept = tuple(method for method in comparison.methods if method.system != "fb-sem")
    why = f"it {NEEDS_SINOGRAMS}"
    if not kept:
        raise ConfigError(f"nothing to compare: give --models other than fb-sem; {why}")
    left_out = {m.label: why for m in comparison.methods if m not in kept}
    return replace(comparison, methods=kept, left_out=left_out)


def _rows(system: str, samples: int) -> list[Method]:
    """A system's rows: diffusion models have one for a sample and one for a mean of samples."""
    label = LABELS[system]
    rows = [Method(label=label, system=system)]
    if system == "mfdiff":
        paper = f"{label} (paper)"
        rows.insert(0, Method(label=paper, system=system, as_in_paper=True))
    if system not in ("mfdiff", "csrd") or samples == 1:
        return rows
    return [
        variant
        for row in rows
        for variant in (replace(row, label=f"{row.label}, mean of {samples}", mean_of=samples), row)
    ]


def _staged(system: str, strategy: Strategy) -> Method:
    label = f"{LABELS[system]}, {_STAGES[strategy]}"
    return Method(label=label, system=system, strategy=strategy)
