"""Freeze plans: which groups of parameters a fine-tuning run leaves untouched.

Frozen means no gradient, no optimiser state and not one bit changed. A plan that leaves
everything trainable although it promises to freeze, or that freezes everything, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from mfdiff_core.errors import ConfigError
from mfdiff_core.seeding import generator

FUSION = ("encoders", "global", "detail", "aggregation", "decoder")
PLANS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "encoders": ("encoders",),
    "fusion": FUSION,
    "fusion+down": (*FUSION, "unet_in", "down"),
    "all-but-up": (*FUSION, "unet_in", "down", "middle", "time"),
}
"""Plan name to the groups it freezes."""
NORM_ONLY = "norm-only"
_LORA = re.compile(r"lora-(\d+)")


def check_plan(plan: str) -> None:
    """Refuse an unknown plan name.

    Raises:
        ValueError: ``plan`` is not one of `PLANS`, ``norm-only`` or ``lora-<rank>``.
    """
    if plan not in PLANS and plan != NORM_ONLY and lora_rank(plan) is None:
        valid = ", ".join([*PLANS, NORM_ONLY, "lora-<rank>"])
        raise ValueError(f"unknown freeze plan {plan!r}; valid plans are {valid}")


def plan_fits(plan: str, groups: Mapping[str, Sequence[str]], norms: Sequence[str]) -> bool:
    """Whether a network has what ``plan`` freezes and what it leaves to train; see `apply_plan`."""
    if lora_rank(plan) is not None:
        return True
    if plan == NORM_ONLY:
        return bool(norms)
    frozen = {group for group in PLANS[plan] if groups.get(group)}
    return not PLANS[plan] or bool(frozen and {g for g in groups if groups[g]} - frozen)


def lora_rank(plan: str) -> int | None:
    """Rank of a ``lora-<rank>`` plan, None for others."""
    match = _LORA.fullmatch(plan)
    return int(match[1]) if match and int(match[1]) > 0 else None


def apply_plan(
    network: nn.Module, plan: str, groups: Mapping[str, Sequence[str]], norms: Sequence[str]
) -> None:
    """Set ``requires_grad`` of the network's parameters as ``plan`` says.

    Args:
        network: the network to fine-tune; for LoRA it receives adapters.
        plan: plan name, see `check_plan`.
        groups: group name to parameter names, a partition of the network.
        norms: names of the normalisation layers' parameters.

    Raises:
        ConfigError: the plan matches no parameter or leaves none to train.
    """
    check_plan(plan)
    rank = lora_rank(plan)
    if rank is not None:
        add_lora(network, rank)
        trained = {name for name, _ in network.named_parameters() if _is_adapter(name)}
    elif plan == NORM_ONLY:
        trained = set(norms)
    else:
        frozen = {name for group in PLANS[plan] for name in groups.get(group, ())}
        if PLANS[plan] and not frozen:
            raise ConfigError(f"freeze plan {plan!r} matches no parameter of this network")
        trained = {name for name, _ in network.named_parameters()} - frozen
    if not trained:
        raise ConfigError(f"freeze plan {plan!r} leaves nothing to train in this network")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_contiguous_behind_frozen)


def _contiguous_behind_frozen(module: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
    """Input of a group norm, copied where it comes from frozen layers in channels_last.

    The backward pass of torch's CPU kernel takes the process down if such an input needs no
    gradient but the norm's weights do (torch 2.13).
    """
    (x,) = args
    return x.contiguous() if torch.is_grad_enabled() and not x.requires_grad else x


class LowRank(nn.Module):
    """W + B A added to the weight of a convolution or linear layer (Hu et al., 2021, LoRA).

    A is [rank, in], B is [out, rank] on the flattened weight; B starts at zero, so the layer
    starts as it was.
    """

    def __init__(self, weight: torch.Tensor, rank: int, source: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        drawn = nn.init.kaiming_uniform_(torch.empty(rank, columns), a=5**0.5, generator=source)
        self.lora_a = nn.Parameter(drawn.to(weight))
        self.lora_b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The adapted weight."""
        return weight + (self.lora_b @ self.lora_a).view_as(weight)


def add_lora(network: nn.Module, rank: int) -> None:
    """Give every linear and convolution weight of ``network`` a low-rank adapter."""
    source = generator(0, "lora")  # A is random, but the same in every run and on every worker
    for module in list(network.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            adapter = LowRank(module.weight.detach(), rank, source)
            parametrize.register_parametrization(module, "weight", adapter)


def merged_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """What the weights would be with adapters merged; the network keeps them apart."""
    weights: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        path, adapted, part = name.partition(".parametrizations.weight.")
        if not adapted:
            weights[name] = value
        elif part == "original":
            merged = network.get_submodule(path).weight
            assert isinstance(merged, torch.Tensor)
            weights[f"{path}.weight"] = merged.detach()
    return weights


def _is_adapter(name: str) -> bool:
    return name.endswith((".lora_a", ".lora_b"))
