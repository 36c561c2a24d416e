"""Four slices of the toy dataset, and the measured data that FB-SEM wants with them."""

from __future__ import annotations

import pytest
import torch

from mfdiff_core.data.dataset import Dataset
from mfdiff_core.physics.projector import cached_projector
from tests.comparison.toy_systems import TOY, Slices


@pytest.fixture(scope="session")
def slices(dataset: Dataset) -> Slices:
    part = dataset.part("train")
    x_p, x_m, x_s = part.x_p[:4], part.x_m[:4], part.x_s[:4]
    source = torch.Generator().manual_seed(0)
    factors = 0.3 + 0.7 * torch.rand(TOY.num_views, TOY.num_bins, 4, generator=source)
    expected = factors * cached_projector(TOY, 1).project(x_s.reshape(4, -1).T.contiguous())
    y = torch.poisson(20 * expected, generator=source) / 20
    return Slices(x_p, x_m, x_s, y.permute(2, 0, 1), factors.permute(2, 0, 1))
