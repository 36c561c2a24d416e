"""Claims that hold for every comparison system."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfdiff_core.comparison import SYSTEMS, build_system, system_preset
from mfdiff_core.comparison.ea_gan import EAGANConfig
from mfdiff_core.comparison.fb_sem import FBSEMConfig
from mfdiff_core.comparison.score_unet import ScoreUNetConfig
from mfdiff_core.comparison.system import OnePassSystem
from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.networks.presets import NETWORK_PRESETS
from mfdiff_core.training.freezing import PLANS
from tests.comparison.toy_systems import NAMES, Slices, extra, restored, thin, thin_config

# Total and discriminator; the first round to the figures of the published systems.
SIZES = {
    "m-unet": (487_857, 0),
    "fb-sem": (28_899 + 1, 0),  # the CNN and gamma
    "ea-gan": (29_238_913, 2_766_657),
    "hi-net": (3_872_259, 391_041),
    "cncl": (43_826_181, 2_765_760),
    "csrd": (15_145_153, 0),
    "unet": (31_042_369, 0),
    "munet": (31_042_945, 0),
    "gmunet": (31_732_033, 0),
    "dmunet": (31_709_329, 0),
    "cmunet": (31_720_681, 0),
}
# As tabulated for 192 x 192 slices, in millions.
ROUNDED = {
    "m-unet": "0.488",
    "fb-sem": "0.029",
    "ea-gan": "29.24 / 2.77",
    "hi-net": "3.87 / 0.39",
    "cncl": "43.83 / 2.77",
    "csrd": "15.15",
    "unet": "31.04",
    "munet": "31.04",
    "gmunet": "31.73",
    "dmunet": "31.71",
    "cmunet": "31.72",
}


def num_parameters(name: str, preset: str) -> tuple[int, int]:
    """Parameters of the restorer, and of the discriminator."""
    with torch.device("meta"):
        system = build_system(system_preset(name, preset))
    judge = system.discriminator
    of_judge = 0 if judge is None else sum(p.numel() for p in judge.parameters())
    return sum(p.numel() for p in system.parameters()) - of_judge, of_judge


def test_registry_is_complete() -> None:
    assert tuple(SYSTEMS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_size_at_the_papers_settings_is_exact(name: str) -> None:
    sizes = num_parameters(name, "paper")
    assert sizes == SIZES[name]
    for size, figure in zip(sizes, ROUNDED[name].split(" / "), strict=False):
        assert f"{size / 1e6:.{len(figure.split('.')[1])}f}" == figure


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fb-sem"])
@pytest.mark.parametrize("preset", ["tiny", "quick", "small"])
def test_small_presets_have_comparable_sizes(name: str, preset: str) -> None:
    assert 0.4e6 < num_parameters(name, preset)[0] < 0.75e6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", list(NETWORK_PRESETS))
def test_config_survives_a_file(name: str, preset: str) -> None:
    config = system_preset(name, preset)
    assert config.system == name
    assert config.image_size == NETWORK_PRESETS[preset].image_size
    assert from_dict(type(config), to_dict(config)) == config


def test_unknown_system_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="name must be one of m-unet, fb-sem, ea-gan"):
        system_preset("resnet", "tiny")


@pytest.mark.parametrize("name", NAMES)
def test_restored_slices_have_the_shape_of_the_lpet_and_no_negative_activity(
    name: str, slices: Slices
) -> None:
    x = restored(thin(name).eval(), slices)
    assert x.shape == slices.x_p.shape
    assert torch.isfinite(x).all()
    assert float(x.min()) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_restored_slice_does_not_depend_on_its_batch(name: str, slices: Slices) -> None:
    system = thin(name).eval()
    alone = restored(system, slices, slice(2, 3))
    torch.testing.assert_close(alone, restored(system, slices)[2:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_restoring_leaves_the_global_stream_and_the_weights_alone(
    name: str, slices: Slices
) -> None:
    system = thin(name).eval()
    before = {n: v.clone() for n, v in system.state_dict().items()}
    stream = torch.get_rng_state()
    restored(system, slices)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, before[n]) for n, v in system.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name: str, slices: Slices) -> None:
    system = thin(name)
    _wake(system)
    system(*slices.images, *extra(system, slices)).backward()
    assert not [n for n, p in system.named_parameters() if p.grad is None]


def _wake(system: nn.Module) -> None:
    """Leave no layer at zero, behind which nothing would get a gradient."""
    for parameter in system.parameters():
        if not parameter.any():
            nn.init.uniform_(parameter, 0.0, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_every_parameter_once_and_some_freeze_plan_fits(name: str) -> None:
    system = thin(name)
    groups = system.parameter_groups()
    found = [n for names in groups.values() for n in names]
    assert sorted(found) == sorted(n for n, _ in system.named_parameters())
    assert all(groups.values()) or name in ("unet", "munet")  # which have no fusion
    assert name == "fb-sem" or any(groups.get(group) for group in PLANS["all-but-up"])
    assert set(system.norm_parameters()) < set(found)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fb-sem"])
def test_uneven_images_are_refused_with_the_divisor(name: str, slices: Slices) -> None:
    system = thin(name).eval()
    factor = thin_config(name).size_factor
    crop = slices._replace(x_p=slices.x_p[..., :31], x_m=slices.x_m[..., :31])
    crop = crop._replace(x_s=slices.x_s[..., :31])
    with pytest.raises(ValueError, match=f"divisible by {factor}, got 32x31"):
        system(*crop.images, *extra(system, crop))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fb-sem"])
def test_config_refuses_an_image_size_that_does_not_halve(name: str) -> None:
    with pytest.raises(ValueError, match="image_size must be a multiple of"):
        thin_config(name, image_size=33)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("unet", "fb-sem")])
def test_both_modalities_matter(name: str, slices: Slices) -> None:
    system = thin(name).eval()
    _wake(system)

    @torch.no_grad()
    def output(given: Slices) -> Tensor:
        """Before negative activity is cut off, where there is such a thing."""
        if isinstance(system, OnePassSystem):
            return system.estimate(given.x_p, given.x_m)
        return restored(system, given)

    plain = output(slices)
    assert not torch.equal(output(slices._replace(x_m=slices.x_m.flip(-1))), plain)
    assert not torch.equal(output(slices._replace(x_p=slices.x_p.flip(-1))), plain)


LR_STEPS = {"ea-gan": (5e-3, 80), "csrd": (4e-3, 110), "hi-net": (5e-3, 80), "cncl": (1e-2, 110)}


@pytest.mark.parametrize("name", NAMES)
def test_every_system_overfits_four_slices(name: str, slices: Slices) -> None:
    """In evaluation mode, by the way it restores; normalisation statistics included."""
    system = thin(name)
    lr, steps = LR_STEPS.get(name, (1e-2, 60))
    optimizer = torch.optim.Adam(system.parameters(), lr=lr, betas=system.betas)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        system(*slices.images, *extra(system, slices, step)).backward()
        optimizer.step()
    before, after = (
        float((x - slices.x_s).square().mean())
        for x in (slices.x_p, restored(system.eval(), slices))
    )
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (EAGANConfig, {"image_size": 96}),
        (EAGANConfig, {"dropout": 1.0}),
        (FBSEMConfig, {"num_subsets": 0}),
        (FBSEMConfig, {"layers": 1}),
        (ScoreUNetConfig, {"channels": 6}),
    ],
)
def test_impossible_settings_are_refused(config: Any, values: dict[str, Any]) -> None:
    name = next(iter(values))
    with pytest.raises(ValueError, match=name):
        config(**values)
