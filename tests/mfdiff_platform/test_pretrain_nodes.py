"""Pretraining on eight logical GPUs, and on several Ray nodes of one machine, one of which dies.

Each runs a Ray of its own in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.bundle import load_bundle
from mfdiff_core.config import to_dict
from mfdiff_core.model import ModelConfig
from mfdiff_core.training.loop import TrainConfig
from mfdiff_platform.pretrain import BUNDLE, EVENTS, PretrainRequest
from mfdiff_platform.tracking import TrackingStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMON = """
import json, os, sys, time
from pathlib import Path
from threading import Thread
from mfdiff_core.config import from_dict
from mfdiff_platform.cluster import connect, prepare_environment
from mfdiff_platform.pretrain import PretrainRequest, Workers, pretrain
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace
root = Path(sys.argv[1])
request = from_dict(PretrainRequest, json.loads(sys.argv[2]))
folder = Workspace(root).pretraining(request.name)
def train(workers):
    pretrain(Workspace(root), TrackingStore(root), request, workers)
def cards():
    return [json.loads(path.read_text()) for path in sorted((folder / "workers").iterdir())]
"""

GPUS = """
with connect(cpus=8, gpus=8):
    train(Workers(8, on_gpu=True))
    import ray
    from ray.core.generated.gcs_pb2 import ActorTableData
    ray._private.state.actors()  # connects
    table = ray._private.state.state._global_state_accessor.get_actor_table(None, None)
    named = [ActorTableData.FromString(actor).repr_name for actor in table]
print(json.dumps({"cards": cards(), "names": [name for name in named if "pretrain" in name]}))
"""

SHARED = """
prepare_environment(joining=True)
import subprocess
import ray
from ray.cluster_utils import Cluster
from mfdiff_core.errors import MfdiffError
from mfdiff_platform.nodes import check_shared
head = {"num_cpus": 1, "include_dashboard": False}
os.environ["RAY_ADDRESS"] = Cluster(initialize_head=True, head_node_args=head).address
data, told = Path(request.data), {}
def nodes():
    return sum(node["Alive"] for node in ray.nodes())
def with_a_node_that_lacks(hidden):
    join = 'mount -t tmpfs none "$0" && exec "$@" start --address $RAY_ADDRESS --num-cpus 1 --block'
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    node = subprocess.Popen(["unshare", "-m", "sh", "-c", join, hidden, *ray_command], stdout=2)
    while nodes() < 2:
        assert node.poll() is None
        time.sleep(0.1)
    try:
        check_shared(root, data)
    except MfdiffError as fault:
        return [type(fault).__name__, str(fault)]
    finally:
        node.terminate()
        node.wait()
        while nodes() > 1:
            time.sleep(0.1)
elsewhere = root / "elsewhere"
elsewhere.mkdir()
with connect():
    check_shared(root, data)
    for name, hidden in {"workspace": root, "data": data, "neither": elsewhere}.items():
        told[name] = with_a_node_that_lacks(hidden)
print(json.dumps(told))
os._exit(0)
"""

NODES = """
prepare_environment(joining=True)
from ray.cluster_utils import Cluster
from mfdiff_platform.nodes import report_nodes
soon_dead = {"health_check_period_ms": 1000, "health_check_failure_threshold": 4}
head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon_dead}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
path = f"{root}/other:{os.environ.get('PYTHONPATH', '')}"
odd = cluster.add_node(num_cpus=0, env_vars={"PYTHONPATH": path})
os.environ["RAY_ADDRESS"] = cluster.address
with connect():
    fit = [(report.fits, report.differs) for report in report_nodes()]
cluster.remove_node(odd)
first = []
def kill_a_node():
    events = folder / "events.jsonl"
    while not (events.is_file() and '"progress", "step": 9,' in events.read_text()):
        time.sleep(0.005)
    first.extend(cards())
    (node,) = [node for node in nodes if node.node_id == first[1]["node"]]
    cluster.remove_node(node, allow_graceful=False)
Thread(target=kill_a_node, daemon=True).start()
train(Workers(2, on_gpu=False))
print(json.dumps({"first": first, "then": cards(), "fit": fit}))
os._exit(0)  # the nodes end with this process
"""


@pytest.fixture
def request_(dataset_folder: Path, tiny_config: ModelConfig) -> PretrainRequest:
    train = TrainConfig(iterations=24, log_every=1, validate_every=24, snapshot_every=6)
    return PretrainRequest(
        name="run", data=str(dataset_folder), model=tiny_config, train=train, batch_size=8
    )


def result(program: str, store: TrackingStore, request: PretrainRequest) -> dict[str, Any]:
    """The last line that ``program`` prints, as JSON."""
    arguments = [str(store.workspace), json.dumps(to_dict(request))]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    found = subprocess.run(
        [sys.executable, "-c", COMMON + program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    values: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return values


def test_eight_workers_each_get_their_own_of_eight_gpus(
    request_: PretrainRequest, store: TrackingStore
) -> None:
    short = replace(request_, train=replace(request_.train, iterations=2))
    found = result(GPUS, store, short)
    cards = found["cards"]
    assert sorted(found["names"]) == [f"pretrain toy run GPU {number}" for number in range(8)]
    assert [card["rank"] for card in cards] == list(range(8))
    assert sorted(card["gpus"] for card in cards) == [[str(number)] for number in range(8)]
    assert load_bundle(store.workspace / "pretrained" / "run" / BUNDLE).provenance.iterations == 2


def test_run_on_two_nodes_survives_the_death_of_one_and_a_node_with_other_versions_is_told_first(
    request_: PretrainRequest, store: TrackingStore
) -> None:
    other = store.workspace / "other" / "mfdiff_platform-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Name: mfdiff-platform\nVersion: 9.9\n")
    found = result(NODES, store, request_)
    assert found["fit"] == [[False, ["mfdiff-platform"]], *[[True, []]] * 4]
    nodes = [card["node"] for card in found["first"]]
    assert len(set(nodes)) == 2
    assert nodes[1] not in {card["node"] for card in found["then"]}
    events = (store.workspace / "pretrained" / "run" / EVENTS).read_text().split("\n")
    told = [json.loads(line) for line in events if line]
    began = [event["step"] for event in told if event["kind"] == "began"]
    assert began[0] == 0
    assert began[1] >= 6
    steps = {event["step"] for event in told if event["kind"] == "progress"}
    assert steps == set(range(1, 25))


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to mount",
)
def test_node_that_does_not_mount_the_workspace_or_the_data_is_named(
    request_: PretrainRequest, store: TrackingStore
) -> None:
    told = result(SHARED, store, request_)
    assert told["neither"] is None
    kind, words = told["workspace"]
    assert kind == "ResourceError"
    assert f"does not see {store.workspace}: with 2 nodes the workspace must lie on" in words
    kind, words = told["data"]
    assert kind == "DataError"
    assert f"does not read {request_.data} as it is here" in words
