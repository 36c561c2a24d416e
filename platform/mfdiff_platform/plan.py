"""From what a user types to a study request: find data and weights, and check that they fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.data.check import open_sound_dataset
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.data.facts import intensity_of
from mfdiff_core.data.manifest import MANIFEST
from mfdiff_core.errors import ConfigError
from mfdiff_core.training.step import Precision
from mfdiff_platform.narrow_space import narrowed
from mfdiff_platform.objective import read_objectives
from mfdiff_platform.preflight import check_image_size
from mfdiff_platform.pretrain_worker import BUNDLE
from mfdiff_platform.progress import say
from mfdiff_platform.recipe_file import RecipeFile, read_recipe
from mfdiff_platform.search_parameter import Parameter
from mfdiff_platform.search_space import SearchSpace, load, parse, resolve
from mfdiff_platform.study import SamplerName, SchedulerName, StudyRequest
from mfdiff_platform.workspace import Workspace

VOXEL_TOLERANCE = 0.1
"""Relative difference of voxel sizes from which a network sees structures of another size."""


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
        recipe_file: a single recipe instead of a space; its seed, setting, metrics and so on win.
        warm_start: study whose best points are tried first.
        metrics, modes: what is optimised, see `StudyRequest`.
        with_single_stage, sampler, scheduler, validations, validation_slices, precision, seed:
            see `StudyRequest`.
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
    validations: int = 18
    validation_slices: int | None = None
    precision: Precision = "fp32"
    seed: int = 0
    recipe_file: Path | None = None
    warm_start: str = ""
    metrics: tuple[str, ...] = ("psnr",)
    modes: tuple[str, ...] = ()


def plan_study(workspace: Workspace, plan: StudyPlan) -> StudyRequest:
    """Resolve a plan to a request.

    Raises:
        ConfigError: no pretrained model, or one that does not fit the slices; a recipe needs
            phantom slices that are not there; a metric is unknown.
        DataError: no dataset, or a damaged one.
    """
    file = read_recipe(plan.recipe_file) if plan.recipe_file else None
    plan = _as_in_file(plan, file) if file else plan
    data = (plan.data or workspace.dataset(plan.domain)).absolute()
    dataset = open_sound_dataset(data)
    held_out = dataset.part("validation", plan.setting or None)
    pretrained = _pretrained(workspace, plan)
    check_image_size(dataset, pretrained.config)
    if pretrained.config.system == "fb-sem":
        raise ConfigError("fb-sem is trained on phantoms alone: adapt another --model")
    _check_voxels(dataset, held_out.infos[0].voxel_mm, pretrained)
    check_intensity(dataset, pretrained)
    _check_metrics(plan, {info.setting for info in held_out.infos})
    space = parse(file.space()) if file else load(resolve(plan.domain, plan.space_file))
    space = narrowed(space, pretrained.config)
    phantom = (plan.phantom or workspace.dataset("phantom")).absolute()
    has_phantom = (phantom / MANIFEST).is_file()
    if _needs_phantom(space, plan):
        _check_phantom(phantom, pretrained)
    request = StudyRequest(
        name=plan.name or plan.domain,
        domain=plan.domain,
        data=str(data),
        data_fingerprint=dataset.manifest.fingerprint,
        phantom=str(phantom) if has_phantom else "",
        phantom_fingerprint=open_dataset(phantom).manifest.fingerprint if has_phantom else "",
        pretrained=str(pretrained.folder.absolute()),
        pretrained_sha256=pretrained.provenance.sha256,
        setting=plan.setting,
        space=space.text,
        with_single_stage=plan.with_single_stage,
        seed=plan.seed,
        sampler=plan.sampler,
        scheduler=plan.scheduler,
        validations=plan.validations,
        validation_slices=plan.validation_slices,
        precision=plan.precision,
        metrics=plan.metrics,
        modes=plan.modes,
        warm_start=plan.warm_start,
    )
    for what in file.differences(request) if file else ():
        say(f"{plan.recipe_file}: {what} differ from when the recipe was found; so will the result")
    return request


def _as_in_file(plan: StudyPlan, file: RecipeFile) -> StudyPlan:
    """The plan with all that decides what comes out of the recipe."""
    if plan.space_file or plan.warm_start:
        raise ConfigError("--recipe searches nothing: leave --space and --warm-start out")
    return replace(
        plan,
        seed=file.seed,
        validations=file.validations,
        validation_slices=file.validation_slices,
        precision=file.precision,
        metrics=file.metrics,
        modes=file.modes,
        setting=file.setting,
    )


def _check_voxels(dataset: Dataset, voxel_mm: float, pretrained: Bundle) -> None:
    known = pretrained.provenance.voxel_mm
    if abs(voxel_mm / known - 1) > VOXEL_TOLERANCE:
        raise ConfigError(
            f"{dataset.folder}: voxels of {voxel_mm:g} mm, the model was pretrained on"
            f" {known:g} mm; bring the slices to that size, or pretrain at theirs"
        )


def check_intensity(dataset: Dataset, pretrained: Bundle) -> None:
    """Refuse slices divided by something else than those that the model knows.

    Raises:
        ConfigError: they are.
    """
    have = intensity_of(dataset.manifest.facts)
    known = intensity_of(pretrained.provenance.data_facts)
    if have != known:
        raise ConfigError(
            f"{dataset.folder}: slices of intensity {have}, the model was pretrained on {known};"
            " make the dataset in that one, or pretrain in its own"
        )


def _check_metrics(plan: StudyPlan, settings: set[str]) -> None:
    read_objectives(plan.metrics, plan.modes)
    for metric in plan.metrics:
        setting, _, name = metric.rpartition("/")
        alone = len(settings) < 2 or name in ("bias", "slice_seconds")
        if setting and (setting not in settings or alone):
            raise ConfigError(
                f"--metric {metric}: validation has no such figure; its settings are"
                f" {', '.join(sorted(settings))}"
            )


def _needs_phantom(space: SearchSpace, plan: StudyPlan) -> bool:
    """Whether recipes of the search mix phantom slices in."""
    recipes = [r.strategy == "single_stage" or r.replay > 0 for r in space.references().values()]
    return plan.with_single_stage or any(recipes) or any(map(_mixes, space.parameters))


def _check_phantom(phantom: Path, pretrained: Bundle) -> None:
    """Refuse phantom slices that are not there or do not fit, before any recipe is trained."""
    if not (phantom / MANIFEST).is_file():
        raise ConfigError(
            f"{phantom}: no phantom slices, which recipes of this search mix in (replay,"
            " single_stage); run `mfdiff-platform simulate --domain phantom`, or give a --space"
            " without them"
        )
    dataset = open_sound_dataset(phantom)
    check_image_size(dataset, pretrained.config)
    check_intensity(dataset, pretrained)


def _mixes(parameter: Parameter) -> bool:
    values = parameter.values.examples
    if parameter.name == "strategy":
        return "single_stage" in values
    return parameter.name == "replay" and any(value != 0 for value in values)


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
