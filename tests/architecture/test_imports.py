"""Who imports what, and when."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mfdiff_platform.cli import VERBS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "mlflow", "optuna", "matplotlib", "scipy", "pandas", "pyarrow")
FOREIGN = ("ray", "mlflow", "optuna", "click", "yaml", "rich", "pydantic", "mfdiff_platform")
CORE_NEEDS = ("torch", "numpy", "scipy", "pyarrow", "scikit-image")
LAZY = ("nibabel", "matplotlib", "SimpleITK", "pydicom", "safetensors")

HELP = """
import io, json, sys
from contextlib import redirect_stdout
from mfdiff_platform.cli import run
loaded = {}
for arguments in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as page:
        assert run([*arguments, "--help"]) == 0, arguments
    assert page.getvalue().startswith("Usage: mfdiff-platform"), arguments
    loaded[" ".join(arguments)] = [name for name in sys.argv[2:] if name in sys.modules]
print(json.dumps(loaded))
"""

BLOCKED = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import mfdiff_core
names = [m.name for m in pkgutil.walk_packages(mfdiff_core.__path__, "mfdiff_core.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


ALONE = """
import importlib.metadata as metadata, re, sys

def required(names):
    found = set()
    while names:
        name = re.sub("[-_.]+", "-", names.pop()).lower()
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        if name not in found:
            found.add(name)
            names += [re.match("[A-Za-z0-9._-]+", r)[0] for r in requires if "extra ==" not in r]
    return found

kept = required(sys.argv[1:])
homes = metadata.packages_distributions()
blocked = {top for top, owners in homes.items()
           if not kept & {re.sub("[-_.]+", "-", owner).lower() for owner in owners}}
blocked -= {"mfdiff_core"}

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        hidden = name.partition(".")[0] in blocked
        return None if hidden else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Without, sys.meta_path)
import torch
from mfdiff_core.config import override
from mfdiff_core.data.batches import Batch
from mfdiff_core.evaluation.metrics import evaluate_slices
from mfdiff_core.model import build_model, preset
from mfdiff_core.training.loop import TrainConfig, train
from mfdiff_core.training.strategies import Recipe, start

changes = {"network.unet.channels": 8, "network.unet.norm_groups": 4, "network.fusion.channels": 8}
config = override(preset("tiny"), changes)
model = build_model(config, 0)
state = start(model, Recipe(strategy="internal", iterations=4, batch_size=2), None)

def batch(step):
    images = torch.rand(3, 2, 1, 32, 32, generator=torch.Generator().manual_seed(step))
    return Batch(*images)

for event in train(state, batch, TrainConfig(iterations=4)):
    pass
assert state.step == 4
x_p, x_m, x_s = batch(9).images
restored = model.eval().restore(x_p, x_m, ["a", "b"]).x_s
assert evaluate_slices(restored[:, 0], x_s[:, 0]).mean().psnr > 0
print(*sorted(top for top in {name.partition(".")[0] for name in sys.modules} if top in homes))
"""


def python(program: str, *arguments: str) -> str:
    """stdout of ``python -c``, run from the repository's root."""
    command = [sys.executable, "-c", program, *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_standard_platform_module_works_from_the_root() -> None:
    assert python("import platform; print(platform.system())") == python(
        "import os; print(os.uname().sysname)"
    )


def test_core_imports_without_anything_of_the_platform_or_of_files_and_pictures() -> None:
    assert int(python(BLOCKED, *FOREIGN, *LAZY)) > 30


def test_core_trains_and_restores_with_five_packages_alone() -> None:
    """Whatever else is installed here is out of reach, what the five require excepted."""
    used = python(ALONE, *CORE_NEEDS).split()
    assert {"torch", "numpy"} <= set(used)
    assert not {"safetensors", "pandas", "ray", "pytest", "yaml", "mfdiff_platform"} & set(used)


def test_blocked_imports_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="is blocked"):
        python(BLOCKED, *FOREIGN, "torch")


def test_help_of_every_verb_loads_nothing_heavy() -> None:
    pages = [[], *([verb] for verb in VERBS), ["model", "list"], ["search-space", "show"]]
    pages += [[verb, form] for verb in ("ingest", "restore") for form in ("bids", "nifti", "dicom")]
    loaded = json.loads(python(HELP, json.dumps(pages), *HEAVY))
    assert len(loaded) == len(pages)
    assert not any(loaded.values()), loaded


def test_heavy_imports_would_be_noticed() -> None:
    program = f"import scipy\n{HELP}"
    assert json.loads(python(program, "[[]]", *HEAVY)) == {"": ["scipy"]}


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.is_file():
        pytest.skip("import-linter is not installed")
    found = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout
