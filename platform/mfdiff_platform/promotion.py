"""From candidate to champion through the gates, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.data.dataset import Dataset, SliceSet, open_dataset
from mfdiff_core.data.manifest import MANIFEST, load_manifest
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_platform import gate_evidence as measure
from mfdiff_platform.durable import locked
from mfdiff_platform.errors import GateError
from mfdiff_platform.gates import GateLimits, Verdict, judge
from mfdiff_platform.model_files import DATA_TAG, WEIGHTS_TAG
from mfdiff_platform.promotion_log import Decision, PromotionLog
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.site_model import CANDIDATE, CHAMPION, PREFIX, SiteModel
from mfdiff_platform.study import REQUEST, load_study
from mfdiff_platform.workspace import Workspace

_LOCK = "promotions.run.lock"


@dataclass(frozen=True, kw_only=True)
class PromotionRequest:
    """What a user asks for.

    Attributes:
        domain: names the site model.
        limits: the gates.
        version: number of the version; None = the candidate.
        data: dataset folder; None = the one the model was made with, found by its fingerprint.
        override: why the model becomes champion even if a gate fails; "" = it does not.
    """

    domain: str
    limits: GateLimits
    version: int | None = None
    data: Path | None = None
    override: str = ""


@dataclass(frozen=True)
class Promotion:
    """How a request ended.

    Attributes:
        verdict: all gates.
        before, champion: champion before and after; "" for none.
        overridden: whether a failed gate was set aside.
    """

    verdict: Verdict
    before: str
    champion: str
    overridden: bool

    def require(self) -> None:
        """Raise for a refused model.

        Raises:
            GateError: names the gates that failed and their figures.
        """
        failed = self.verdict.failed
        if not failed or self.overridden:
            return
        told = "; ".join(f"{result.gate}: {result.told}" for result in failed)
        stays = f"{self.before} stays champion" if self.before else "there is no champion"
        raise GateError(
            f"{self.verdict.model} is not promoted, {stays}. Failed {told}. If there are good "
            "reasons to use it all the same, give them: --override REASON"
        )


def promote(workspace: Workspace, models: SiteModels, asked: PromotionRequest) -> Promotion:
    """Judge a version on the held-out test subjects; let it be champion if all gates pass.

    The verdict is stored with the version and logged whichever way it goes.

    Raises:
        ConfigError: no such version.
        DataError: its dataset is not there, or damaged.
        GateError: its weights or data are not on record; this cannot be overridden.
        TrackingError: MLflow is out of reach.
    """
    log = PromotionLog(workspace.root)
    with locked(workspace.root / _LOCK):
        which = f"@{CANDIDATE}" if asked.version is None else f"/{asked.version}"
        model = models.show(f"{PREFIX}{asked.domain}{which}")
        present = models.champion(asked.domain)
        before = str(present.id) if present else ""
        _require_identity(model, log, asked.domain, before)
        verdict = _judge(workspace, models, model, present, asked, log)
        overridden = bool(asked.override) and not verdict.passed
        models.record_verdict(model, verdict.to_dict(), asked.override if overridden else "")
        moves = verdict.passed or overridden
        champion = verdict.model if moves else before
        # Logged first: a move without a line would be worse than a line without its move.
        log.append(
            Decision(
                action="overridden" if overridden else "promoted" if moves else "refused",
                domain=asked.domain,
                model=verdict.model,
                before=before,
                champion=champion,
                summary=verdict.summary,
                reason=asked.override if overridden else "",
                weights_sha256=verdict.weights_sha256,
                data_fingerprint=verdict.data_fingerprint,
            )
        )
        if moves:
            models.set_alias(model.id, CHAMPION)
    return Promotion(verdict, before, champion, overridden)


def rollback(workspace: Workspace, models: SiteModels, domain: str, reason: str) -> Decision:
    """Make the champion before this one champion again; its gates have let it through once.

    Raises:
        ConfigError: there is no champion, or none before it.
        GateError: the earlier one may no longer be champion.
        TrackingError: MLflow is out of reach.
    """
    log = PromotionLog(workspace.root)
    with locked(workspace.root / _LOCK):
        present = models.champion(domain)
        before = str(present.id) if present else ""
        earlier = _before(log.champions(domain), before)
        if earlier is None:
            has = f"{before} is its first champion" if before else "it has no champion"
            raise ConfigError(f"{PREFIX}{domain}: nothing to roll back to, {has}")
        model = models.show(earlier)
        decision = Decision(
            action="rolled back",
            domain=domain,
            model=earlier,
            before=before,
            champion=earlier,
            summary=model.tags.get("gates", ""),
            reason=reason,
            weights_sha256=model.tags.get(WEIGHTS_TAG, ""),
            data_fingerprint=model.tags.get(DATA_TAG, ""),
        )
        log.append(decision)
        models.set_alias(model.id, CHAMPION)
    return decision


def held_out(workspace: Workspace, model: SiteModel, data: Path | None = None) -> SliceSet:
    """Test slices of the dataset that ``model`` was made with, of its setting.

    Args:
        workspace: where datasets and studies are looked for.
        model: the version; its tags have the fingerprint, the study and the setting.
        data: folder of that dataset, if it is elsewhere.

    Raises:
        DataError: no dataset with the model's fingerprint; says where it was looked for.
    """
    setting = model.tags.get("setting", "all")
    dataset = _dataset(workspace, model, data)
    return dataset.part("test", None if setting == "all" else setting)


def _judge(
    workspace: Workspace,
    models: SiteModels,
    model: SiteModel,
    present: SiteModel | None,
    asked: PromotionRequest,
    log: PromotionLog,
) -> Verdict:
    bundle = load_bundle(models.resolve(str(model.id)))
    test = held_out(workspace, model, asked.data)
    fingerprint = model.tags[DATA_TAG]
    looks = sum(d.data_fingerprint == fingerprint for d in log.decisions(asked.domain))
    restored = measure.restore_test(bundle, test)
    rival = present if present and present.id != model.id else None
    gain = None
    if rival is not None:
        other = measure.restore_test(load_bundle(models.resolve(str(rival.id))), test)
        gain = measure.psnr_gain(restored, other, test)
    biases = [abs(bias) for bias in measure.activity_biases(restored, test).values()]
    evidence = measure.Evidence(
        model=str(model.id),
        weights_sha256=model.tags[WEIGHTS_TAG],
        data_fingerprint=fingerprint,
        setting=model.tags.get("setting", "all"),
        subject_names=tuple(dict.fromkeys(info.subject for info in test.infos)),
        slices=len(test),
        champion=str(present.id) if present else "",
        missing_provenance=_missing(model, bundle),
        gain_over_lpet=measure.psnr_gain(restored, test.x_p[:, 0].numpy(), test),
        gain_over_champion=gain,
        activity_bias=(sum(biases) / len(biases), max(biases)),
        region_bias=measure.region_biases(restored, test),
        lesions=measure.lesion_summary(restored, test),
        notes=measure.notes_on(test, looks),
    )
    return judge(evidence, asked.limits)


def _require_identity(model: SiteModel, log: PromotionLog, domain: str, before: str) -> None:
    """Without the hash of its weights and of its data nobody knows what would be judged."""
    missing = [tag for tag in (WEIGHTS_TAG, DATA_TAG) if not model.tags.get(tag)]
    if not missing:
        return
    summary = f"failed provenance: no {', no '.join(missing)}"
    log.append(
        Decision(
            action="refused",
            domain=domain,
            model=str(model.id),
            before=before,
            champion=before,
            summary=summary,
        )
    )
    raise GateError(f"{model.id} cannot be champion, {summary}; this cannot be overridden")


def _missing(model: SiteModel, bundle: Bundle) -> tuple[str, ...]:
    """What the registry should know of a version and does not, or knows otherwise."""
    wanted = ["study", "trial", "strategy"]
    if bundle.provenance.parent:
        wanted.append("parent_bundle")
    missing = [tag for tag in wanted if not model.tags.get(tag)]
    known = {"data_fingerprint": bundle.provenance.data, "parent_bundle": bundle.provenance.parent}
    missing += [
        f"{tag} (the weights say another)"
        for tag, value in known.items()
        if model.tags.get(tag, value) != value
    ]
    return tuple(missing)


def _dataset(workspace: Workspace, model: SiteModel, data: Path | None) -> Dataset:
    wanted = model.tags.get(DATA_TAG, "")
    places = [data] if data else _places(workspace, model)
    for folder in places:
        if (folder / MANIFEST).is_file() and load_manifest(folder).fingerprint == wanted:
            return open_dataset(folder)
    looked = ", ".join(map(str, places))
    raise DataError(
        f"{model.id} was made with dataset {wanted[:16] or 'unknown'}, which is not in {looked}; "
        "give its folder: --data DIR"
    )


def _places(workspace: Workspace, model: SiteModel) -> list[Path]:
    domain = model.id.name.removeprefix(PREFIX)
    places = [workspace.dataset(domain)]
    study = model.tags.get("study")
    folder = workspace.study(study) if study else None
    if folder and (folder / REQUEST).is_file():
        places.append(Path(load_study(folder).request.data))
    return list(dict.fromkeys(places))


def _before(stack: list[str], present: str) -> str | None:
    """The champion before ``present``; the last known one when ``present`` is not on record."""
    if present in stack:
        below = stack[: len(stack) - 1 - stack[::-1].index(present)]
        return below[-1] if below else None
    return stack[-1] if stack else None
