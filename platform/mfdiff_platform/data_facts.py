"""What a model card says of the data behind a model: slices, settings, tracer, dose, origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.errors import DataError

UNKNOWN = "not on record"


def data_facts(folder: Path, setting: str = "") -> str:
    """Subjects, tracer, dose and origin of a dataset, as far as it tells; all settings or one."""
    try:
        dataset = open_dataset(folder)
    except DataError:
        return "The dataset is not at hand; see its fingerprint."
    manifest = dataset.manifest
    used = setting or ", ".join(manifest.settings)
    return (
        f"{manifest.rows} slices of {len(manifest.subjects)} subjects, {manifest.image_size} "
        f"pixels wide; settings used: {used}. Tracer: {_tracer(manifest.origin)}. Injected dose: "
        f"{_dose(dataset)}. Origin: {manifest.origin.get('kind', UNKNOWN)}."
    )


def _tracer(origin: dict[str, Any]) -> str:
    if origin.get("kind") == "simulation":
        return "FDG, simulated"
    people = origin.get("subjects", {}).values()
    sessions = [session for person in people for session in person["sessions"]]
    return ", ".join(sorted({session.get("tracer") or UNKNOWN for session in sessions})) or UNKNOWN


def _dose(dataset: Dataset) -> str:
    doses = np.array([info.dose_mbq for shard in dataset.shards for info in shard.infos])
    known = doses[np.isfinite(doses)]
    if len(known) == 0:
        return UNKNOWN
    low, high = known.min(), known.max()
    told = f"{low:.0f} MBq" if high - low < 1 else f"{low:.0f} to {high:.0f} MBq"
    return told if len(known) == len(doses) else f"{told}, {UNKNOWN} for some slices"
