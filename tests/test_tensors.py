"""Tensors on disk: they come back as they were, and nothing else passes for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mfdiff_core.errors import DataError
from mfdiff_core.tensors import load_tensors, save_tensors

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def tensors() -> dict[str, torch.Tensor]:
    """One of every type, and what is easily forgotten: no dimension, no element, no ASCII."""
    source = torch.Generator().manual_seed(0)
    drawn = torch.rand(3, 5, 2, generator=source) * 100
    found = {f"of/{kind}": drawn.to(kind) for kind in TYPES}
    turned = drawn.permute(2, 0, 1)
    channels_last = torch.rand(2, 3, 4, 4, generator=source).to(memory_format=torch.channels_last)
    return found | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "größe": turned,
        "channels_last": channels_last,
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t", tensors())
    assert same(load_tensors(tmp_path / "t"), tensors())


def test_loaded_tensors_share_no_memory(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t", {"a": torch.zeros(2), "b": torch.zeros(2)})
    loaded = load_tensors(tmp_path / "t")
    loaded["a"] += 1
    assert loaded["b"].tolist() == [0, 0]


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": GOOD, "b": GOOD},
        {"a": GOOD | {"data_offsets": [8, 0]}},
        {"a": GOOD | {"data_offsets": [0, 8, 8]}},
        {"a": GOOD | {"data_offsets": [0.0, 8.0]}},
        {"a": GOOD | {"shape": [True, 2]}},
        {"a": GOOD | {"shape": "2"}},
        {"a": GOOD | {"dtype": ["F32"]}},
        {"a": GOOD | {"shape": [1], "data_offsets": [0, 4]}},
        {"a": GOOD | {"shape": [1], "data_offsets": [4, 8]}},
        {"a": [2]},
        {"a": None},
        {},
        [GOOD],
        "a",
    ],
    ids=str,
)
def test_header_that_does_not_account_for_every_byte_is_refused(
    tmp_path: Path, header: Any
) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "t").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(DataError, match=r"t: unreadable weights \(.+\)$"):
        load_tensors(tmp_path / "t")


@pytest.mark.parametrize("text", [b"[" * 200_000, b"\xff\xfe{}", b'{"a": ', b"  "])
def test_header_that_is_no_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(DataError, match="unreadable weights"):
        load_tensors(tmp_path / "t")
