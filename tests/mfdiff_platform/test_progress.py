"""What a worker is at, told from one process to another through a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfdiff_platform import progress
from mfdiff_platform.progress import Post, posted, posting, task


@pytest.fixture
def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "POST_INTERVAL_S", 0.0)
    return tmp_path / "0.json"


def test_task_of_a_worker_is_posted_until_it_ends(
    post: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with posting(post), task("Training [M-UNet]", 40) as shown:
        assert posted(post) == Post("Training [M-UNet]", 0, 40)
        shown.update(7, "validation 30.1 dB")
        assert posted(post) == Post("Training [M-UNet]", 7, 40, "validation 30.1 dB")
    assert posted(post) is None
    assert capsys.readouterr().err == ""


def test_posts_are_no_more_frequent_than_anyone_reads(
    post: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "POST_INTERVAL_S", 60.0)
    with posting(post), task("Restoring", 3) as shown:
        shown.update(1)
        assert posted(post) == Post("Restoring", 0, 3)


def test_tasks_are_shown_again_after_the_block(
    post: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with posting(post):
        pass
    with task("Restoring", 3):
        assert not post.exists()
    assert "Restoring" in capsys.readouterr().err


def test_what_workers_are_at_stands_in_one_line_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    with task("Comparing", 2) as shown:
        shown.at_work([Post("Training A", 1, 4, "loss 0.1"), Post("Restoring by B", 2, 9)])
        shown.at_work([])
    *_, line, _, end = capsys.readouterr().err.splitlines()
    assert line.strip() == "Comparing: 0/2 Training A 1/4 loss 0.1; Restoring by B 2/9"
    assert "Training" not in end


def test_post_that_cannot_be_written_or_read_stops_no_work(post: Path) -> None:
    with posting(post.parent / "missing" / "0.json"), task("Restoring", 3) as shown:
        shown.update(1)
    post.write_text('{"title": "half a po')
    assert posted(post) is None
