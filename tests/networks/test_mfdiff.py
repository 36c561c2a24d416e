"""The whole network: seams, parameter groups, presets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.networks import (
    NETWORK_PRESETS,
    FusionConfig,
    MFdiff,
    MFdiffConfig,
    UNetConfig,
    network_preset,
)
from mfdiff_core.networks.unet_blocks import SpatialAttention

GROUPS = {
    "encoders", "global", "detail", "aggregation", "decoder",
    "unet_in", "down", "middle", "up", "time",
}  # fmt: skip


def tiny(patch_size: int = 1) -> MFdiff:
    """A small network in which no layer is left at zero."""
    torch.manual_seed(0)
    net = MFdiff(
        MFdiffConfig(
            image_size=16,
            patch_size=patch_size,
            fusion=FusionConfig(channels=8, heads=2, encoder_blocks=1, decoder_blocks=1),
            unet=UNetConfig(
                channels=8,
                multipliers=(1, 2),
                blocks=1,
                attention_resolutions=(8 // patch_size,),
                norm_groups=4,
            ),
        )
    )
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def batch(size: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_t, x_p, x_m = torch.randn(3, 2, 1, size, size, generator=generator)
    return x_t, x_p, x_m, torch.tensor([0, 999])


def restored(net: MFdiff, x_t: Tensor, x_p: Tensor, x_m: Tensor, t: Tensor) -> Tensor:
    out: Tensor = net(x_t, t, x_p, net.fuse(x_p, x_m))
    return out


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_output_has_the_shape_of_the_image(patch_size: int) -> None:
    net = tiny(patch_size)
    x_t, x_p, x_m, t = batch()
    f = net.fuse(x_p, x_m)
    assert f.shape == (2, 8, 16 // patch_size, 16 // patch_size)
    assert net(x_t, t, x_p, f).shape == x_t.shape


def test_network_reads_x_t_then_x_p_then_f() -> None:
    net = tiny()
    x_t, x_p, x_m, t = batch()
    f = net.fuse(x_p, x_m)
    expected = net.unet(torch.cat((x_t, x_p, f), dim=1), t)
    torch.testing.assert_close(net(x_t, t, x_p, f), expected)


def test_output_is_zero_before_training() -> None:
    x_t, x_p, x_m, t = batch(32)
    assert (restored(MFdiff(network_preset("tiny")), x_t, x_p, x_m, t) == 0).all()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_output_depends_on_every_image(index: int) -> None:
    net = tiny()
    x_t, x_p, x_m, t = batch()
    before = restored(net, x_t, x_p, x_m, t)
    (x_t, x_p, x_m)[index].add_(1.0)
    assert (restored(net, x_t, x_p, x_m, t) - before).abs().max() > 1e-4


def test_output_depends_on_the_step() -> None:
    net = tiny()
    x_t, x_p, x_m, _ = batch()
    early, late = (restored(net, x_t, x_p, x_m, torch.full((2,), t)) for t in (0, 999))
    assert (early - late).abs().max() > 1e-4


def test_a_slice_is_restored_alike_alone_and_in_a_batch() -> None:
    net = tiny().eval()
    x_t, x_p, x_m, t = batch()
    together = restored(net, x_t, x_p, x_m, t)
    alone = restored(net, x_t[:1], x_p[:1], x_m[:1], t[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share_global", [False, True])
def test_groups_partition_the_parameters(share_global: bool) -> None:
    config = MFdiffConfig(fusion=FusionConfig(share_global=share_global, merge="concat"))
    with torch.device("meta"):
        net = MFdiff(config)
    groups = net.parameter_groups()
    assert set(groups) == GROUPS
    assert all(groups.values())
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in net.named_parameters())


def test_norm_parameters_are_weight_and_bias_of_every_norm() -> None:
    net = tiny()
    names = set(net.norm_parameters())
    parameters = dict(net.named_parameters())
    assert names <= set(parameters)
    assert names == {name for name in parameters if ".norm" in name}
    assert len(names) > 50


def test_gradients_reach_the_fusion_module_through_the_unet() -> None:
    net = tiny()
    x_t, x_p, x_m, t = batch()
    torch.autograd.backward(restored(net, x_t, x_p, x_m, t).square().mean())
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_memory_formats_change_no_value() -> None:
    net = tiny().double()
    x_t, x_p, x_m, t = (x.double() if x.is_floating_point() else x for x in batch())
    before = restored(net, x_t, x_p, x_m, t)
    net.set_memory_format(fusion=torch.contiguous_format, unet=torch.channels_last)
    torch.testing.assert_close(restored(net, x_t, x_p, x_m, t), before)


def test_bf16_autocast_gives_finite_outputs_and_gradients() -> None:
    net = tiny()
    x_t, x_p, x_m, t = batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = restored(net, x_t, x_p, x_m, t)
    torch.autograd.backward(out.float().square().mean())
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_training_graph_has_no_breaks() -> None:
    net = tiny()
    x_t, x_p, x_m, t = batch()
    compiled = torch.compile(restored, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(net, x_t, x_p, x_m, t), restored(net, x_t, x_p, x_m, t), atol=1e-5, rtol=1e-5
    )


def test_presets_are_the_five_and_survive_a_round_trip() -> None:
    assert list(NETWORK_PRESETS) == ["tiny", "quick", "small", "base", "paper"]
    for config in NETWORK_PRESETS.values():
        assert from_dict(MFdiffConfig, to_dict(config)) == config


@pytest.mark.parametrize("name", list(NETWORK_PRESETS))
def test_every_preset_has_all_parts_of_the_paper(name: str) -> None:
    config = network_preset(name)
    assert config.fusion.branches == "global+detail"
    assert config.fusion.couplings == config.fusion.fusion_couplings == 3
    assert config.unet.attention_resolutions
    with torch.device("meta"):
        net = MFdiff(config)
    assert any(isinstance(m, SpatialAttention) for m in net.unet.down.modules())


def test_paper_preset_has_the_published_size() -> None:
    with torch.device("meta"):
        net = MFdiff(network_preset("paper"))
    # DDPM's model with 63 input channels more and 2 output channels fewer.
    unet = 113_673_219 + 63 * 128 * 9 - 2 * (128 * 9 + 1)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (net.fusion, net.unet)]
    assert sizes == [641_448, unet]


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tiny, quick, small, base, paper, got name='huge'"):
        network_preset("huge")


def test_patch_size_must_divide_the_image() -> None:
    with pytest.raises(ValueError, match="image_size=192, patch_size=5"):
        MFdiffConfig(patch_size=5)


def test_images_of_two_shapes_are_refused_rather_than_broadcast() -> None:
    net = MFdiff(NETWORK_PRESETS["tiny"])
    with pytest.raises(ValueError, match=r"got \(2, 1, 32, 32\) and \(1, 1, 32, 32\)"):
        net.fuse(torch.zeros(2, 1, 32, 32), torch.zeros(1, 1, 32, 32))


def test_size_factor_is_what_forward_needs() -> None:
    net = tiny(2)
    assert net.config.size_factor == 4
    x = torch.zeros(1, 1, 20, 12)
    assert net(x, torch.tensor([0]), x, net.fuse(x, x)).shape == x.shape
