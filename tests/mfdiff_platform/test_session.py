"""Who is at work on a study, and how the last one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.errors import ConfigError
from mfdiff_platform.session import (
    MOST_CRASHES,
    SESSION,
    SearchScale,
    is_held,
    last_session,
    session,
)
from mfdiff_platform.study import Study, StudyRequest, claim_study

SCALE = SearchScale(trials=6)
MORE = SearchScale(trials=4, grow=True)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    fixed: dict[str, Any] = {
        "data": "",
        "data_fingerprint": "",
        "phantom": "",
        "pretrained": "",
        "setting": "",
    }
    space = "parameters: {iterations: {value: 30}, lr: {low: 0.001, high: 0.01}}"
    request = StudyRequest(name="s", domain="toy", pretrained_sha256="", space=space, **fixed)
    return claim_study(tmp_path / "w/studies/s", request)


def begin(study: Study, number: int) -> None:
    study.ledger.add({"recipe": {}, "reference": "", "distributions": {}}, number)


def state(study: Study) -> str:
    last = last_session(study)
    assert last is not None
    return last.state


def crash_in(study: Study) -> None:
    """Another process works on the study and is killed."""
    program = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from mfdiff_platform.session import SearchScale, session\n"
        "from mfdiff_platform.study import load_study\n"
        "with session(load_study(Path(sys.argv[1])), SearchScale(trials=6)):\n"
        "    print('in', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(study.folder), *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        assert is_held(study)
        os.kill(process.pid, signal.SIGKILL)


def test_session_says_how_it_ended(study: Study) -> None:
    with session(study, SCALE):
        assert state(study) == "running"
    assert state(study) == "finished"
    with pytest.raises(KeyboardInterrupt), session(study, SCALE):
        raise KeyboardInterrupt
    assert state(study) == "interrupted"
    with pytest.raises(RuntimeError), session(study, SCALE):
        raise RuntimeError
    assert state(study) == "failed"


def test_second_command_on_a_study_is_refused(study: Study) -> None:
    with (
        session(study, SCALE),
        pytest.raises(ConfigError, match="another command is at work"),
        session(study, SCALE),
    ):
        pass
    assert state(study) == "finished"


def test_killed_command_counts_as_crashed_and_its_trials_begin_again(study: Study) -> None:
    begin(study, 3)
    crash_in(study)
    assert state(study) == "crashed"
    with session(study, SCALE):
        assert (study.ledger[3].state, study.ledger[3].crashes) == ("running", 1)


def test_trial_that_runs_in_crash_after_crash_is_given_up(study: Study) -> None:
    begin(study, 3)
    study.ledger.update(3, crashes=MOST_CRASHES - 1)
    with session(study, SCALE):
        running = (study.folder / SESSION).read_bytes()
    (study.folder / SESSION).write_bytes(running)  # as a killed command leaves it
    with session(study, SCALE):
        record = study.ledger[3]
    assert record.state == "failed"
    assert f"{MOST_CRASHES} sessions that crashed" in record.reason


def test_interrupted_session_blames_nobody(study: Study) -> None:
    begin(study, 3)
    with pytest.raises(KeyboardInterrupt), session(study, SCALE):
        raise KeyboardInterrupt
    with session(study, SCALE):
        assert study.ledger[3].crashes == 0


def test_plus_adds_to_a_finished_study(study: Study) -> None:
    with session(study, SCALE):
        pass
    with session(study, MORE) as settled:
        assert settled.trials == 10
    with session(study, MORE) as settled:
        assert settled.trials == 14


def test_plus_that_was_cut_short_is_finished_and_not_added_twice(study: Study) -> None:
    with session(study, SCALE):
        pass
    with pytest.raises(KeyboardInterrupt), session(study, MORE):
        raise KeyboardInterrupt
    with session(study, MORE) as settled:
        assert settled.trials == 10


def test_plus_on_a_new_study_counts_from_the_references(study: Study) -> None:
    with session(study, MORE) as settled:
        assert settled.trials == 3 + 4


def test_lock_goes_with_its_process(study: Study) -> None:
    crash_in(study)
    until = time.monotonic() + 30
    while is_held(study) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_held(study)
