"""Tables of studies as MLflow shows them at first: the columns by which one chooses.

MLflow keeps a shared view as JSON in a tag of the experiment; a link with its key opens it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mfdiff_platform.names import check_name
from mfdiff_platform.tracking import KEY_TAG

if TYPE_CHECKING:
    from mfdiff_platform.tracking import TrackingStore

OVERVIEW = "mfdiff"
_NEWEST = 5
_TAG = "mlflow.sharedViewState."
STUDY_COLUMNS = ("state", "domain", "strategy", "freeze", "best_psnr", "gain_over_paper_db")
PRETRAINING_COLUMNS = ("state", "domain", "system", "best_psnr", "batch", "workers")


def share_views(
    store: TrackingStore,
    experiment: str,
    study: str = "",
    columns: Sequence[str] = STUDY_COLUMNS,
) -> None:
    """Set the view of all runs, and the one of the trials of ``study``; ``columns`` are tags."""
    experiment_id = store.get_or_create_experiment(experiment)
    store.client.set_experiment_tag(experiment_id, _TAG + OVERVIEW, _view(columns))
    if study:
        # Sorted by a metric, trials stand in the open instead of folded into their study.
        wanted = f"tags.kind = 'trial' AND tags.study = '{check_name('study', study)}'"
        store.client.set_experiment_tag(
            experiment_id, _TAG + study_view(study), _view(columns, wanted, "metrics.`best/psnr`")
        )


def newest_studies(store: TrackingStore, experiment: str) -> list[str]:
    """Names of the studies that began last and have a view, newest first."""
    experiment_id = store.get_or_create_experiment(experiment)
    shared = set(store.client.get_experiment(experiment_id).tags)
    runs = store.client.search_runs([experiment_id], "tags.kind = 'study'", max_results=_NEWEST)
    names = [str(run.data.tags[KEY_TAG]) for run in runs]
    return [name for name in names if _TAG + study_view(name) in shared]


def study_view(study: str) -> str:
    """Key of the view of one study."""
    return f"{OVERVIEW}-{study}"


def _view(tags: Sequence[str], wanted: str = "", order: str = "attributes.start_time") -> str:
    columns = [f"tags.`{name}`" for name in tags] + ["attributes.`Description`"]
    values = {"selectedColumns": columns, "searchFilter": wanted, "orderByKey": order}
    return json.dumps(values | {"orderByAsc": False})
