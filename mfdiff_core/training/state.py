"""Training state: all that makes a resumed run equal an uninterrupted one, bit for bit.

Random numbers are keyed by the step and the learning rate is a function of it, so the state is
weights, optimiser moments, averaged weights, the step and the best metric. On disk it is a
folder with one safetensors file and one JSON file: nothing that could execute code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import atomic_path, read_json, sha256_file, write_json
from mfdiff_core.model import RestorationModel
from mfdiff_core.tensors import load_tensors, save_tensors
from mfdiff_core.training.optim import WeightAverage, lr_groups

TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass
class TrainState:
    """A model in training.

    Attributes:
        model: the weights being trained.
        optimizer: AdamW over the trainable ones.
        average: averaged weights, None if switched off.
        lr_scales: factor on the learning rate by parameter name, frozen ones included.
        stages: names of the parameters that a freeze plan holds, by stage, the one nearest to the
            output first.
        step: finished steps.
        best: best validation value so far.
        best_weights: what the model was when ``best`` was reached.
    """

    model: RestorationModel
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    stages: Sequence[Sequence[str]] = ()
    step: int = 0
    best: float = float("-inf")
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights to restore with: the averaged ones where there are any."""
        weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if self.average is not None:
            weights |= {name: value.clone() for name, value in self.average.averages.items()}
        return weights

    def note_validation(self, value: float) -> bool:
        """Remember the weights if ``value`` is the best so far; says whether it is."""
        if not value > self.best:  # NaN is never the best
            return False
        self.best, self.best_weights = value, self.weights()
        return True

    @contextmanager
    def averaged(self) -> Iterator[RestorationModel]:
        """The model in evaluation mode, holding the weights to restore with."""
        kept = {n: v.detach().clone() for n, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights())
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.load_state_dict(kept)
            self.model.train()

    def unfreeze(self, names: Collection[str] | None = None) -> bool:
        """Train ``names``, or everything, from now on; what was frozen has fresh moments.

        Returns:
            Whether any of it was frozen.
        """
        frozen = [
            (n, p)
            for n, p in self.model.named_parameters()
            if not p.requires_grad and (names is None or n in names)
        ]
        if not frozen:
            return False
        for _, parameter in frozen:
            parameter.requires_grad_(True)
        for group in lr_groups(frozen, self.optimizer.defaults["lr"], self.lr_scales):
            self.optimizer.add_param_group(group)
        if self.average is not None:
            self.average.averages |= {n: p.detach().clone() for n, p in frozen}
        self.model.train()  # batch norms that stood still move again
        return True

    def save(self, folder: Path) -> None:
        """Write the state to ``folder`` atomically."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_tensors(temporary / TENSORS, self._tensors())
            best = self.best if self.best_weights else None
            sha256 = sha256_file(temporary / TENSORS)
            facts = _Facts(
                step=self.step,
                best=best,
                planned=self._planned(),
                frozen=self._frozen(),
                sha256=sha256,
            )
            write_json(temporary / FACTS, to_dict(facts))

    def load(self, folder: Path) -> None:
        """Take over the state of ``folder``; the model and optimiser must be built alike.

        Raises:
            DataError: incomplete or damaged state, or one of another model or freeze plan.
        """
        facts, tensors = _read(folder)
        if facts.planned != self._planned():
            raise DataError(f"{folder}: the state is of another freeze plan")
        self.unfreeze(set(facts.planned) - set(facts.frozen))
        if facts.frozen != self._frozen():
            raise DataError(f"{folder}: the state is of an earlier step than the one it is to fill")
        odd = _shapes(self._tensors()) ^ _shapes(tensors)
        if odd:
            raise DataError(f"{folder}: the state is of another model ({min(odd)[0]})")
        self._take(tensors)
        self.step = facts.step
        self.best = float("-inf") if facts.best is None else facts.best

    def _planned(self) -> tuple[str, ...]:
        return tuple(sorted(name for stage in self.stages for name in stage))

    def _frozen(self) -> tuple[str, ...]:
        return tuple(n for n, p in self.model.named_parameters() if not p.requires_grad)

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{n}": v for n, v in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{n}": v for n, v in self.average.averages.items()}
        for name, parameter in _trained(self.model):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"best.{n}": v for n, v in self.best_weights.items()}
        return tensors

    def _take(self, tensors: dict[str, torch.Tensor]) -> None:
        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.best_weights = under("best.")
        with torch.no_grad():
            if self.average is not None:
                for name, value in under("average.").items():
                    self.average.averages[name].copy_(value)
        self._take_moments(under("optimizer."))

    def _take_moments(self, moments: dict[str, torch.Tensor]) -> None:
        names = dict(_trained(self.model))
        for key, value in moments.items():
            kind, name = key.split(".", 1)
            self.optimizer.state[names[name]][kind] = self._like(names[name], kind, value)

    def _like(self, parameter: nn.Parameter, kind: str, value: torch.Tensor) -> torch.Tensor:
        """A moment as a fused optimiser wants it: beside its parameter and laid out alike."""
        if kind != "step":
            return torch.empty_like(parameter, requires_grad=False).copy_(value)
        return value.to(parameter.device) if self.optimizer.defaults["fused"] else value


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What is in ``state.json``; ``planned`` is what the freeze plan holds at the start."""

    step: int
    best: float | None
    planned: tuple[str, ...]
    frozen: tuple[str, ...]
    sha256: str


def _read(folder: Path) -> tuple[_Facts, dict[str, torch.Tensor]]:
    """A saved state's facts and tensors, the latter after checking their hash."""
    try:
        facts = from_dict(_Facts, read_json(folder / FACTS))
        if sha256_file(folder / TENSORS) != facts.sha256:
            raise DataError(f"{folder}: the training state is damaged (hash does not match)")
        return facts, load_tensors(folder / TENSORS)
    except (ConfigError, OSError) as fault:
        raise DataError(f"{folder}: the training state is unreadable ({fault})") from None


def _shapes(tensors: Mapping[str, torch.Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what every state of a model has."""
    kept = ("model.", "average.")
    return {(n, tuple(v.shape)) for n, v in tensors.items() if n.startswith(kept)}


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
