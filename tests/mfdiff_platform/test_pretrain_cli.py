"""`pretrain` as it is typed: what it refuses, how fast, and what it says it would do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfdiff_core.config import override
from mfdiff_core.errors import ConfigError
from mfdiff_core.model import preset
from mfdiff_platform.cli import run
from mfdiff_platform.interrupt import STOP, StopFile, StopRequest, Terminated, sigterm_raises
from mfdiff_platform.pretrain import PretrainRequest, unused_name
from mfdiff_platform.pretrain_request import fast_sampler, share_batch, train_config
from mfdiff_platform.store_address import URI_VARIABLE
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.train_group import GroupDied, run_group
from mfdiff_platform.workers import Workers
from mfdiff_platform.workspace import Workspace

COMMAND = "import sys; from mfdiff_platform.cli import run; sys.exit(run(sys.argv[1:]))"
SMALL = ["--preset", "tiny", "--set", "model.network.patch_size=2"]


@pytest.fixture
def site(store: TrackingStore, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose phantom slices are 32 pixels wide, and no cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (store.workspace / "data").mkdir()
    (store.workspace / "data" / "phantom").symlink_to(dataset_folder)
    return store.workspace


def ended(site: Path, *arguments: str, **environment: str) -> tuple[int, str, float]:
    """Exit code, last line on stderr and seconds of a command in a fresh process."""
    command = [sys.executable, "-c", COMMAND, *arguments, "--workspace", str(site)]
    started = time.monotonic()
    found = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in found.stderr
    return found.returncode, found.stderr.splitlines()[-1], time.monotonic() - started


def test_more_gpus_than_the_machine_has_are_refused_in_seconds_with_numbers_and_a_way_out(
    site: Path,
) -> None:
    code, told, seconds = ended(site, "pretrain", "--gpus", "800", *SMALL)
    assert code == 3
    assert told.startswith("Error: pretraining with 800 workers needs 800 CPUs and 800 GPUs, this")
    assert "; try --" in told
    assert seconds < 10
    assert not (site / "pretrained").exists()


def test_what_this_machine_lacks_is_refused_before_torch_is_imported() -> None:
    program = (
        "import sys\n"
        "from mfdiff_platform.cli import run\n"
        "code = run(['pretrain', '--gpus', '800'])\n"
        "sys.exit(code + 10 * ('torch' in sys.modules))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 3


def test_mlflow_that_is_away_ends_it_with_7_before_ray_is_started(site: Path) -> None:
    away = {URI_VARIABLE: "http://127.0.0.1:9"}
    code, told, seconds = ended(site, "pretrain", "--cpus", "1", *SMALL, **away)
    assert code == 7
    assert "http://127.0.0.1:9 cannot be used" in told
    assert seconds < 15
    assert not (site / "pretrained").exists()


def test_dry_run_says_what_would_happen_and_leaves_nothing(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "--cpus", "1", "--dry-run", "--workspace", str(site), *SMALL]
    assert run(command) == 0
    told = capsys.readouterr().out
    assert "tiny starts" in told
    assert "4 = 1 worker x 4 slices" in told
    assert "12 slices to train on, 4 held out" in told
    assert run([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["step"], values["slices"]) == ("new", 0, [12, 4])
    assert not (site / "pretrained").exists()


def test_original_settings_are_those_of_the_systems_authors(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--cpus", "1", "--dry-run", "--preset", "tiny", "--workspace", str(site)]
    assert run(["pretrain", "--model", "cncl", "--original-settings", *common]) == 0
    told = capsys.readouterr().out
    assert "cncl-tiny-original starts" in told
    assert "2 = 1 worker x 2 slices" in told
    assert "2e-05" in told
    assert f"{300 * 12 // 2}, a checkpoint" in told
    assert run(["pretrain", "--original-settings", *common]) == 2
    assert "mfdiff is the paper's own" in capsys.readouterr().err


def test_dry_run_fails_as_the_run_would(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "--cpus", "1", "--dry-run", "--workspace", str(site)]
    assert run([*command, "--preset", "quick"]) == 2
    assert "slices of 32x32 pixels, the model takes 128x128" in capsys.readouterr().err


def test_restart_takes_the_first_name_that_is_free(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    assert unused_name(space, "base") == "base"
    for name in ("base", "base-2"):
        space.pretraining(name).mkdir(parents=True)
    assert unused_name(space, "base") == "base-3"


def request(**changes: object) -> PretrainRequest:
    return override(PretrainRequest(name="run", data="/data", model=preset("tiny")), changes)


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "told"),
    [
        (4, None, 1, "4 = 1 worker x 4"),
        (4, None, 2, "4 = 2 workers x 2"),
        (8, None, 8, "8 = 8 workers x 1"),
        (16, 2, 1, "16 = 1 worker x 2 x 8 passes"),
        (16, 2, 4, "16 = 4 workers x 2 x 2 passes"),
        (12, 5, 1, "12 = 1 worker x 4 x 3 passes"),
    ],
)
def test_global_batch_is_kept_and_the_share_follows_the_workers(
    batch: int, micro: int | None, workers: int, told: str
) -> None:
    share = share_batch(request(batch_size=batch, micro_batch=micro), workers)
    assert str(share) == told
    assert share.workers * share.micro * share.accumulate == batch


def test_passes_asked_for_by_hand_count_in_the_share() -> None:
    asked = request(batch_size=8, **{"train.accumulate": 4})
    assert str(share_batch(asked, 1)) == "8 = 1 worker x 2 x 4 passes"
    assert str(share_batch(asked, 4)) == "8 = 4 workers x 1 x 2 passes"
    assert train_config(asked, 4).accumulate == 2


def test_batch_that_the_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size 4 cannot be shared by 3 workers"):
        share_batch(request(batch_size=4), 3)


def test_validation_uses_a_fast_sampler_whatever_the_model_s_own_is() -> None:
    assert fast_sampler(preset("base")) == preset("base").sampler
    slow = fast_sampler(preset("paper"))
    assert (slow.name, slow.num_evaluations) == ("dpmpp2m", 10)


def signal_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def test_sigterm_raises_in_the_block_and_only_there() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_raises():
        signal_self(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("number", "fault"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_first_signal_asks_and_the_second_insists(
    tmp_path: Path, number: signal.Signals, fault: type[BaseException]
) -> None:
    (tmp_path / STOP).touch()
    request, asked = StopRequest(tmp_path), StopFile(tmp_path)
    assert not asked()  # the file of an earlier stop is gone
    with request.on_signals():
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        assert asked()
        assert request.seconds > 0
        assert type(request.fault()) is fault
        with pytest.raises(fault):
            signal_self(number)


@pytest.mark.parametrize(
    ("number", "fault"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_workers_that_die_while_they_are_to_stop_are_not_started_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    fault: type[BaseException],
) -> None:
    started: list[str] = []

    def die_with_the_command(folder: Path, *_: object) -> bool:
        """What a signal to the whole process group does."""
        started.append(folder.name)
        os.kill(os.getpid(), number)
        while not (folder / STOP).exists():
            time.sleep(0.01)
        raise GroupDied("its process or its node is gone")

    monkeypatch.setattr("mfdiff_platform.train_group.fit_group", die_with_the_command)
    with pytest.raises(fault) as raised:
        run_group(tmp_path, lambda _: True, {}, Workers(1, on_gpu=False), lambda: None, "toy")
    assert type(raised.value) is fault
    assert started == [tmp_path.name]
