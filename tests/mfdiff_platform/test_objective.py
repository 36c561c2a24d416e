from __future__ import annotations

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_platform.objective import Objective, pareto, read_objectives


def test_metrics_know_which_way_is_better() -> None:
    found = read_objectives(("psnr", "bias", "bolus/nmse"), ())
    assert [objective.mode for objective in found] == ["max", "min", "min"]


def test_higher_score_is_better_whatever_the_mode() -> None:
    assert Objective("nmse", "min").score({"nmse": 0.1}) > Objective("nmse", "min").score(
        {"nmse": 0.2}
    )
    assert Objective("psnr", "max").score({"psnr": 2}) > Objective("psnr", "max").score({"psnr": 1})


@pytest.mark.parametrize(
    ("metrics", "modes", "message"),
    [
        (("dice",), (), "--metric dice: unknown; take psnr"),
        (("psnr", "psnr"), (), "twice"),
        (("psnr", "bias"), ("max",), "1 given for 2 metrics"),
    ],
)
def test_wrong_objectives_are_refused(
    metrics: tuple[str, ...], modes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_objectives(metrics, modes)


def test_pareto_front_is_all_that_nothing_beats() -> None:
    aims = read_objectives(("psnr", "bias"), ())
    points = {
        0: {"psnr": 30.0, "bias": 0.10},
        1: {"psnr": 31.0, "bias": 0.20},
        2: {"psnr": 29.0, "bias": 0.15},  # beaten by 0
        3: {"psnr": 30.0, "bias": 0.10},  # equal to 0: neither beats the other
    }
    assert pareto(points, aims) == [0, 1, 3]
