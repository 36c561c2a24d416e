"""A version of a site model as the registry knows it, and whether it may be champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mfdiff_platform.errors import GateError
from mfdiff_platform.model_files import DATA_TAG, WEIGHTS_TAG

PREFIX = "mfdiff-"
CANDIDATE, CHAMPION = "candidate", "champion"
GATES_TAG, RESULT_TAG = "gates", "gate_result"
"""Tags: the latest verdict in one line, and all of it as JSON."""
ADMITTED_TAG, OVERRIDE_TAG = "gate_admitted", "gate_override"
"""Tags: weights that the gates, or a person with a reason, have let through; and that reason."""
_OF_THIS_SITE = (GATES_TAG, RESULT_TAG, ADMITTED_TAG, OVERRIDE_TAG)


class ModelVersion(NamedTuple):
    """Which registered model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class SiteModel:
    """What the registry knows of a version."""

    id: ModelVersion
    aliases: tuple[str, ...]
    tags: dict[str, str]
    description: str
    run_id: str
    source: str
    created_ms: int


def site_model(version: Any, aliases: Mapping[str, Any]) -> SiteModel:
    """A version as MLflow describes it; ``aliases`` are those of all its siblings."""
    number = int(version.version)
    return SiteModel(
        id=ModelVersion(version.name, number),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == number)),
        tags=dict(version.tags),
        description=version.description or "",
        run_id=version.run_id or "",
        source=version.source,
        created_ms=version.creation_timestamp,
    )


def check_may_be_champion(model: SiteModel) -> None:
    """Refuse a version whose origin is unknown, or that the gates have not let through.

    Raises:
        GateError: says what is missing.
    """
    missing = [tag for tag in (WEIGHTS_TAG, DATA_TAG, RESULT_TAG) if not model.tags.get(tag)]
    if missing:
        raise GateError(f"{model.id} cannot be champion: it has no {', no '.join(missing)}")
    # A verdict later than the one that let it through, against a better rival, takes nothing away.
    if model.tags.get(ADMITTED_TAG) != model.tags[WEIGHTS_TAG]:
        raise GateError(f"{model.id} cannot be champion: gates {model.tags.get(GATES_TAG)}")


def travelling_tags(model: SiteModel) -> dict[str, str]:
    """Lineage of a version that goes to another site.

    What the gates said here is told, but it lets nobody through there.
    """
    told = model.tags.get(GATES_TAG)
    return arriving_tags(model.tags) | ({"gates_elsewhere": told} if told else {})


def arriving_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a version that comes from another site, whoever wrote its archive.

    Without those of MLflow and those by which gates let a version through: only gates of this site
    set them.
    """
    return {
        tag: str(value)
        for tag, value in tags.items()
        if tag not in _OF_THIS_SITE and not tag.startswith("mlflow.")
    }
