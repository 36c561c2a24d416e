"""A film larger than any memory goes in frame by frame."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ingest_memory import LIMIT_MB, ingest, write_set


@pytest.mark.slow
def test_film_of_21_gb_is_taken_in_with_less_than_two(tmp_path: Path) -> None:
    write_set(tmp_path / "set", frames=4)
    result = ingest(tmp_path, 4, ["--no-register"])
    assert result["film_gb"] > 21
    assert result["peak_rss_mb"] < LIMIT_MB
