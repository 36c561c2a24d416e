from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mfdiff_core.config import from_dict, override, to_dict
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.diffusion.process import DiffusionConfig
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.errors import ConfigError
from mfdiff_core.model import (
    PRESETS,
    MFdiffModel,
    ModelConfig,
    Restored,
    build_model,
    preset,
    stage_depths,
)

MakeModel = Callable[[], MFdiffModel]
KEYS = ("a", "b", "c")


@pytest.fixture
def pair(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """LPET and MR of three slices."""
    part = dataset.part("train")
    return part.x_p[:3], part.x_m[:3]


def starts(model: MFdiffModel, x_p: Tensor, x_m: Tensor, keys: tuple[str, ...]) -> Tensor:
    """What the network is given first: the noise that restoration starts from."""
    seen: list[Tensor] = []
    hook = model.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.restore(x_p, x_m, keys)
    hook.remove()
    return seen[0]


def same_weights(a: MFdiffModel, b: MFdiffModel) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# --- restoring -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0], [1], [2, 0], [2, 1, 0]])
def test_noise_of_a_slice_does_not_depend_on_its_batch(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor], order: list[int]
) -> None:
    whole = starts(tiny_model, *pair, KEYS)
    keys = tuple(KEYS[row] for row in order)
    part = starts(tiny_model, pair[0][order], pair[1][order], keys)
    assert torch.equal(part, whole[order])


@pytest.mark.parametrize("order", [[0], [1], [2, 0], [2, 1, 0]])
def test_restored_slice_does_not_depend_on_its_batch(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor], order: list[int]
) -> None:
    sampler = SamplerConfig(name="ddpm", num_evaluations=5, num_samples=2)
    whole = tiny_model.restore(*pair, KEYS, sampler=sampler)
    keys = [KEYS[row] for row in order]
    part = tiny_model.restore(pair[0][order], pair[1][order], keys, sampler=sampler)
    # Kernels may add up in another order for another batch size.
    torch.testing.assert_close(part.x_s, whole.x_s[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(part.spread, whole.spread[order], rtol=0, atol=1e-5)


def test_noise_depends_on_seed_and_name(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor]
) -> None:
    first = tiny_model.restore(*pair, KEYS).x_s
    assert torch.equal(tiny_model.restore(*pair, KEYS).x_s, first)
    assert not torch.equal(tiny_model.restore(*pair, KEYS, seed=1).x_s, first)
    assert not torch.equal(tiny_model.restore(*pair, ("x", "y", "z")).x_s, first)


def test_restoring_leaves_the_global_stream_alone(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor]
) -> None:
    before = torch.get_rng_state()
    tiny_model.restore(*pair, KEYS)
    assert torch.equal(torch.get_rng_state(), before)


def test_fusion_runs_once_whatever_the_number_of_steps_and_samples(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[int] = []
    evaluated: list[int] = []
    fuse = tiny_model.network.fuse

    def counting(x_p: Tensor, x_m: Tensor) -> Tensor:
        fused.append(len(x_p))
        return fuse(x_p, x_m)

    monkeypatch.setattr(tiny_model.network, "fuse", counting)
    tiny_model.network.register_forward_hook(lambda *_: evaluated.append(1))
    sampler = SamplerConfig(name="ddim", num_evaluations=4, num_samples=3)
    tiny_model.restore(*pair, KEYS, sampler=sampler)
    assert fused == [3]
    assert len(evaluated) == 12


def test_each_network_evaluation_is_reported(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor]
) -> None:
    calls: list[tuple[int, int]] = []
    sampler = SamplerConfig(name="ddim", num_evaluations=2, num_samples=2)
    tiny_model.restore(*pair, KEYS, sampler=sampler, on_step=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_restored_activity_is_never_negative(
    tiny_config: ModelConfig, pair: tuple[Tensor, Tensor]
) -> None:
    changes = {"diffusion.clip": None, "diffusion.clip_in_loss": False}
    unclipped = build_model(override(tiny_config, changes), 0)
    dark = unclipped.restore(0 * pair[0] - 5, pair[1], KEYS).x_s
    assert float(dark.min()) == 0


def test_one_sample_has_no_spread_and_several_have(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor]
) -> None:
    def spread(num_samples: int) -> Tensor:
        sampler = SamplerConfig(name="ddpm", num_evaluations=4, num_samples=num_samples)
        return tiny_model.restore(*pair, KEYS, sampler=sampler).spread

    assert not spread(1).any()
    assert float(spread(2).mean()) > 0


def test_both_modalities_matter(tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor]) -> None:
    x_p, x_m = pair
    plain = tiny_model.restore(x_p, x_m, KEYS).x_s
    assert not torch.allclose(tiny_model.restore(x_p, x_m.flip(-1), KEYS).x_s, plain, atol=1e-3)
    assert not torch.allclose(tiny_model.restore(x_p.flip(-1), x_m, KEYS).x_s, plain, atol=1e-3)


def test_untrained_few_step_model_returns_the_smoothed_low_dose_image(
    tiny_config: ModelConfig, pair: tuple[Tensor, Tensor]
) -> None:
    """Training starts at the clinic's Gaussian filter, not at noise."""
    restored: Restored = build_model(tiny_config, 0).restore(*pair, KEYS)
    sigma = tiny_config.diffusion.smoothing_px
    for x_s, x_p in zip(restored.x_s[:, 0], pair[0][:, 0], strict=True):
        expected = gaussian_filter(x_p.numpy(), sigma, mode="nearest", radius=3)
        np.testing.assert_allclose(x_s.numpy(), expected.clip(0, 1.25), atol=1e-5)


# --- training loss -------------------------------------------------------------------------


def test_loss_of_a_silent_network_is_the_power_of_the_noise(
    tiny_config: ModelConfig, pair: tuple[Tensor, Tensor]
) -> None:
    """Eq. (9) with an output of zero."""
    plain = to_dict(DiffusionConfig(num_steps=tiny_config.diffusion.num_steps))
    config = override(tiny_config, {f"diffusion.{key}": value for key, value in plain.items()})
    eps = torch.randn(3, 1, 32, 32)
    loss = build_model(config, 0)(*pair, pair[0], torch.tensor([0, 7, 19]), eps)
    assert float(loss.detach()) == pytest.approx(float(eps.square().mean()))


def test_gradient_reaches_every_parameter(
    make_model: MakeModel, pair: tuple[Tensor, Tensor]
) -> None:
    model = make_model()
    eps = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    model(*pair, pair[0].sqrt(), torch.tensor([0, 7, 19]), eps).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


# --- building and moving -------------------------------------------------------------------


def test_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny_config: ModelConfig,
) -> None:
    first = build_model(tiny_config, seed=3)
    torch.manual_seed(99)
    assert same_weights(build_model(tiny_config, seed=3), first)
    assert not same_weights(build_model(tiny_config, seed=4), first)


def test_building_leaves_the_global_stream_alone(tiny_config: ModelConfig) -> None:
    before = torch.get_rng_state()
    build_model(tiny_config, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_precision_keeps_the_noise_schedule(tiny_model: MFdiffModel) -> None:
    before = tiny_model.process.schedule
    after = tiny_model.double().process.schedule
    assert next(tiny_model.parameters()).dtype == torch.float64
    assert torch.equal(after.alpha_bar, before.alpha_bar)
    assert torch.equal(after.sqrt_one_minus_alpha_bar, before.sqrt_one_minus_alpha_bar)


@pytest.mark.gpu
def test_noise_schedule_moves_with_the_weights(
    tiny_model: MFdiffModel, pair: tuple[Tensor, Tensor]
) -> None:
    on_cpu = tiny_model.restore(*pair, KEYS).x_s
    moved = tiny_model.to("cuda")
    assert moved.process.schedule.alpha_bar.device.type == "cuda"
    on_gpu = moved.restore(pair[0].cuda(), pair[1].cuda(), KEYS).x_s
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-3)


def test_schedule_is_no_part_of_the_state(tiny_model: MFdiffModel) -> None:
    assert not [name for name in tiny_model.state_dict() if not name.startswith("network.")]


# --- configs -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_preset_is_a_valid_config(name: str) -> None:
    assert from_dict(ModelConfig, to_dict(preset(name))) == preset(name)


def test_unknown_preset_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'huge'; valid presets are tiny, quick"):
        preset("huge")


@pytest.mark.parametrize(
    "changes",
    [
        {"diffusion.num_steps": 1},
        {"sampler.num_evaluations": 1001},
        {"sampler.start_step": 1000},
    ],
)
def test_sampler_that_the_process_cannot_serve_is_refused_before_any_training(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"a process of \d+ steps cannot start at"):
        override(preset("tiny"), changes)


def test_training_with_ssim_needs_images_as_wide_as_its_window() -> None:
    with pytest.raises(ConfigError, match="needs images of 11 pixels or more"):
        override(
            preset("tiny"), {"network.image_size": 8, "network.unet.attention_resolutions": [4]}
        )


def test_depths_count_stages_from_the_output(tiny_model: MFdiffModel) -> None:
    groups = tiny_model.network.parameter_groups()
    depths = stage_depths(groups)
    by_group = {group: depths[names[0]] for group, names in groups.items()}
    assert by_group == {
        "up": 0, "middle": 1, "time": 1, "down": 2, "unet_in": 3, "decoder": 4,
        "aggregation": 5, "global": 6, "detail": 6, "encoders": 7,
    }  # fmt: skip
    assert len(depths) == len(list(tiny_model.parameters()))
