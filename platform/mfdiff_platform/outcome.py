"""How the finalists of a study fare on its test subjects, which nothing else has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mfdiff_core.bundle import load_bundle
from mfdiff_core.data.dataset import Dataset, SliceSet, open_dataset
from mfdiff_core.errors import DataError
from mfdiff_core.evaluation.baselines import best_gaussian
from mfdiff_core.evaluation.metrics import METRICS, Metrics, definition, evaluate_slices
from mfdiff_core.evaluation.statistics import Estimate, estimate_metrics
from mfdiff_core.evaluation.validation import evaluate_model, summarise
from mfdiff_core.files import read_json, write_json
from mfdiff_platform.cluster import as_completed, connect
from mfdiff_platform.progress import task
from mfdiff_platform.study import BEST_TRIAL, FINALISTS, PAPER_RECIPE, RESULTS, Study
from mfdiff_platform.trial_data import PackedSlices


@dataclass(frozen=True)
class Row:
    """One line of a study's table: quantitative metrics on the test subjects.

    Attributes:
        name: method or recipe.
        psnr, ssim, nmse: means over subjects of their means over slices.
        intervals: 95 % interval of each metric.
        per_subject: each subject's means.
        per_setting: slice means as ``<setting>/psnr``.
        subjects, slices: how many stand behind the row.
        seed_psnr: PSNR of each training of the recipe, where it was repeated; the row's other
            figures are means over them.
    """

    name: str
    psnr: float
    ssim: float
    nmse: float
    intervals: dict[str, tuple[float, float]]
    per_subject: dict[str, dict[str, float]]
    per_setting: dict[str, float]
    subjects: int
    slices: int
    seed_psnr: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Rows of a study: inputs, references, best trials; and how the numbers are defined.

    Attributes:
        rows: in the order shown; the last is the best trial, which validation chose.
        best: number of the best trial.
        definition: exactly what is measured.
        test_evaluations: how often the test subjects have been looked at.
    """

    rows: tuple[Row, ...]
    best: int
    definition: str
    test_evaluations: int


def conclude(
    study: Study,
    repeats: Mapping[int, tuple[Path, ...]] | None = None,
    finalists: int = FINALISTS,
) -> Outcome:
    """Evaluate references and best trials on the test subjects, once, and keep the result.

    Args:
        study: its search has ended.
        repeats: bundles of a trial's trainings with several seeds, by number.
        finalists: how many of the best trials.

    Raises:
        DataError: the dataset is damaged or no trial has finished.
    """
    best = study.best()
    tested = {
        name: (repeats or {}).get(record.number, (study.bundle_of(record),))
        for name, record in study.finalists(finalists).items()
    }
    hashes = {
        name: "+".join(load_bundle(folder).provenance.sha256 for folder in folders)
        for name, folders in tested.items()
    }
    path = study.folder / RESULTS
    earlier = read_json(path) if path.is_file() else {}
    if earlier.get("bundles") == hashes:
        return _outcome(earlier)
    dataset = open_dataset(Path(study.request.data))
    rows = _input_rows(dataset, study) + _bundle_rows(dataset, study, tested)
    values = {
        "rows": [asdict(row) for row in rows],
        "best": best.number,
        "definition": definition(),
        "test_evaluations": earlier.get("test_evaluations", 0) + 1,
        "bundles": hashes,
    }
    write_json(path, values)
    return _outcome(read_json(path))


def load_outcome(study: Study) -> Outcome:
    """What `conclude` has kept.

    Raises:
        DataError: nothing yet, or not understood.
    """
    try:
        return _outcome(read_json(study.folder / RESULTS))
    except (AttributeError, KeyError, TypeError) as fault:
        raise DataError(f"{study.folder / RESULTS}: not a study's results ({fault})") from None


def _outcome(values: Mapping[str, Any]) -> Outcome:
    rows = tuple(
        Row(**{**row, "seed_psnr": tuple(row.get("seed_psnr", ()))}) for row in values["rows"]
    )
    return Outcome(rows, values["best"], values["definition"], values["test_evaluations"])


def _input_rows(dataset: Dataset, study: Study) -> list[Row]:
    """What a clinic has today: the LPET, and the LPET after its best Gaussian filter."""
    setting = study.request.setting or None
    held_out, test = dataset.part("validation", setting), dataset.part("test", setting)
    voxel_mm = test.infos[0].voxel_mm
    chosen = best_gaussian(_array(held_out.x_p), _array(held_out.x_s), voxel_mm)
    filtered = chosen.apply(_array(test.x_p), voxel_mm)
    return [
        _row("LPET", evaluate_slices(_array(test.x_p), _array(test.x_s)), test, study),
        _row(
            f"LPET, Gaussian {chosen.fwhm_mm:g} mm",
            evaluate_slices(filtered, _array(test.x_s)),
            test,
            study,
        ),
    ]


def _bundle_rows(
    dataset: Dataset, study: Study, finalists: Mapping[str, tuple[Path, ...]]
) -> list[Row]:
    """One Ray task per bundle; equal bundles are evaluated once."""
    import ray

    test = dataset.part("test", study.request.setting or None)
    bundles = {name: [load_bundle(f) for f in folders] for name, folders in finalists.items()}
    distinct = {b.provenance.sha256: b.folder for found in bundles.values() for b in found}
    with connect(), task("Testing the finalists on held-out subjects", len(distinct)) as shown:
        data = ray.put(PackedSlices.pack(test))
        remote = ray.remote(num_cpus=1)(_evaluate_bundle)
        tasks = [remote.remote(folder, data) for folder in distinct.values()]
        found: dict[str, Metrics] = {}
        for sha, metrics in as_completed(tasks):
            found[sha] = metrics
            shown.update(len(found))
    names = {"external": "external only", "internal": "internal only"}
    return [
        _repeated_row(names.get(n, n), [found[b.provenance.sha256] for b in made], test, study)
        for n, made in bundles.items()
    ]


def _repeated_row(name: str, runs: Sequence[Metrics], slices: SliceSet, study: Study) -> Row:
    """Row of a recipe's trainings: figures are means over seeds, slice by slice."""
    if len(runs) == 1:
        return _row(name, runs[0], slices, study)
    mean = {m: np.mean([getattr(run, m) for run in runs], axis=0) for m in METRICS}
    row = _row(name, replace(runs[0], **mean), slices, study)
    each = tuple(_row(name, run, slices, study).psnr for run in runs)
    return replace(row, seed_psnr=each)


def _evaluate_bundle(folder: Path, data: PackedSlices) -> tuple[str, Metrics]:
    bundle = load_bundle(folder)
    return bundle.provenance.sha256, evaluate_model(bundle.model(), data.unpack())


def _row(name: str, metrics: Metrics, slices: SliceSet, study: Study) -> Row:
    subjects = [info.subject for info in slices.infos]
    estimates: dict[str, Estimate] = estimate_metrics(metrics, subjects, seed=study.request.seed)
    summary = summarise(metrics, slices)
    people = estimates["psnr"].per_subject
    return Row(
        name=name,
        psnr=estimates["psnr"].mean,
        ssim=estimates["ssim"].mean,
        nmse=estimates["nmse"].mean,
        intervals={metric: (e.low, e.high) for metric, e in estimates.items()},
        per_subject={s: {m: estimates[m].per_subject[s] for m in METRICS} for s in people},
        per_setting={key: value for key, value in summary.items() if "/" in key},
        subjects=len(people),
        slices=len(slices),
    )


def _array(images: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = images[:, 0].numpy()
    return array


def gain_over_paper(outcome: Outcome) -> float | None:
    """PSNR of the best trial minus that of the paper's recipe, in dB."""
    by_name = {row.name: row for row in outcome.rows}
    paper = by_name.get(PAPER_RECIPE)
    return by_name[BEST_TRIAL].psnr - paper.psnr if paper else None


def headline(outcome: Outcome) -> str:
    """The best trial's PSNR and gain, in the few words that a table has room for."""
    best, gain = outcome.rows[-1], gain_over_paper(outcome)
    over = "" if gain is None else f", {gain:+.2f} dB against the paper's recipe"
    return f"{best.psnr:.2f} dB{over}, on {best.subjects} test subject(s)"
