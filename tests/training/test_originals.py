"""What the authors of the comparison systems used, as far as it is known."""

from __future__ import annotations

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_core.training.optim import lr_factor
from mfdiff_core.training.originals import ORIGINALS, original
from tests.comparison.toy_systems import NAMES

ABLATIONS = {"unet", "munet", "gmunet", "dmunet", "cmunet"}


def test_every_published_system_has_its_own_training() -> None:
    assert set(ORIGINALS) == set(NAMES) - ABLATIONS
    known = {name: (o.lr, o.batch_size) for name, o in ORIGINALS.items()}
    assert known == {
        **{"m-unet": (2e-4, 4), "fb-sem": (1e-2, 5), "ea-gan": (2e-4, 6)},
        **{"hi-net": (1e-3, 4), "cncl": (2e-5, 2), "csrd": (2e-4, 16)},
    }


def test_epochs_become_steps_on_the_slices_at_hand() -> None:
    assert original("cncl").iterations(800) == 300 * 800 // 2
    assert original("csrd").iterations(800) == 50_000_000 // 16


def test_ea_gan_keeps_its_rate_for_100_epochs_and_loses_it_over_50() -> None:
    rates = [lr_factor(original("ea-gan").optim, epoch, 150) for epoch in range(150)]
    assert rates[:101] == [1.0] * 101
    assert rates[101] < 1.0
    assert rates[125] == pytest.approx(0.5, abs=0.01)


def test_csrd_ramps_up_and_averages_over_half_a_million_slices() -> None:
    optim = original("csrd").optim
    assert optim.warmup * 16 == 10_000_000
    assert optim.ema ** (500_000 / 16) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["mfdiff", "munet"])
def test_the_papers_own_networks_have_no_other_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is the paper's own"):
        original(name)
