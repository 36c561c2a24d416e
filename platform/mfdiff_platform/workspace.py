"""The folder that holds everything a user's commands write."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mfdiff_platform.names import check_name

ENVIRONMENT = "MFDIFF_WORKSPACE"
DEFAULT = "mfdiff-workspace"


@dataclass(frozen=True)
class Workspace:
    """Where things are below the workspace; ``root`` is absolute."""

    root: Path

    def dataset(self, domain: str) -> Path:
        """Folder of a domain's slices."""
        return self.root / "data" / check_name("domain", domain)

    def pretraining(self, name: str) -> Path:
        """Folder of one pretraining run: checkpoints, events and its bundle."""
        return self.root / "pretrained" / check_name("pretraining run", name)

    def study(self, name: str) -> Path:
        """Folder of one study: config, ledger, trials and report."""
        return self.root / "studies" / check_name("study", name)

    def comparison(self, name: str) -> Path:
        """Folder of one comparison, or of what comparisons share."""
        return self.root / "comparisons" / check_name("comparison", name)

    def picture(self, name: str) -> Path:
        """A picture made for the user."""
        return self.root / "pictures" / name


def open_workspace(path: Path | None) -> Workspace:
    """The workspace at ``path``, else ``$MFDIFF_WORKSPACE``, else ``./mfdiff-workspace``."""
    root = path or Path(os.environ.get(ENVIRONMENT) or DEFAULT)
    root = root.expanduser().absolute()
    root.mkdir(parents=True, exist_ok=True)
    return Workspace(root)
