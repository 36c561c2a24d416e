"""A study that goes from a site without a network to a server, and models that go alone."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mfdiff_core.bundle import Bundle, Provenance, load_bundle, save_bundle
from mfdiff_core.data.dataset import Dataset
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import write_json
from mfdiff_platform.archive import LIST
from mfdiff_platform.cli import run as cli
from mfdiff_platform.errors import GateError
from mfdiff_platform.known import Known, load_known
from mfdiff_platform.model_archive import export_model, import_model
from mfdiff_platform.outcome import Row
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.site_model import CHAMPION
from mfdiff_platform.study import RESULTS, Study, StudyRequest, claim_study
from mfdiff_platform.study_archive import export_study, import_study
from mfdiff_platform.study_record import EXPERIMENT
from mfdiff_platform.suggestion import Observation, Suggestion
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import ENVIRONMENT, Workspace

SECRET = "/data/DOE_JANE"


def row(name: str) -> Row:
    intervals = {metric: (1.0, 2.0) for metric in ("psnr", "ssim", "nmse")}
    people = {"s1": {"psnr": 25.0, "ssim": 0.9, "nmse": 0.01}}
    return Row(name, 25.0, 0.9, 0.01, intervals, people, {}, 1, 4)


@pytest.fixture
def here(store: TrackingStore) -> Workspace:
    return Workspace(store.workspace)


@pytest.fixture
def study(here: Workspace, dataset: Dataset, pretrained: Bundle) -> Study:
    """Two trials, one finished and one failed, with results."""
    request = StudyRequest(
        name="leeds",
        domain="toy",
        data=f"{SECRET}/slices",
        data_fingerprint=dataset.manifest.fingerprint,
        phantom="",
        pretrained=str(pretrained.folder),
        pretrained_sha256=pretrained.provenance.sha256,
        setting="",
        space="parameters:\n  lr: {value: 1e-4}\n",
    )
    study = claim_study(here.study("leeds"), request)
    recipe = {"recipe": {"strategy": "internal"}, "reference": "internal", "distributions": None}
    told = Provenance(
        domain="toy",
        strategy="internal",
        iterations=1,
        seed=0,
        data=request.data_fingerprint,
        voxel_mm=2.0,
    )
    folder = study.folder / "trials/0000/bundle"
    save_bundle(folder, pretrained.config, pretrained.weights(), told)
    study.ledger.add(recipe, 0)
    study.ledger.update(0, state="finished", metrics={"psnr": 25.0}, bundle="trials/0000/bundle")
    study.ledger.add(recipe, 1)
    study.ledger.update(1, state="failed", reason="loss <b>not</b> finite")
    rows = [asdict(row("LPET")), asdict(row("best trial"))]
    results = {"rows": rows, "best": 0, "definition": "d", "test_evaluations": 1, "bundles": {}}
    write_json(study.folder / RESULTS, results)
    (study.folder / "tune").mkdir()
    (study.folder / "tune" / "tuner.pkl").write_bytes(b"ray's own")
    return study


@pytest.fixture
def runs(store: TrackingStore, study: Study) -> None:
    """The study's runs in MLflow, and its best trial as a registered version."""
    parent = store.find_or_create(EXPERIMENT, "leeds", "toy: leeds", {"kind": "study"})
    parent.log_config({"seed": 0, "data": study.request.data})
    parent.log_dataset("toy", study.request.data_fingerprint, "training")
    parent.log_table([{"name": "LPET", "psnr": 20.0}], "tables/test.json")
    parent.note("# Study")
    for number, state in ((0, "finished"), (1, "failed")):
        name = f"{number:03d} internal"
        trial = store.find_or_create(EXPERIMENT, f"leeds/{number:04d}", name, parent=parent)
        trial.log_config({"lr": 1e-4})
        for step in (2, 4):
            trial.log_metrics({"validation/psnr": 20.0 + step, "loss": 1.0 / step}, step)
        trial.finish(state, "because")  # type: ignore[arg-type]
    parent.finish("finished")
    best = store.find_or_create(EXPERIMENT, "leeds/0000")
    bundle = study.folder / "trials/0000/bundle"
    best.log_dir(bundle, "checkpoints/best")
    tags = {"study": "leeds", "trial": "0"}
    SiteModels(store).register_candidate("toy", bundle, best.run_id, tags, "# Card")
    best.finish("finished")


@pytest.fixture
def there(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> TrackingStore:
    """Another site's store."""
    folder = tmp_path_factory.mktemp("there")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    return TrackingStore(folder)


@pytest.fixture
def sent(here: Workspace, store: TrackingStore, runs: None, tmp_path: Path) -> Path:
    path = tmp_path / "leeds.zip"
    assert export_study(here, store, "leeds", path) == 3
    return path


def everything(store: TrackingStore) -> dict[str, Any]:
    """All runs by key, without ids and without what is made anew."""
    experiment = store.get_or_create_experiment(EXPERIMENT)
    found = {}
    for run in store.client.search_runs([experiment]):
        metrics = {
            name: [
                (p.step, p.value, p.timestamp)
                for p in store.client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        found[tags["mfdiff.key"]] = {
            "times": (run.info.start_time, run.info.end_time),
            "status": run.info.status,
            "metrics": metrics,
            "params": {k: v for k, v in run.data.params.items() if k != "data"},
            "tags": tags,
            "datasets": [d.dataset.digest for d in run.inputs.dataset_inputs],
            "files": {f for f in files if not f.startswith(("site-model/", "report/"))},
            "child": "mlflow.parentRunId" in run.data.tags,
        }
    return found


def test_runs_arrive_with_their_curves_times_states_and_files(
    sent: Path, store: TrackingStore, there: TrackingStore
) -> None:
    imported = import_study(Workspace(there.workspace), there, sent)
    assert imported.runs == 3
    arrived, left = everything(there), everything(store)
    for key in left:
        assert arrived[key] == left[key]
    assert len(everything(there)) == 3
    (study,) = imported.folder.parent.iterdir()
    assert study.name == "leeds"
    assert not list(study.rglob("*.pkl"))


def test_what_was_taken_over_and_other_seeds_travel_along(
    here: Workspace, store: TrackingStore, study: Study, runs: None, there: TrackingStore
) -> None:
    point = Suggestion(-1, {"lr": 2e-4}, "", {})
    known = Known(observations=(Observation(point, "finished", 24.0, 6),), points=(point,))
    known.save(study.folder)
    repeat = "repeats/seed-1/trials/0000/bundle"
    shutil.copytree(study.folder / "trials/0000/bundle", study.folder / repeat)
    path = there.workspace / "leeds.zip"
    export_study(here, store, "leeds", path)
    arrived = import_study(Workspace(there.workspace), there, path).folder
    assert load_known(arrived) == known
    assert load_bundle(arrived / repeat).provenance == load_bundle(study.folder / repeat).provenance


def test_the_same_archive_twice_changes_nothing(sent: Path, there: TrackingStore) -> None:
    place = Workspace(there.workspace)
    first = import_study(place, there, sent)
    before = everything(there)
    assert import_study(place, TrackingStore(there.workspace), sent) == first
    assert everything(there) == before
    assert len(SiteModels(there).list()) == 1


def test_versions_arrive_as_candidates_that_must_pass_the_gates_there(
    sent: Path, there: TrackingStore
) -> None:
    import_study(Workspace(there.workspace), there, sent)
    models = SiteModels(there)
    model = models.show("mfdiff-toy@candidate")
    assert (model.tags["study"], model.tags["trial"]) == ("leeds", "0")
    assert model.description == "# Card"
    models.resolve("mfdiff-toy@candidate")
    with pytest.raises(GateError):
        models.set_alias(model.id, CHAMPION)


def test_no_path_of_the_site_leaves_with_the_archive(sent: Path, pretrained: Bundle) -> None:
    with zipfile.ZipFile(sent) as bag:
        for name in bag.namelist():
            content = bag.read(name)
            assert SECRET.encode() not in content
            assert str(pretrained.folder).encode() not in content


def test_the_report_is_made_anew_and_escapes_what_it_shows(
    sent: Path, there: TrackingStore
) -> None:
    folder = import_study(Workspace(there.workspace), there, sent).folder
    page = (folder / "study.html").read_text()
    assert "&lt;b&gt;not&lt;/b&gt;" in page


def test_another_study_of_that_name_is_not_overwritten(sent: Path, there: TrackingStore) -> None:
    place = Workspace(there.workspace)
    folder = import_study(place, there, sent).folder
    (folder / RESULTS).write_text("{}")
    with pytest.raises(ConfigError, match="a study of this name is here"):
        import_study(place, there, sent)
    assert (folder / RESULTS).read_text() == "{}"


def forged(sent: Path, change: Any) -> Path:
    """The archive with its description changed."""
    path = sent.with_name("forged.zip")
    with zipfile.ZipFile(sent) as bag, zipfile.ZipFile(path, "w") as out:
        described = json.loads(bag.read(LIST))
        change(described["facts"])
        out.writestr(LIST, json.dumps(described))
        for name in bag.namelist():
            if name != LIST:
                out.writestr(name, bag.read(name))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(study="../../x"),
        lambda facts: facts.update(study="other"),
        lambda facts: facts.update(domain="a/b"),
        lambda facts: facts.update(runs=[]),
        lambda facts: facts["runs"][1].update(key="other/0000"),
        lambda facts: facts["runs"][1].update(key="leeds/../x"),
        lambda facts: facts["runs"][1].update(status="<b>"),
        lambda facts: facts["runs"][0].update(code="x"),
        lambda facts: facts["models"][0].update(weights_sha256="00"),
        lambda facts: facts["models"][0].pop("description"),
        lambda facts: facts.update(models=[3]),
        lambda facts: facts["runs"].pop(1),
    ],
)
def test_descriptions_that_reach_elsewhere_are_refused(
    sent: Path, there: TrackingStore, change: Any
) -> None:
    with pytest.raises((DataError, ConfigError)):
        import_study(Workspace(there.workspace), there, forged(sent, change))
    assert SiteModels(there).list() == []
    assert everything(there) == {}
    assert list(there.workspace.glob("studies/*")) == []


def test_an_archive_lets_nobody_through_the_gates_and_speaks_for_no_other_run(
    sent: Path, there: TrackingStore
) -> None:
    def lie(facts: dict[str, Any]) -> None:
        (model,) = facts["models"]
        admitted = {"gate_admitted": model["weights_sha256"], "gate_result": "{}"}
        model["tags"] |= admitted | {"data_fingerprint": "forged", "mlflow.x": "y"}
        facts["runs"][1]["tags"] |= {"mfdiff.key": "leeds", "mlflow.source.name": "javascript:x"}

    import_study(Workspace(there.workspace), there, forged(sent, lie))
    models = SiteModels(there)
    model = models.show("mfdiff-toy@candidate")
    assert not {"gate_admitted", "gate_result", "mlflow.x"} & set(model.tags)
    assert model.tags["data_fingerprint"] != "forged"
    with pytest.raises(GateError, match="no gate_result"):
        models.set_alias(model.id, CHAMPION)
    trial = there.find(EXPERIMENT, "leeds/0000")
    assert trial is not None
    assert "mlflow.source.name" not in trial.data.tags
    assert set(everything(there)) == {"leeds", "leeds/0000", "leeds/0001"}


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\0b", "<script>alert(1)</script>", "x" * 300, "..", "-rf", ""]
)
def test_names_that_are_none_are_refused_wherever_they_are_given(
    here: Workspace,
    store: TrackingStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(here.root))
    for command in (
        ["study", "export", "--out", "x.zip", "--", name],
        ["model", "promote", f"--domain={name}"],
        ["model", "rollback", f"--domain={name}"],
        ["model", "show", "--", name],
    ):
        assert cli(command) == 2, command
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err) < 400
        assert "Traceback" not in captured.err


def test_a_study_that_is_not_there_cannot_be_exported(
    here: Workspace, store: TrackingStore, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no study"):
        export_study(here, store, "leeds", tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_a_model_s_archive_lets_nobody_through_the_gates(
    here: Workspace, store: TrackingStore, runs: None, there: TrackingStore, tmp_path: Path
) -> None:
    sent = tmp_path / "model.zip"
    weights = export_and_read(SiteModels(store), sent)
    told = {"gate_admitted": weights, "gate_result": "{}", "gate_override": "trust me"}
    path = forged(sent, lambda facts: facts["tags"].update(told))
    made = import_model(Workspace(there.workspace), there, path)
    assert not set(told) & set(SiteModels(there).show(str(made)).tags)


def export_and_read(models: SiteModels, out: Path) -> str:
    """Export the candidate; the hash of its weights."""
    model = export_model(models, "mfdiff-toy@candidate", out)
    return models.show(str(model)).tags["weights_sha256"]


def test_a_model_travels_alone(
    here: Workspace,
    runs: None,
    there: TrackingStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "model.zip"
    monkeypatch.setenv(ENVIRONMENT, str(here.root))
    assert cli(["model", "export", "mfdiff-toy@candidate", "--out", str(out)]) == 0
    monkeypatch.setenv(ENVIRONMENT, str(there.workspace))
    for _ in range(2):
        assert cli(["model", "import", str(out)]) == 0
    (model,) = SiteModels(there).list()
    assert (model.aliases, model.tags["study"]) == (("candidate",), "leeds")
    SiteModels(there).resolve(str(model.id))
    assert "mfdiff-toy/1 (candidate)" in capsys.readouterr().out
    export_study(here, TrackingStore(here.root), "leeds", tmp_path / "study.zip")
    with pytest.raises(DataError, match="not a site model archive"):
        import_model(Workspace(there.workspace), there, tmp_path / "study.zip")
