from __future__ import annotations

from pathlib import Path

import pytest

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.config import override
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import ConfigError
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.model import ModelConfig, build_model
from mfdiff_platform.gate_evidence import restore_test
from mfdiff_platform.model_comparison import Comparison, compare_models, table_cells


def bundle_of(folder: Path, config: ModelConfig, seed: int) -> Bundle:
    told = Provenance(domain="toy", strategy="", iterations=0, seed=0, data="", voxel_mm=2.0)
    return save_bundle(folder, config, build_model(config, seed).state_dict(), told)


@pytest.fixture
def compared(
    tmp_path: Path, tiny_bundle: Bundle, pretrained: Bundle, dataset: Dataset
) -> Comparison:
    models = {"mfdiff-toy/2": tiny_bundle, "mfdiff-toy/1": pretrained}
    return compare_models(models, dataset.part("test"), tmp_path / "page.html")


def test_both_models_and_the_lpet_stand_on_the_same_slices(
    compared: Comparison, dataset: Dataset, tiny_bundle: Bundle
) -> None:
    assert [row.name for row in compared.rows] == ["LPET", "mfdiff-toy/2", "mfdiff-toy/1"]
    test = dataset.part("test")
    own = evaluate_slices(restore_test(tiny_bundle, test), test.x_s[:, 0].numpy()).mean()
    assert compared.rows[1].metrics["psnr"][0] == pytest.approx(own.psnr, abs=1e-4)
    assert compared.slices == len(test)


def test_the_difference_is_first_minus_second(compared: Comparison) -> None:
    for metric, (mean, low, high) in compared.difference.items():
        first, second = (row.metrics[metric][0] for row in compared.rows[1:])
        assert mean == pytest.approx(first - second, abs=1e-6)
        assert low <= mean <= high
    head, rows = table_cells(compared)
    assert {len(row) for row in rows} == {len(head)}


def test_the_page_holds_table_and_pictures_and_no_links(compared: Comparison) -> None:
    html = compared.page.read_text()
    assert html.count("<img") == 3
    assert "mfdiff-toy/2" in html
    assert "not a medical device" in html
    assert "href" not in html
    assert "src='http" not in html
    assert compared.notes[0] in html


def test_names_are_escaped(
    tmp_path: Path, tiny_bundle: Bundle, pretrained: Bundle, dataset: Dataset
) -> None:
    models = {"<script>alert(1)</script>": tiny_bundle, "b": pretrained}
    out = tmp_path / "page.html"
    compare_models(models, dataset.part("test"), out)
    assert "<script>" not in out.read_text()


def test_one_model_or_one_of_another_size_cannot_be_compared(
    tmp_path: Path, tiny_config: ModelConfig, tiny_bundle: Bundle, dataset: Dataset
) -> None:
    test, out = dataset.part("test"), tmp_path / "page.html"
    with pytest.raises(ConfigError, match="two different models"):
        compare_models({"a": tiny_bundle}, test, out)
    large = override(
        tiny_config, {"network.image_size": 64, "network.unet.attention_resolutions": (16,)}
    )
    other = bundle_of(tmp_path / "large", large, 0)
    with pytest.raises(ConfigError, match="b takes 64 pixels, these slices have 32"):
        compare_models({"a": tiny_bundle, "b": other}, test, out)
    assert not out.exists()
