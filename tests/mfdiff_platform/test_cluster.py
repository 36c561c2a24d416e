from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mfdiff_core.data.manifest import load_manifest
from mfdiff_core.errors import DataError
from mfdiff_platform.cli import run
from mfdiff_platform.cluster import (
    Cluster,
    Resources,
    as_completed,
    connect,
    package_roots,
    prepare_environment,
    versions,
)
from mfdiff_platform.dashboard import describe
from mfdiff_platform.errors import ResourceError
from mfdiff_platform.nodes import _ask_each, report_nodes

NOWHERE = "from mfdiff_platform.cluster import connect\nwith connect(): pass"


def test_resources_read_as_people_say_them() -> None:
    assert str(Resources(cpus=1)) == "1 CPU"
    assert str(Resources(cpus=8, gpus=1)) == "8 CPUs and 1 GPU"
    assert str(Resources(cpus=1, gpus=0.5)) == "1 CPU and 0.5 GPUs"


@pytest.mark.ray
def test_workers_import_both_packages_from_where_the_driver_does(ray_cluster: Cluster) -> None:
    import ray

    assert ray.get(ray.remote(package_roots).remote()) == package_roots()


@pytest.mark.ray
def test_workers_see_the_standard_library_s_platform(ray_cluster: Cluster) -> None:
    import ray

    assert ray.get(ray.remote(platform.system).remote()) == platform.system()


@pytest.mark.ray
def test_workers_write_files_as_readable_as_the_driver_s(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    import ray

    ray.get(ray.remote(Path.touch).remote(tmp_path / "theirs"))
    (tmp_path / "ours").touch()
    assert (tmp_path / "theirs").stat().st_mode == (tmp_path / "ours").stat().st_mode


@pytest.mark.ray
def test_results_come_as_they_are_ready(ray_cluster: Cluster) -> None:
    import ray

    work = ray.remote(num_cpus=0.1)(_work)
    results = as_completed([work.remote(60), work.remote(0)])
    assert next(results) == 0
    results.close()


@pytest.mark.ray
def test_fault_of_a_task_is_raised_in_its_own_words_and_ends_the_others(
    ray_cluster: Cluster,
) -> None:
    import ray

    others = [ray.remote(num_cpus=0.1)(_work).remote(600) for _ in range(2)]
    with pytest.raises(DataError) as fault:
        list(as_completed([*others, ray.remote(load_manifest).remote(Path("/nowhere"))]))
    assert type(fault.value) is DataError
    assert str(fault.value).startswith("/nowhere: no dataset")
    for other in others:
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(other, timeout=120)


def _work(seconds: float) -> float:
    """Something that, like a simulation, returns to Python now and then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
    return seconds


def _deaf(note: Path) -> None:
    """As a worker of a command begun with `nohup` or `&`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note.write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.ray
def test_task_that_is_deaf_to_interrupts_is_ended_too(ray_cluster: Cluster, tmp_path: Path) -> None:
    import ray

    note = tmp_path / "pid"
    tasks = [ray.remote(_work).remote(0), ray.remote(_deaf).remote(note)]
    results = as_completed(tasks)
    assert next(results) == 0
    until = time.monotonic() + 60
    while not (note.is_file() and note.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    worker = psutil.Process(int(note.read_text()))
    results.close()
    worker.wait(60)


@pytest.mark.ray
def test_worker_that_dies_is_said_in_one_sentence(ray_cluster: Cluster) -> None:
    import ray

    task = ray.remote(max_retries=0)(lambda: os._exit(1)).remote()
    with pytest.raises(ResourceError, match=r"Ray lost a task .*same command again") as caught:
        list(as_completed([task]))
    assert "\n" not in str(caught.value)


def test_block_inside_another_shares_its_cluster(ray_cluster: Cluster) -> None:
    import ray

    with connect(cpus=1) as inner:
        assert inner.total == ray_cluster.total == Resources(cpus=3)
    assert ray.is_initialized()


@pytest.mark.ray
def test_request_too_large_names_both_numbers_and_what_to_type(ray_cluster: Cluster) -> None:
    with pytest.raises(ResourceError) as fault:
        ray_cluster.require(Resources(cpus=8, gpus=8), "pretraining", "try --cpus 3")
    assert str(fault.value) == (
        "pretraining needs 8 CPUs and 8 GPUs, this cluster has 3 CPUs; try --cpus 3"
    )


@pytest.mark.ray
def test_request_that_fits_passes(ray_cluster: Cluster) -> None:
    ray_cluster.require(Resources(cpus=3), "pretraining", "")


def test_token_folder_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfdiff_platform.cluster import _keep_token_private

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir(mode=0o755)
    _keep_token_private()
    assert (tmp_path / ".ray").stat().st_mode & 0o777 == 0o700


def test_cluster_that_does_not_answer_is_named_with_what_to_do() -> None:
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:9"}
    found = subprocess.run(
        [sys.executable, "-c", NOWHERE], env=environment, capture_output=True, text=True
    )
    assert "ResourceError: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9" in found.stderr
    assert "unset RAY_ADDRESS" in found.stderr


def test_ray_that_cannot_start_here_is_told_in_a_sentence(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)  # no socket has room for such a path
    long.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    found = subprocess.run(
        [sys.executable, "-c", NOWHERE],
        env=environment | {"RAY_TMPDIR": str(long)},
        capture_output=True,
        text=True,
    )
    assert "ResourceError: Ray did not start on this machine (" in found.stderr


def test_what_fits_is_compared_part_by_part() -> None:
    assert Resources(cpus=2, gpus=1).holds(Resources(cpus=2, gpus=1))
    assert not Resources(cpus=8).holds(Resources(cpus=1, gpus=1))
    assert not Resources(cpus=1, gpus=8).holds(Resources(cpus=2, gpus=1))


@pytest.mark.ray
def test_cluster_whose_cpus_are_taken_is_told_apart_from_one_that_is_too_small(
    ray_cluster: Cluster,
) -> None:
    import ray

    taken = ray.remote(num_cpus=3)(_work).remote(30)
    while ray_cluster.free.holds(Resources(cpus=1)):
        time.sleep(0.05)
    try:
        with pytest.raises(ResourceError, match=r"of 3 CPUs only 0 CPUs are free; .* --wait"):
            ray_cluster.obtain(Resources(cpus=2), "pretraining", "try --cpus 1", wait=False)
    finally:
        ray.cancel(taken, force=True)
    started = time.monotonic()
    ray_cluster.obtain(Resources(cpus=2), "pretraining", "", wait=True)
    assert time.monotonic() - started < 10


@pytest.mark.ray
def test_every_node_is_reported_with_resources_and_versions(ray_cluster: Cluster) -> None:
    (report,) = report_nodes()
    assert report.fits
    assert (report.cpus, report.gpus) == (3, 0)
    assert report.versions == versions()


@pytest.mark.ray
def test_node_that_does_not_answer_says_why(ray_cluster: Cluster) -> None:
    import ray

    (answer,) = _ask_each(ray.nodes(), 8.0, load_manifest, Path("/nowhere"))
    assert isinstance(answer, DataError)


@pytest.mark.ray
def test_cluster_check_ends_well_where_all_nodes_are_alike(
    ray_cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cluster", "check"]) == 0
    told = capsys.readouterr().out
    assert "CPUs  GPUs  python" in told
    assert "1 node: 3 CPUs; dashboard http://127.0.0.1" in told


@pytest.mark.ray
def test_dashboard_of_the_ray_that_runs_is_printed(
    ray_cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["dashboard", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["url"] == ray_cluster.dashboard


def test_dashboard_elsewhere_comes_with_a_tunnel_and_the_token_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("secret")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    found = describe("http://127.0.0.1:8265", "192.0.2.10")
    assert any("ssh -L 8265:127.0.0.1:8265 192.0.2.10" in hint for hint in found.hints)
    assert found.token_file == str(tmp_path / "token")
    assert "secret" not in " ".join(found.hints)
    assert "ssh" not in " ".join(describe("http://127.0.0.1:8265", "127.0.0.1").hints)


def test_joining_a_cluster_uses_the_token_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "unset below")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    prepare_environment(joining=True)
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / "token").write_text("secret")
    prepare_environment(joining=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_machine_is_counted_without_starting_ray() -> None:
    program = (
        "from mfdiff_platform.cluster import is_connected, machine\n"
        "assert machine().cpus >= 1 and not is_connected()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
