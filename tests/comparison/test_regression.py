"""M-UNet, CNCL, Hi-Net and the ablation ladder: what each of them adds to the common claims."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mfdiff_core.comparison import system_preset
from mfdiff_core.comparison.ablations import AblationConfig, AblationUNet
from mfdiff_core.comparison.cncl import CNCL, CNCLConfig
from mfdiff_core.comparison.hi_net import HiNet, HiNetConfig, MixedFusion
from mfdiff_core.comparison.system import SystemConfig
from mfdiff_core.networks.fusion import FusionConfig
from tests.comparison.toy_systems import Slices, restored, thin

# --- M-UNet --------------------------------------------------------------------------------


def test_m_unet_starts_at_its_input(slices: Slices) -> None:
    assert torch.equal(restored(thin("m-unet").eval(), slices), slices.x_p)


def test_m_unet_with_a_zero_head_returns_its_input_whatever_the_rest(slices: Slices) -> None:
    system = thin("m-unet").eval()
    for name, parameter in system.named_parameters():
        (nn.init.zeros_ if ".head." in name else nn.init.normal_)(parameter)
    assert torch.equal(restored(system, slices), slices.x_p)


def test_m_unet_loss_is_the_mean_absolute_error(slices: Slices) -> None:
    loss = thin("m-unet")(*slices.images)
    torch.testing.assert_close(loss, F.l1_loss(slices.x_p, slices.x_s))


# --- CNCL ----------------------------------------------------------------------------------


def flat_cncl(noise: float) -> CNCL:
    """Predicts the same noise everywhere, and takes the image from that alone."""
    system = thin("cncl", l1_weight=1.0).eval()
    assert isinstance(system, CNCL)
    for name, parameter in system.noise.up[-1].named_parameters():
        nn.init.constant_(parameter, noise if name == "1.bias" else 0.0)
    system.weigh.weight.data = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    return system


def test_cncl_without_noise_returns_the_lpet(slices: Slices) -> None:
    assert torch.equal(restored(flat_cncl(0.0), slices), slices.x_p)


def test_cncl_noise_target_is_low_dose_minus_standard_dose(slices: Slices) -> None:
    """The image x_p - n is as wrong as the noise n, so their mean error is that of either."""
    system = flat_cncl(0.2)
    with_l1 = system.training_losses(*slices.images).restoration
    system.config = dataclasses.replace(system.config, l1_weight=0.0)
    without = system.training_losses(*slices.images).restoration
    noise = slices.x_p - slices.x_s
    torch.testing.assert_close(with_l1 - without, (noise - 0.2).abs().mean())


def test_cncl_discriminator_scores_12_by_12_patches() -> None:
    with torch.device("meta"):
        scores = CNCL(CNCLConfig()).discriminator(torch.empty(1, 4, 192, 192))
    assert scores.shape == (1, 1, 12, 12)


# --- Hi-Net --------------------------------------------------------------------------------


def test_hi_net_mixes_sum_product_and_maximum() -> None:
    fusion = MixedFusion(1, 1, joins=False, slope=0.0).eval()
    seen: list[torch.Tensor] = []
    fusion.mix.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fusion(torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), -3.0))
    assert seen[0][0, :, 0, 0].tolist() == [-1.0, -6.0, 2.0]


def test_hi_net_is_also_asked_for_both_inputs(slices: Slices) -> None:
    def loss(reconstruction: float) -> float:
        system = thin("hi-net", reconstruction_weight=reconstruction)
        return float(system.training_losses(*slices.images).restoration.detach())

    system = thin("hi-net")
    assert isinstance(system, HiNet)
    p, m = 1.6 * slices.x_p - 1, 1.6 * slices.x_m - 1
    again = F.l1_loss(system.again_p(system.encoder_p(p)[-1]), p)
    again = again + F.l1_loss(system.again_m(system.encoder_m(m)[-1]), m)
    assert loss(20.0) - loss(0.0) == pytest.approx(20 * float(again.detach()), rel=1e-4)


def test_hi_net_discriminator_scores_10_by_10_patches() -> None:
    with torch.device("meta"):
        scores = HiNet(HiNetConfig()).discriminator(torch.empty(1, 1, 192, 192))
    assert scores.shape == (1, 1, 10, 10)


def test_hi_net_discriminator_that_nothing_would_be_left_of_is_refused() -> None:
    with pytest.raises(ValueError, match="discriminator_halvings must leave 3 of 32 pixels"):
        HiNetConfig(image_size=32)


# --- ablation ladder -----------------------------------------------------------------------


def test_the_plain_unet_does_not_see_the_mr(slices: Slices) -> None:
    system = thin("unet").eval()
    other = slices._replace(x_m=slices.x_m.flip(-1))
    assert torch.equal(restored(system, slices), restored(system, other))


@pytest.mark.parametrize(
    ("name", "channels"), [("unet", 1), ("munet", 2), ("gmunet", 65), ("cmunet", 65)]
)
def test_the_rungs_differ_in_what_the_unet_reads(name: str, channels: int) -> None:
    config = system_preset(name, "paper")
    assert isinstance(config, AblationConfig)
    with torch.device("meta"):
        first = next(AblationUNet(config).unet.parameters())
    assert first.shape == (64, channels, 3, 3)


def test_cmunet_has_the_fusion_of_mfdiff() -> None:
    config = system_preset("cmunet", "paper")
    assert isinstance(config, AblationConfig)
    assert config.fusion == FusionConfig()


@torch.no_grad()
def test_ablation_loss_is_the_squared_error(slices: Slices) -> None:
    system = thin("munet").eval()
    assert isinstance(system, AblationUNet)
    error = system.estimate(slices.x_p, slices.x_m) - slices.x_s
    torch.testing.assert_close(system(*slices.images), error.square().mean())


def test_a_rung_with_another_rungs_fusion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fusion\.branches of gmunet must be 'global'"):
        AblationConfig(system="gmunet")


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (AblationConfig, {"widths": (4,)}),
        (AblationConfig, {"patch_size": 0}),
        (CNCLConfig, {"channels": 5}),
        (CNCLConfig, {"l1_weight": -1.0}),
        (HiNetConfig, {"reconstruction_weight": -1.0}),
    ],
)
def test_impossible_settings_are_refused(
    config: type[SystemConfig], values: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        config(**values)
