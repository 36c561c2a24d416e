from __future__ import annotations

import numpy as np
import pytest
import torch

from mfdiff_core.seeding import derive_seed, generator, rng

KEYS: list[tuple[int | str, ...]] = [
    (), ("a",), ("b",), ("a", 1), ("a", "1"), ("a1",), (1, "a"), (1,), ("1",),
]  # fmt: skip


def test_different_keys_give_different_seeds() -> None:
    seeds = {derive_seed(seed, *key) for seed in (0, 1) for key in KEYS}
    assert len(seeds) == 2 * len(KEYS)


def test_number_and_its_text_are_different_keys() -> None:
    assert derive_seed(0, 1) != derive_seed(0, "1")


def test_seed_fits_a_signed_64_bit_integer() -> None:
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in range(1000))


def test_seed_is_the_same_in_every_process_and_on_every_machine() -> None:
    assert (
        derive_seed(3, "noise", "s1", 4) == 8_779_506_664_995_810_991
    )  # recorded; datasets depend on it


def test_draws_depend_on_the_key_alone_not_on_what_was_drawn_before() -> None:
    first = rng(0, "a").random(3)
    rng(0, "b").random(100)
    assert np.array_equal(rng(0, "a").random(3), first)


def test_torch_draws_depend_on_the_key_alone() -> None:
    first = torch.randn(3, generator=generator(0, "a"))
    torch.randn(100)
    assert torch.equal(torch.randn(3, generator=generator(0, "a")), first)
    assert not torch.equal(torch.randn(3, generator=generator(0, "b")), first)


def test_drawing_leaves_the_global_streams_alone() -> None:
    state = torch.get_rng_state()
    torch.randn(3, generator=generator(0, "a"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stride", [1, 1000])
def test_streams_of_neighbouring_keys_are_uncorrelated(stride: int) -> None:
    draws = np.stack([rng(0, "noise", stride * i).standard_normal(1000) for i in range(20)])
    correlations = np.asarray(np.corrcoef(draws))[~np.eye(20, dtype=bool)]
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)  # five standard deviations
