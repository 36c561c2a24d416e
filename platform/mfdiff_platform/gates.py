"""The gates before champion: limits from a YAML file, figures from held-out subjects, a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mfdiff_core.config import from_dict
from mfdiff_core.errors import ConfigError
from mfdiff_core.files import sha256_text
from mfdiff_platform.gate_evidence import Evidence
from mfdiff_platform.names import check_name
from mfdiff_platform.yaml_file import parse_yaml

_FOLDER, _DEFAULT = "gates", "default"

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Numbers that are 0 or more."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LpetLimits(_Limits):
    """Least PSNR gain over the LPET, and what its interval's lower end must exceed, in dB."""

    min_db: float = 1.0
    lower_bound_db: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ChampionLimits(_Limits):
    """Least PSNR gain over the present champion in dB; at 0 any gain will do, a tie will not."""

    min_db: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BiasLimits(_Limits):
    """Largest relative error, 0.05 being 5 %."""

    max_bias: float


@dataclass(frozen=True, kw_only=True)
class LesionLimits(_Limits):
    """Largest shares of lost and of invented lesions; with fewer lesions nothing is judged."""

    max_lost_share: float = 0.2
    max_invented_share: float = 0.15
    min_lesions: int = 5


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """A gates file; None switches a gate off."""

    description: str = ""
    gain_over_lpet: LpetLimits | None = LpetLimits()
    gain_over_champion: ChampionLimits | None = ChampionLimits()
    activity: BiasLimits | None = BiasLimits(max_bias=0.02)
    regions: BiasLimits | None = BiasLimits(max_bias=0.05)
    lesions: LesionLimits | None = LesionLimits()


@dataclass(frozen=True)
class GateResult:
    """What one gate said.

    Attributes:
        gate: its name.
        state: passed, failed, or skipped with a reason.
        figure: what was measured, None if skipped.
        limit: what it was held against.
        told: both as a sentence.
    """

    gate: str
    state: State
    figure: float | None
    limit: float | None
    told: str


@dataclass(frozen=True)
class Verdict:
    """All gates of one model, as stored with its version."""

    model: str
    weights_sha256: str
    data_fingerprint: str
    setting: str
    subjects: int
    slices: int
    champion: str
    limits: dict[str, Any]
    limits_sha256: str
    results: tuple[GateResult, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> list[GateResult]:
        """Gates that refuse the model."""
        return [result for result in self.results if result.state == "failed"]

    @property
    def passed(self) -> bool:
        """Whether no gate refuses it."""
        return not self.failed

    @property
    def summary(self) -> str:
        """One line, for tables: ``passed (6 gates, 1 skipped)``."""
        judged = [result for result in self.results if result.state != "skipped"]
        skipped = len(self.results) - len(judged)
        also = f", {skipped} skipped" if skipped else ""
        if self.passed:
            return f"passed ({len(judged)} gates{also})"
        return f"failed {', '.join(r.gate for r in self.failed)} ({len(judged)} gates{also})"

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON, with the verdict in words."""
        return asdict(self) | {"passed": self.passed, "summary": self.summary}


def judge(evidence: Evidence, limits: GateLimits) -> Verdict:
    """Hold ``evidence`` against ``limits``; every gate is told, whatever the others say."""
    named = evidence.subject_names
    results = [
        _provenance(evidence),
        _unless_off("gain over LPET", limits.gain_over_lpet, lambda x: _over_lpet(evidence, x)),
        _unless_off(
            "gain over champion", limits.gain_over_champion, lambda x: _over_champion(evidence, x)
        ),
        _unless_off("activity", limits.activity, lambda x: _activity(evidence, x)),
        _unless_off("regions", limits.regions, lambda x: _regions(evidence, x)),
        _unless_off("lesions lost", limits.lesions, lambda x: _lost(evidence, x)),
        _unless_off("lesions invented", limits.lesions, lambda x: _invented(evidence, x)),
    ]
    return Verdict(
        model=evidence.model,
        weights_sha256=evidence.weights_sha256,
        data_fingerprint=evidence.data_fingerprint,
        setting=evidence.setting,
        subjects=len(named),
        slices=evidence.slices,
        champion=evidence.champion,
        limits=asdict(limits),
        limits_sha256=sha256_text(repr(limits)),
        results=tuple(results),
        notes=evidence.notes,
    )


def gates_file(domain: str, file: Path | None = None) -> Path:
    """The gates for ``domain``: ``file``, else the domain's own, else the default.

    Raises:
        ConfigError: ``file`` is not there, or ``domain`` is not an allowed name.
    """
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"{file}: no such gates file")
        return file
    package = Path(__file__).resolve().parent
    installed = package / _FOLDER
    folder = installed if installed.is_dir() else package.parents[1] / _FOLDER
    own = folder / f"{check_name('domain', domain)}.yaml"
    return own if own.is_file() else folder / f"{_DEFAULT}.yaml"


def load_gates(path: Path) -> GateLimits:
    """Read and check a gates file.

    Raises:
        ConfigError: every fault of the file, each with its dotted path.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read ({fault})") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path.name}: a mapping of gates is expected")
    return from_dict(GateLimits, values, path.name)


def _unless_off(gate: str, limits: Any, ask: Callable[[Any], GateResult]) -> GateResult:
    if limits is None:
        return GateResult(gate, "skipped", None, None, "switched off in the gates file")
    return ask(limits)


def _result(gate: str, good: bool, figure: float, limit: float, told: str) -> GateResult:
    # A figure that is not finite proves nothing, so it passes no gate.
    state: State = "passed" if good and math.isfinite(figure) else "failed"
    return GateResult(gate, state, figure if math.isfinite(figure) else None, limit, told)


def _provenance(evidence: Evidence) -> GateResult:
    missing = evidence.missing_provenance
    told = f"not on record: {', '.join(missing)}" if missing else "weights, data, study on record"
    return _result("provenance", not missing, float(len(missing)), 0.0, told)


def _over_lpet(evidence: Evidence, limits: LpetLimits) -> GateResult:
    gain = evidence.gain_over_lpet
    good = gain.mean >= limits.min_db and gain.low > limits.lower_bound_db
    told = (
        f"{gain.mean:+.2f} dB ({gain.low:+.2f} to {gain.high:+.2f}); at least "
        f"{limits.min_db:+.2f} dB and an interval above {limits.lower_bound_db:+.2f} dB"
    )
    return _result("gain over LPET", good, gain.mean, limits.min_db, told)


def _over_champion(evidence: Evidence, limits: ChampionLimits) -> GateResult:
    gain = evidence.gain_over_champion
    if gain is None:
        why = "it is the champion" if evidence.champion else "there is no champion yet"
        return GateResult("gain over champion", "skipped", None, None, why)
    good = gain.mean > 0 and gain.mean >= limits.min_db
    told = (
        f"{gain.mean:+.2f} dB ({gain.low:+.2f} to {gain.high:+.2f}) over {evidence.champion}; "
        f"more than {limits.min_db:+.2f} dB"
    )
    return _result("gain over champion", good, gain.mean, limits.min_db, told)


def _activity(evidence: Evidence, limits: BiasLimits) -> GateResult:
    mean, worst = evidence.activity_bias
    told = f"{_percent(mean)} off ({_percent(worst)} worst subject); at most " + _percent(
        limits.max_bias
    )
    return _result("activity", mean <= limits.max_bias, mean, limits.max_bias, told)


def _regions(evidence: Evidence, limits: BiasLimits) -> GateResult:
    if not evidence.region_bias:
        return GateResult("regions", "skipped", None, None, "no region holds activity")
    worst = max(evidence.region_bias, key=lambda name: abs(evidence.region_bias[name]))
    bias = evidence.region_bias[worst]
    told = f"{100 * bias:+.1f} % in {worst}; at most {_percent(limits.max_bias)} either way"
    return _result("regions", abs(bias) <= limits.max_bias, bias, limits.max_bias, told)


def _lost(evidence: Evidence, limits: LesionLimits) -> GateResult:
    found = evidence.lesions
    number = found.num_pet_only if found else 0
    if found is None or number < limits.min_lesions:
        return _too_few("lesions lost", number, "PET-only", limits)
    told = (
        f"{_percent(found.lost_share)} of {number} PET-only lesions keep less than half their "
        f"contrast; at most {_percent(limits.max_lost_share)}"
    )
    good = found.lost_share <= limits.max_lost_share
    return _result("lesions lost", good, found.lost_share, limits.max_lost_share, told)


def _invented(evidence: Evidence, limits: LesionLimits) -> GateResult:
    found = evidence.lesions
    number = found.num_mr_only if found else 0
    if found is None or number < limits.min_lesions:
        return _too_few("lesions invented", number, "MR-only", limits)
    told = (
        f"{_percent(found.invented_share)} of {number} MR-only structures show in the PET; "
        f"at most {_percent(limits.max_invented_share)}"
    )
    good = found.invented_share <= limits.max_invented_share
    return _result("lesions invented", good, found.invented_share, limits.max_invented_share, told)


def _too_few(gate: str, number: int, kind: str, limits: LesionLimits) -> GateResult:
    marked = f"{number} {kind} lesions" if number else f"no {kind} lesion"
    why = f"the test subjects have {marked} marked, {limits.min_lesions} are needed to judge"
    return GateResult(gate, "skipped", None, None, why)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table_rows(results: Iterable[GateResult]) -> list[tuple[str, str, str]]:
    """Rows of gate, state and sentence, for the terminal."""
    return [(result.gate, result.state, result.told) for result in results]
