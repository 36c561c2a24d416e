"""From what a user types to a study request: find data and weights, and check that they fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.data.dataset import open_dataset
from mfdiff_core.data.manifest import MANIFEST
from mfdiff_core.errors import ConfigError
from mfdiff_core.training.step import Precision
from mfdiff_platform.preflight import check_image_size
from mfdiff_platform.pretrain_worker import BUNDLE
from mfdiff_platform.search_space import load, resolve
from mfdiff_platform.study import SamplerName, SchedulerName, StudyRequest
from mfdiff_platform.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a user asks for; everything but the domain has a default.

    Attributes:
        domain: names dataset, search space and site model.
        name: name of the study, default the domain's.
        data: dataset folder, default the workspace's of that domain.
        phantom: dataset of the external stage, default the workspace's, if it is there.
        pretrained: bundle folder, default the workspace's newest pretraining of ``system``.
        system: the model to adapt, default mfdiff or what ``pretrained`` is.
        space_file: search space, default the domain's or the general one.
        setting: only slices of this setting.
        with_single_stage, sampler, scheduler, validations, precision, seed: see `StudyRequest`.
    """

    domain: str
    name: str = ""
    data: Path | None = None
    phantom: Path | None = None
    pretrained: Path | None = None
    system: str | None = None
    space_file: Path | None = None
    setting: str = ""
    with_single_stage: bool = False
    sampler: SamplerName = "tpe"
    scheduler: SchedulerName = "asha"
    validations: int = 5
    precision: Precision = "fp32"
    seed: int = 0


def plan_study(workspace: Workspace, plan: StudyPlan) -> StudyRequest:
    """Resolve a plan to a request.

    Raises:
        ConfigError: no pretrained model, or one that does not fit the slices.
        DataError: no dataset, or a damaged one.
    """
    data = (plan.data or workspace.dataset(plan.domain)).absolute()
    dataset = open_dataset(data)
    if plan.setting:
        dataset.part("validation", plan.setting)
    pretrained = _pretrained(workspace, plan)
    check_image_size(dataset, pretrained.config)
    space = load(resolve(plan.domain, plan.space_file))
    phantom = plan.phantom or workspace.dataset("phantom")
    return StudyRequest(
        name=plan.name or plan.domain,
        domain=plan.domain,
        data=str(data),
        data_fingerprint=dataset.manifest.fingerprint,
        phantom=str(phantom) if (phantom / MANIFEST).is_file() else "",
        pretrained=str(pretrained.folder.absolute()),
        pretrained_sha256=pretrained.provenance.sha256,
        setting=plan.setting,
        space=space.text,
        with_single_stage=plan.with_single_stage,
        seed=plan.seed,
        sampler=plan.sampler,
        scheduler=plan.scheduler,
        validations=plan.validations,
        precision=plan.precision,
    )


def _pretrained(workspace: Workspace, plan: StudyPlan) -> Bundle:
    if plan.pretrained is None:
        return newest_pretraining(workspace, plan.system or "mfdiff")
    bundle = load_bundle(plan.pretrained)
    if plan.system not in (None, bundle.config.system):
        raise ConfigError(
            f"{bundle.folder} is a {bundle.config.system} model, --model says {plan.system}"
        )
    return bundle


def newest_pretraining(workspace: Workspace, system: str = "mfdiff") -> Bundle:
    """The pretraining of a model that finished last.

    Raises:
        ConfigError: there is none.
    """
    folders = (workspace.root / "pretrained").glob(f"*/{BUNDLE}")
    latest_first = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
    for bundle in map(load_bundle, latest_first):
        if bundle.config.system == system:
            return bundle
    option = "" if system == "mfdiff" else f" --model {system}"
    raise ConfigError(
        f"no pretrained {system} model in {workspace.root}; run `mfdiff-platform pretrain{option}`"
        " first, or give --pretrained BUNDLE"
    )
