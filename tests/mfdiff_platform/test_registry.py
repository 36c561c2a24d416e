from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mfdiff_core.bundle import Provenance, load_bundle, save_bundle
from mfdiff_core.errors import BundleError, ConfigError
from mfdiff_core.model import build_model, preset
from mfdiff_platform.errors import TrackingError
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.site_model import CHAMPION, ModelVersion
from mfdiff_platform.tracking import TrackingStore

LINEAGE = {"study": "first", "trial": 3}
CARD = "# Card\nresearch use only"


def make_bundle(folder: Path, seed: int) -> Path:
    config = preset("tiny")
    weights = build_model(config, seed).state_dict()
    where = {"domain": "ood3", "strategy": "two_stage", "iterations": 1, "seed": seed}
    provenance = Provenance(**where, data="data-hash", voxel_mm=2.0, parent="parent-hash")  # type: ignore[arg-type]
    return save_bundle(folder, config, weights, provenance).folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return make_bundle(folder / "a", 0), make_bundle(folder / "b", 1)


@pytest.fixture
def models(store: TrackingStore) -> SiteModels:
    return SiteModels(store)


@pytest.fixture
def run_id(store: TrackingStore) -> str:
    return store.find_or_create("studies", "first/0003").run_id


def sha256(bundle: Path) -> str:
    return load_bundle(bundle).provenance.sha256


def test_a_candidate_carries_its_lineage_and_card(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str
) -> None:
    made = models.register_candidate("ood3", bundles[0], run_id, LINEAGE, CARD)
    assert made == ModelVersion("mfdiff-ood3", 1)
    shown = models.show("mfdiff-ood3@candidate")
    assert shown.id == made
    assert shown.run_id == run_id
    assert shown.description == CARD
    described = models._store.client.get_registered_model("mfdiff-ood3").description
    assert described.startswith("Restores low-dose PET of domain ood3.")
    assert shown.tags == {
        "study": "first",
        "trial": "3",
        "strategy": "two_stage",
        "data_fingerprint": "data-hash",
        "parent_bundle": "parent-hash",
        "weights_sha256": sha256(bundles[0]),
    }


def test_registering_the_same_bundle_again_makes_no_second_version(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str
) -> None:
    first = models.register_candidate("ood3", bundles[0], run_id, LINEAGE, CARD)
    second = models.register_candidate("ood3", bundles[1], run_id, LINEAGE, CARD)
    assert models.register_candidate("ood3", bundles[0], run_id, LINEAGE, CARD) == first
    assert [model.id for model in models.list()] == [second, first]
    assert models.show("mfdiff-ood3@candidate").id == first


def test_every_way_to_name_a_model_leads_to_its_bundle(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str
) -> None:
    first = models.register_candidate("ood3", bundles[0], run_id, LINEAGE, CARD)
    models.register_candidate("ood3", bundles[1], run_id, LINEAGE, CARD)
    models.set_alias(first, "tried")
    for reference in ("mfdiff-ood3@tried", "mfdiff-ood3/1", "models:/mfdiff-ood3/1"):
        found = models.resolve(reference)
        assert sha256(found) == sha256(bundles[0])
        load_bundle(found).model()
    assert sha256(models.resolve("mfdiff-ood3/2")) == sha256(bundles[1])
    assert models.resolve(str(bundles[1])) == bundles[1]


def test_only_the_files_of_the_bundle_travel(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str, tmp_path: Path
) -> None:
    folder = tmp_path / "with-more"
    shutil.copytree(bundles[0], folder)
    (folder / "patients.csv").write_text("Jane Doe")
    models.register_candidate("ood3", folder, run_id, LINEAGE, CARD)
    names = {path.name for path in models.resolve("mfdiff-ood3/1").iterdir()}
    assert names == {"weights.safetensors", "config.json", "provenance.json"}
    assert list(tmp_path.glob("artifacts/**/patients.csv")) == []


def test_unknown_models_are_refused_with_the_known_ones(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str
) -> None:
    with pytest.raises(ConfigError, match="none is registered yet"):
        models.resolve("mfdiff-ood3@champion")
    models.register_candidate("ood3", bundles[0], run_id, LINEAGE, CARD)
    for reference in ("mfdiff-ood3@champion", "mfdiff-ood3/2", "mfdiff-ood9/1", "no/such/folder"):
        with pytest.raises(ConfigError, match="there are mfdiff-ood3@candidate, mfdiff-ood3/1"):
            models.resolve(reference)
    with pytest.raises(ConfigError):
        models.set_alias(ModelVersion("mfdiff-ood3", 9), CHAMPION)


@pytest.mark.parametrize("domain", ["../x", "a'b", "", "a/b", "x" * 65])
def test_domains_that_are_no_names_are_refused(
    models: SiteModels, bundles: tuple[Path, Path], domain: str
) -> None:
    with pytest.raises(ConfigError, match="domain name"):
        models.register_candidate(domain, bundles[0], "run", LINEAGE, CARD)


def test_a_damaged_bundle_is_not_registered(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(bundles[0], folder)
    shutil.copyfile(bundles[1] / "weights.safetensors", folder / "weights.safetensors")
    with pytest.raises(BundleError, match="do not match"):
        models.register_candidate("ood3", folder, run_id, LINEAGE, CARD)
    assert models.list() == []


def test_weights_that_changed_in_the_store_are_refused(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str, tmp_path: Path
) -> None:
    models.register_candidate("ood3", bundles[0], run_id, LINEAGE, CARD)
    (stored,) = tmp_path.glob("artifacts/**/weights.safetensors")
    shutil.copyfile(bundles[1] / "weights.safetensors", stored)
    with pytest.raises(BundleError, match="not the registered ones"):
        models.resolve("mfdiff-ood3/1")
    assert not (tmp_path / "models/mfdiff-ood3/1").exists()


def test_a_damaged_local_copy_is_fetched_again(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str
) -> None:
    models.register_candidate("ood3", bundles[0], run_id, LINEAGE, CARD)
    weights = models.resolve("mfdiff-ood3/1") / "weights.safetensors"
    weights.write_bytes(b"")
    assert sha256(models.resolve("mfdiff-ood3/1")) == sha256(bundles[0])
    load_bundle(weights.parent).weights()


def test_a_link_in_place_of_weights_is_refused(
    models: SiteModels, bundles: tuple[Path, Path], run_id: str, tmp_path: Path
) -> None:
    folder = tmp_path / "linked"
    shutil.copytree(bundles[0], folder)
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to(bundles[0] / "weights.safetensors")
    with pytest.raises(BundleError, match="not a plain file"):
        models.register_candidate("ood3", folder, run_id, LINEAGE, CARD)


def test_a_registry_out_of_reach_is_told(tmp_path: Path) -> None:
    models = SiteModels(TrackingStore(tmp_path, "http://127.0.0.1:9"))
    with pytest.raises(TrackingError, match="cannot be used"):
        models.resolve("mfdiff-ood3@champion")
