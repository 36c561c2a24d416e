"""A benchmark's figures with what they depend on: commit, machine, command, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mfdiff_core.files import write_json


def write_result(path: Path, figures: Mapping[str, Any]) -> None:
    """Write ``figures`` and their circumstances to ``path`` as JSON."""
    names = ("torch", "numpy", "scipy", "pyarrow", "scikit-image")
    circumstances = {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *_arguments()]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "-s") else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {_processor()}",
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }
    write_json(path, {"figures": dict(figures), **circumstances})


def _arguments() -> list[str]:
    """The command's own; of absolute paths only the last part, the rest is this machine's."""
    return [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]


def _git(*arguments: str) -> str:
    """What git says; nothing on a machine that has none."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
