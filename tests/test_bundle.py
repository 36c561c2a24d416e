from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mfdiff_core.bundle import CONFIG, PROVENANCE, WEIGHTS, Bundle, load_bundle, save_bundle
from mfdiff_core.errors import BundleError
from mfdiff_core.files import sha256_file
from mfdiff_core.model import MFdiffModel

Weights = dict[str, torch.Tensor]


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def replace_weights(bundle: Bundle, content: bytes) -> Bundle:
    """Put ``content`` in place of the weights, with a hash to match, as a forger would."""
    path = bundle.folder / WEIGHTS
    path.write_bytes(content)
    rewrite(bundle.folder / PROVENANCE, lambda v: v.update(sha256=sha256_file(path)))
    return load_bundle(bundle.folder)


def with_weights(bundle: Bundle, change: Callable[[Weights], Any]) -> Bundle:
    """The bundle saved again with other tensors."""
    weights = bundle.weights()
    change(weights)
    return save_bundle(bundle.folder, bundle.config, weights, bundle.provenance)


# --- round trip ----------------------------------------------------------------------------


def test_model_from_a_bundle_gives_identical_outputs(
    tiny_bundle: Bundle, tiny_model: MFdiffModel
) -> None:
    x_p, x_m = torch.rand(2, 1, 1, 32, 32)
    loaded = load_bundle(tiny_bundle.folder).model()
    expected = tiny_model.restore(x_p, x_m, ["a"]).x_s
    assert torch.equal(loaded.restore(x_p, x_m, ["a"]).x_s, expected)


def test_weights_come_back_bit_for_bit(tiny_bundle: Bundle, tiny_model: MFdiffModel) -> None:
    weights, expected = tiny_bundle.weights(), tiny_model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_model_is_ready_to_restore(tiny_bundle: Bundle) -> None:
    assert not tiny_bundle.model().training


def test_config_and_provenance_come_back(tiny_bundle: Bundle) -> None:
    provenance = replace(
        tiny_bundle.provenance, recipe={"lr": 1e-4, "optim": {"ema": 0.9}}, metrics={"psnr": 30.5}
    )
    saved = save_bundle(tiny_bundle.folder, tiny_bundle.config, tiny_bundle.weights(), provenance)
    assert load_bundle(tiny_bundle.folder) == saved
    assert saved.config == tiny_bundle.config
    assert saved.provenance == replace(provenance, sha256=saved.provenance.sha256)


def test_hash_is_that_of_the_weights_file(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.provenance.sha256 == sha256_file(tiny_bundle.folder / WEIGHTS)


def test_bundle_is_three_files(tiny_bundle: Bundle) -> None:
    names = {path.name for path in tiny_bundle.folder.iterdir()}
    assert names == {WEIGHTS, CONFIG, PROVENANCE}


def test_tensors_of_any_layout_are_saved(tiny_bundle: Bundle, tiny_model: MFdiffModel) -> None:
    tiny_model.network.set_memory_format(fusion=torch.channels_last, unet=torch.channels_last)
    saved = save_bundle(
        tiny_bundle.folder, tiny_model.config, tiny_model.state_dict(), tiny_bundle.provenance
    )
    assert saved.provenance.sha256 == tiny_bundle.provenance.sha256


# --- weights that do not fit ---------------------------------------------------------------


def test_missing_tensor_is_named(tiny_bundle: Bundle) -> None:
    name = "network.unet.conv_in.bias"
    with pytest.raises(BundleError, match=f"tensor {name} is missing"):
        with_weights(tiny_bundle, lambda weights: weights.pop(name)).model()


def test_unexpected_tensor_is_named(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has an unexpected tensor network\.extra"):
        with_weights(tiny_bundle, lambda w: w.update({"network.extra": torch.ones(1)})).model()


def test_misshaped_tensor_is_named_with_both_shapes(tiny_bundle: Bundle) -> None:
    name = "network.unet.conv_in.bias"
    with pytest.raises(BundleError, match=rf"{name} has shape \(3,\), expected \(8,\)"):
        with_weights(tiny_bundle, lambda weights: weights.update({name: torch.ones(3)})).model()


# --- damage and forgery --------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 9, 0.5, -1])
def test_flipped_byte_is_found(tiny_bundle: Bundle, place: float) -> None:
    path = tiny_bundle.folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="do not match the hash"):
        load_bundle(tiny_bundle.folder).model()


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("forged", [False, True])
def test_truncated_weights_are_refused(tiny_bundle: Bundle, keep: float, forged: bool) -> None:
    content = (tiny_bundle.folder / WEIGHTS).read_bytes()
    short = content[: int(keep * len(content))]
    if forged:
        tiny_bundle = replace_weights(tiny_bundle, short)
    else:
        (tiny_bundle.folder / WEIGHTS).write_bytes(short)
    with pytest.raises(BundleError):
        tiny_bundle.model()


def lying_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A safetensors file whose header was changed by ``change``, with its length set right."""

    def forge(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return forge


NAME = "network.unet.conv_in.bias"
LIES: dict[str, Callable[[bytes], bytes]] = {
    "length beyond the file": lambda content: struct.pack("<Q", 2**40) + content[8:],
    "length of zero": lambda content: struct.pack("<Q", 0) + content[8:],
    "huge shape": lying_header(lambda h: h[NAME].update(shape=[2**40])),
    "negative shape": lying_header(lambda h: h[NAME].update(shape=[-8])),
    "offsets beyond the file": lying_header(lambda h: h[NAME].update(data_offsets=[0, 2**50])),
    "overlapping tensors": lying_header(lambda h: h[NAME].update(data_offsets=[0, 32])),
    "unknown type": lying_header(lambda h: h[NAME].update(dtype="PICKLE")),
    "no header": lambda content: b"{}" * 100,
    "empty file": lambda content: b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_header_is_refused(tiny_bundle: Bundle, lie: str) -> None:
    content = LIES[lie]((tiny_bundle.folder / WEIGHTS).read_bytes())
    with pytest.raises(BundleError, match="unreadable weights"):
        replace_weights(tiny_bundle, content).model()


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("forged", [False, True])
def test_pickle_under_the_weights_name_is_refused_unexecuted(
    tiny_bundle: Bundle, tmp_path: Path, forged: bool
) -> None:
    torch.save({"x": Payload(tmp_path / "executed")}, tmp_path / "payload")
    content = (tmp_path / "payload").read_bytes()
    if forged:
        tiny_bundle = replace_weights(tiny_bundle, content)
    else:
        (tiny_bundle.folder / WEIGHTS).write_bytes(content)
    with pytest.raises(BundleError):
        tiny_bundle.model()
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "payload", weights_only=False)
    assert (tmp_path / "executed").exists()  # the payload would have worked


def test_bundle_without_a_hash_is_refused(tiny_bundle: Bundle) -> None:
    rewrite(tiny_bundle.folder / PROVENANCE, lambda values: values.pop("sha256"))
    with pytest.raises(BundleError, match="do not match the hash"):
        load_bundle(tiny_bundle.folder).model()


# --- config and provenance -----------------------------------------------------------------


def test_config_with_an_unknown_key_is_refused_by_its_path(tiny_bundle: Bundle) -> None:
    rewrite(tiny_bundle.folder / CONFIG, lambda v: v["model"]["network"].update(layers=3))
    with pytest.raises(BundleError, match=r"model\.network\.layers|network\.layers: unknown key"):
        load_bundle(tiny_bundle.folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (CONFIG, lambda v: v.update(format=2), "bundle format 2, expected 1"),
        (CONFIG, lambda v: v.pop("format"), "format"),
        (CONFIG, lambda v: v.pop("model"), "model"),
        (CONFIG, lambda v: v.update(model=[]), "expected a mapping"),
        (CONFIG, lambda v: v["model"]["network"].update(image_size=-1), "image_size"),
        (PROVENANCE, lambda v: v.pop("voxel_mm"), "voxel_mm: missing"),
        (PROVENANCE, lambda v: v.update(owner="x"), "unknown key 'owner'"),
        (PROVENANCE, lambda v: v.update(metrics={"psnr": "high"}), r"metrics\.psnr"),
    ],
)
def test_description_that_is_not_understood_is_refused(
    tiny_bundle: Bundle, name: str, change: Callable[[Any], Any], message: str
) -> None:
    rewrite(tiny_bundle.folder / name, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(tiny_bundle.folder)


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
@pytest.mark.parametrize("name", [CONFIG, PROVENANCE])
def test_damaged_description_is_refused(tiny_bundle: Bundle, name: str, content: str) -> None:
    (tiny_bundle.folder / name).write_text(content)
    with pytest.raises(BundleError, match="bundle"):
        load_bundle(tiny_bundle.folder)


@pytest.mark.parametrize("name", [CONFIG, PROVENANCE, WEIGHTS])
def test_missing_file_is_named(tiny_bundle: Bundle, name: str) -> None:
    (tiny_bundle.folder / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        load_bundle(tiny_bundle.folder).model()


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        load_bundle(tmp_path / "nowhere")
