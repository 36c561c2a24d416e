"""The cluster files that users copy are files that Ray, or Kubernetes, accepts."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray.autoscaler
import yaml

from mfdiff_core.errors import ConfigError
from mfdiff_platform.cluster_file import head_address, load_cluster, use_cluster
from mfdiff_platform.errors import ResourceError

CLUSTERS = Path(__file__).resolve().parents[1] / "clusters"
FILES = sorted(CLUSTERS.iterdir())
NAMES = {
    *("local.yaml", "single-node.yaml", "on-prem.yaml", "aws.yaml", "gcp.yaml"),
    *("kuberay.yaml", "slurm.sh"),
}
RAY_UP = [path for path in FILES if path.suffix == ".yaml" and path.name != "kuberay.yaml"]


def named(path: Path) -> str:
    return path.name


def header(path: Path) -> str:
    """The comment at the top of a file."""
    lines = path.read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_the_set_of_cluster_files_is_complete() -> None:
    assert {path.name for path in FILES} == NAMES
    assert len(RAY_UP) == 5


@pytest.mark.parametrize("path", RAY_UP, ids=named)
def test_ray_accepts_the_file_through_its_own_loader_and_schema(path: Path) -> None:
    config = load_cluster(path)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("path", RAY_UP, ids=named)
def test_ray_refuses_the_file_with_a_misspelt_key(path: Path, tmp_path: Path) -> None:
    copied = tmp_path / path.name
    copied.write_text(path.read_text().replace("max_workers:", "max_worker:"))
    with pytest.raises(ConfigError, match="Ray refuses it"):
        load_cluster(copied)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_header_says_when_and_with_which_commands(path: Path) -> None:
    told = header(path)
    assert len(told.splitlines()) >= 10
    wanted = {"kuberay.yaml": f"kubectl apply -f clusters/{path.name}"}
    wanted |= {"slurm.sh": "sbatch clusters/slurm.sh", "local.yaml": "mfdiff-platform pretrain"}
    assert wanted.get(path.name, f"ray up clusters/{path.name}") in told
    assert max(map(len, told.splitlines())) <= 100


@pytest.mark.parametrize("path", FILES, ids=named)
def test_token_stays_on_and_nothing_listens_beyond_loopback(path: Path) -> None:
    text = path.read_text()
    assert "RAY_AUTH_MODE=token" in text or "mode: token" in text
    assert "0.0.0.0" not in text
    for start in re.findall(r"ray start --head.*", text):
        assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("path", [p for p in RAY_UP if p.name != "local.yaml"], ids=named)
def test_remote_nodes_get_the_token(path: Path) -> None:
    assert "~/.ray/auth_token" in yaml.safe_load(path.read_text())["file_mounts"]


POD = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image", "resources"],
                        "properties": {
                            "name": {"type": "string"},
                            "image": {"type": "string"},
                            "env": {"type": "array"},
                            "resources": {
                                "type": "object",
                                "required": ["limits"],
                                "additionalProperties": False,
                                "properties": {
                                    "limits": {"type": "object"},
                                    "requests": {"type": "object"},
                                },
                            },
                            "volumeMounts": {"type": "array"},
                        },
                        "additionalProperties": False,
                    },
                },
                "volumes": {"type": "array"},
            },
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}
START = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
RAY_JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["entrypoint", "rayClusterSpec"],
            "additionalProperties": False,
            "properties": {
                "entrypoint": {"type": "string"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": COUNT,
                "backoffLimit": COUNT,
                "rayClusterSpec": {
                    "type": "object",
                    "required": ["headGroupSpec", "rayVersion"],
                    "additionalProperties": False,
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {
                            "type": "object",
                            "properties": {"mode": {"enum": ["disabled", "token"]}},
                            "additionalProperties": False,
                        },
                        "headGroupSpec": {
                            "type": "object",
                            "required": ["template"],
                            "properties": {"rayStartParams": START, "template": POD},
                            "additionalProperties": False,
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["groupName", "maxReplicas", "minReplicas", "template"],
                                "properties": {
                                    "groupName": {"type": "string"},
                                    "replicas": COUNT,
                                    "minReplicas": COUNT,
                                    "maxReplicas": COUNT,
                                    "rayStartParams": START,
                                    "template": POD,
                                },
                                "additionalProperties": False,
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What the RayJob resource of KubeRay asks for, of the fields that our file uses."""


@pytest.fixture
def job() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CLUSTERS / "kuberay.yaml").read_text())
    return values


def test_ray_job_has_the_structure_of_its_resource(job: dict[str, Any]) -> None:
    jsonschema.validate(job, RAY_JOB)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].pop("entrypoint"),
        lambda job: job["spec"]["rayClusterSpec"].pop("headGroupSpec"),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(minReplica=1),
        lambda job: job.update(apiVersion="ray.io/v1alpha1"),
    ],
)
def test_ray_job_that_is_spoilt_would_be_noticed(
    job: dict[str, Any], spoil: Callable[[dict[str, Any]], Any]
) -> None:
    spoilt = copy.deepcopy(job)
    spoil(spoilt)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoilt, RAY_JOB)


def test_ray_job_runs_the_ray_that_is_installed_on_the_gpus_it_asks_for(
    job: dict[str, Any],
) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    containers = [
        g["template"]["spec"]["containers"][0] for g in (cluster["headGroupSpec"], workers)
    ]
    assert cluster["rayVersion"] == version("ray")
    assert all(f"ray{version('ray')}" in container["image"] for container in containers)
    gpus = int(containers[1]["resources"]["limits"]["nvidia.com/gpu"]) * workers["replicas"]
    assert f"--gpus {gpus} " in job["spec"]["entrypoint"]


def test_ray_job_mounts_one_workspace_everywhere(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        mounts = {
            mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]
        }
        assert mounts["shared"] == "/shared"
        assert set(mounts) <= volumes


def test_slurm_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(CLUSTERS / "slurm.sh")], check=True)


SRUN = """#!/bin/sh
echo "$@" > called
while [ ! -e mfdiff-workspace/pretrained/base/stop ]; do sleep 0.05; done
exit 143
"""
MANY_NODES = "#!/bin/sh\nfor n in $(seq 1 20000); do echo node$n; done\n"
"""More than a pipe holds, so that whoever stops reading is noticed."""


def test_slurm_script_asks_for_a_checkpoint_before_its_time_is_over(tmp_path: Path) -> None:
    for name, text in {"srun": SRUN, "scontrol": MANY_NODES}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "mfdiff-workspace/pretrained/base").mkdir(parents=True)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    found = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", str(CLUSTERS / "slurm.sh")]
    process = subprocess.Popen(script, cwd=tmp_path, env=os.environ | slurm | found)
    while not (tmp_path / "called").exists():
        assert process.poll() is None, "it ended before it called srun"
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=20) == 143
    called = (tmp_path / "called").read_text()
    assert "--address node1:6379 --min-nodes 2" in called
    assert f"pretrain --gpus 16 --name base --workspace {tmp_path}/mfdiff-workspace" in called


def test_address_of_a_cluster_is_that_of_its_head(tmp_path: Path) -> None:
    assert head_address(CLUSTERS / "on-prem.yaml") == "192.0.2.10:6379"
    other = tmp_path / "other.yaml"
    other.write_text((CLUSTERS / "local.yaml").read_text().replace("--port=6379", "--port=6400"))
    assert head_address(other) == "127.0.0.1:6400"


def test_cluster_that_does_not_run_is_named_with_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "mine.yaml"
    file.write_text((CLUSTERS / "local.yaml").read_text().replace("--port=6379", "--port=9"))
    with pytest.raises(ResourceError, match=r"no Ray answers at 127\.0\.0\.1:9 .*`ray up .*mine"):
        use_cluster(file)
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.parametrize("name", ["kuberay.yaml", "slurm.sh"])
def test_file_for_another_launcher_is_refused_with_a_word(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no `ray up` file; its header says how"):
        load_cluster(CLUSTERS / name)


def test_missing_cluster_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such cluster file"):
        load_cluster(Path("nowhere.yaml"))
