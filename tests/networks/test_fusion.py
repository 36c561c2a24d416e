"""Fusion module: shapes, sizes and independence of the two modalities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfdiff_core.config import from_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.networks import FusionConfig, FusionNet

SMALL = FusionConfig(channels=8, heads=2, encoder_blocks=1, decoder_blocks=1)


def small(**changes: Any) -> FusionNet:
    torch.manual_seed(0)
    values = {"channels": 8, "heads": 2, "encoder_blocks": 1, "decoder_blocks": 1, **changes}
    return FusionNet(from_dict(FusionConfig, values))


def images() -> tuple[Tensor, Tensor]:
    x = torch.rand(2, 2, 1, 12, 8, generator=torch.Generator().manual_seed(0))
    return x[0], x[1]


def num_parameters(config: FusionConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in FusionNet(config).parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"merge": "concat"},
        {"share_global": True},
        {"coupling": "cddfuse", "qkv_conv": "full", "fusion_couplings": 1},
        {"branches": "global"},
        {"branches": "detail"},
        {"checkpointing": True},
    ],
    ids=str,
)
def test_every_form_maps_two_images_to_c_channels_and_trains(changes: dict[str, Any]) -> None:
    net = small(**changes)
    f = net(*images())
    assert f.shape == (2, 8, 12, 8)
    f.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Two encoders 576 + 4 * 45,256; three global branches 31,816 and three detail branches
        # 28,032 (each modality and fusion); decoder 8,192 + 2 * 45,256.
        (FusionConfig(), 641_448),
        (FusionConfig(branches="global"), 641_448 + 3 * (31_816 - 28_032)),
        (FusionConfig(branches="detail"), 641_448 - 3 * (31_816 - 28_032)),
        (FusionConfig(qkv_conv="full", coupling="cddfuse"), 1_714_536),
        (FusionConfig(qkv_conv="full", coupling="cddfuse", fusion_couplings=1), 1_678_184),
    ],
    ids=["paper", "GMUNet", "DMUNet", "CDDFuse", "CDDFuse, one fusion node"],
)
def test_size_is_exact(config: FusionConfig, expected: int) -> None:
    assert num_parameters(config) == expected


def test_the_three_fusions_of_table_5_differ_by_at_most_2_percent() -> None:
    full = num_parameters(FusionConfig())
    for branches in ("global", "detail"):
        assert abs(num_parameters(FusionConfig(branches=branches)) / full - 1) < 0.02


def test_modalities_share_no_parameter() -> None:
    net = small()
    for p, m in [
        (net.encoder_p, net.encoder_m),
        (net.global_p, net.global_m),
        (net.detail_p, net.detail_m),
    ]:
        assert isinstance(m, nn.Module)
        assert not {id(x) for x in p.parameters()} & {id(x) for x in m.parameters()}


def test_mr_weights_do_not_touch_pet_features() -> None:
    net, (x_p, _) = small(), images()

    def pet_features() -> list[Tensor]:
        f_p = net.encoder_p(x_p, torch.channels_last)
        return [f_p, net.global_p(f_p), net.detail_p(f_p)]

    before = pet_features()
    for name, parameter in net.named_parameters():
        if name.split(".")[0].endswith("_m"):
            nn.init.normal_(parameter)
    for old, new in zip(before, pet_features(), strict=True):
        assert torch.equal(old, new)


def test_sharing_the_global_branch_removes_one_and_names_each_tensor_once() -> None:
    net = small(share_global=True)
    storages = [tensor.data_ptr() for tensor in net.state_dict().values()]
    assert len(set(storages)) == len(storages)
    assert not any(name.startswith("global_m") for name in net.state_dict())


def test_memory_format_changes_speed_but_no_value() -> None:
    net = small().double()
    x_p, x_m = (x.double() for x in images())
    fast = net(x_p, x_m)
    net.memory_format = torch.contiguous_format
    torch.testing.assert_close(net(x_p, x_m), fast)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 10, "heads": 4}, "channels=10, heads=4"),
        ({"channels": 7, "heads": 7}, "channels=7, heads=7"),
        ({"encoder_blocks": 0}, "encoder_blocks=0"),
        ({"ffn_ratio": 0.01}, "ffn_ratio=0.01"),
        ({"merge": "max"}, "'max' is not one of 'sum', 'concat'"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(FusionConfig, changes)
