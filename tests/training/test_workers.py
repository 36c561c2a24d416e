"""Two processes that gloo connects train what one does, whatever is frozen meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import gc, json, sys, torch, torch.distributed as dist
from mfdiff_core.config import override
from mfdiff_core.data.batches import Batch
from mfdiff_core.model import build_model, preset
from mfdiff_core.training.loop import Progress, TrainConfig, train
from mfdiff_core.training.step import Share
from mfdiff_core.training.strategies import Recipe, start

rank, meeting, freeze = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
config = override(preset("tiny"), {"network.unet.channels": 8, "network.unet.norm_groups": 4})

def trained(share, wrap):
    recipe = Recipe(freeze=freeze, unfreeze_at=0.25, unfreeze_stepwise=True, iterations=8, lr=1e-3)
    state = start(build_model(config, 0), recipe, build_model(config, 0).state_dict())
    def batch(step):
        images = torch.rand(3, 4, 1, 32, 32, generator=torch.Generator().manual_seed(step))
        return Batch(*images, keys=tuple(f"{step}:{row}" for row in range(4)))
    settings = TrainConfig(iterations=8, log_every=1, unfreeze_after=recipe.unfreeze_after,
                           unfreeze_stepwise=True, optim=recipe.optim())
    events = train(state, batch, settings, wrap=wrap, share=share)
    losses = [event.loss for event in events if isinstance(event, Progress)]
    return losses, torch.cat([p.detach().flatten() for p in state.model.parameters()])

dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
losses, weights = trained(Share(rank, 2), torch.nn.parallel.DistributedDataParallel)
both = [torch.empty_like(weights) for _ in range(2)]
dist.all_gather(both, weights)
dist.barrier()
gc.collect()  # a wrapper alive beyond the group would abort the interpreter as it ends
dist.destroy_process_group()
alone, expected = trained(Share(), None) if rank == 0 else (losses, weights)
print(json.dumps({
    "ranks_agree": torch.equal(*both),
    "weights": float((weights - expected).abs().max()),
    "losses": max(abs(a / b - 1) for a, b in zip(losses, alone, strict=True)),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["fusion+down", "lora-2"])
def test_stepwise_unfreezing_by_two_workers_is_that_of_one(tmp_path: Path, freeze: str) -> None:
    arguments = [str(tmp_path / "meeting"), freeze]
    group = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in group:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        assert found["ranks_agree"]
        assert found["losses"] < 1e-3
        assert found["weights"] < 1e-3
