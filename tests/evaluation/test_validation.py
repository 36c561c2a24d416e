from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mfdiff_core.data.dataset import Dataset, SliceSet
from mfdiff_core.diffusion.samplers import SamplerConfig
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.evaluation.validation import evaluate_model, restore_slices, summarise
from mfdiff_core.model import MFdiffModel

MakeModel = Callable[[], MFdiffModel]


@pytest.fixture
def slices(dataset: Dataset) -> SliceSet:
    return dataset.part("validation")


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_restoration_does_not_depend_on_the_batch_size(
    tiny_model: MFdiffModel, slices: SliceSet, batch_size: int
) -> None:
    sampler = SamplerConfig(name="ddpm", num_evaluations=3, num_samples=2)
    whole = restore_slices(tiny_model, slices, sampler=sampler)
    parts = restore_slices(tiny_model, slices, sampler=sampler, batch_size=batch_size)
    torch.testing.assert_close(parts.x_s, whole.x_s, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.spread, whole.spread, rtol=0, atol=1e-5)


def test_restoration_of_a_slice_does_not_depend_on_the_others(
    tiny_model: MFdiffModel, slices: SliceSet
) -> None:
    whole = restore_slices(tiny_model, slices).x_s
    alone = restore_slices(tiny_model, slices.select(lambda info: info is slices.infos[2])).x_s
    torch.testing.assert_close(alone[0], whole[2], rtol=0, atol=1e-5)


def test_each_batch_is_reported(tiny_model: MFdiffModel, slices: SliceSet) -> None:
    done: list[int] = []
    restore_slices(tiny_model, slices, batch_size=3, on_batch=done.append)
    assert done == [3, 4]


def test_metrics_are_those_of_the_restored_slices(
    tiny_model: MFdiffModel, slices: SliceSet
) -> None:
    restored = restore_slices(tiny_model, slices, seed=5).x_s
    expected = evaluate_slices(restored[:, 0], slices.x_s[:, 0])
    found = evaluate_model(tiny_model, slices, seed=5)
    assert found.convention == "quantitative"
    assert found.rows() == expected.rows()


def test_summary_has_the_mean_over_all_slices_and_over_those_of_each_setting(
    tiny_model: MFdiffModel, slices: SliceSet
) -> None:
    metrics = evaluate_model(tiny_model, slices)
    summary = summarise(metrics, slices)
    assert summary["psnr"] == pytest.approx(metrics.psnr.mean())
    for setting in ("ld", "uld"):
        rows = [row for row, info in enumerate(slices.infos) if info.setting == setting]
        for name in ("psnr", "ssim", "nmse"):
            expected = getattr(metrics, name)[rows].mean()
            assert summary[f"{setting}/{name}"] == pytest.approx(expected)


def test_summary_of_a_single_setting_does_not_repeat_itself(
    tiny_model: MFdiffModel, dataset: Dataset
) -> None:
    slices = dataset.part("validation", "ld")
    summary = summarise(evaluate_model(tiny_model, slices), slices)
    assert summary.keys() == {"psnr", "ssim", "nmse"}
