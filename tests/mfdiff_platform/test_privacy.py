"""A patient planted wherever a site may have one, looked for in everything a study leaves."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.dataset import Dataset
from mfdiff_platform.adapt import adapt
from mfdiff_platform.cli import run
from mfdiff_platform.cluster import Cluster
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.privacy import without_paths
from mfdiff_platform.promotion import held_out
from mfdiff_platform.quickstart import to_volume
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.session import SearchScale
from mfdiff_platform.study_archive import export_study
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import ENVIRONMENT, Workspace

NAME, PATIENT_ID, BIRTH_DATE = "DOE^JANE", "MRN-4711-0815", "19530217"
PLANTED = (NAME, "DOE_JANE", PATIENT_ID, BIRTH_DATE)
SPACE = """
parameters:
  strategy: {value: internal}
  iterations: {value: 2}
  batch_size: {value: 2}
"""
# Fails in its worker for want of phantoms, with a path in its words; a plan would refuse it.
BROKEN = """
references:
  - {name: broken, strategy: two_stage, replay: 0.5}
"""


def found_in(folder: Path) -> list[str]:
    """Files below ``folder`` that hold or are named after what was planted, archives unpacked."""
    hits = []
    for path in folder.rglob("*"):
        if any(text in path.name for text in PLANTED):
            hits.append(f"name of {path}")
        elif path.is_file():
            hits += [f"{path}: {name}" for name, data in contents(path) if tells(data)]
    return hits


def tells(data: bytes) -> bool:
    """Whether ``data`` holds what was planted, in any encoding."""
    return any(text.encode(code) in data for text in PLANTED for code in ("utf-8", "utf-16-le"))


def contents(path: Path) -> list[tuple[str, bytes]]:
    """A file's bytes, those of a compressed one's members, and the members' names."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return [("names", "\n".join(names).encode())] + [(n, archive.read(n)) for n in names]
    if path.suffix == ".gz":
        return [("unpacked", gzip.decompress(path.read_bytes()))]
    return [("", path.read_bytes())]


@pytest.fixture
def hospital(tmp_path_factory: pytest.TempPathFactory, dataset_folder: Path) -> Path:
    """A site's folder, named after a patient as such folders are; with slices in it."""
    folder = tmp_path_factory.mktemp("site") / f"DOE_JANE_{PATIENT_ID}" / BIRTH_DATE
    shutil.copytree(dataset_folder, folder / "slices")
    return folder


def nifti(path: Path, data: Any, affine: Any) -> Path:
    """An image whose header tells all about the patient."""
    image = nibabel.Nifti1Image(data, affine)
    image.header["descrip"] = f"{NAME} {PATIENT_ID} {BIRTH_DATE}".encode()
    image.header["db_name"] = PATIENT_ID.encode()
    extension = nibabel.nifti1.Nifti1Extension("comment", f"{NAME} born {BIRTH_DATE}".encode())
    image.header.extensions.append(extension)
    nibabel.save(image, path)
    return path


@pytest.mark.ray
@pytest.mark.slow
def test_a_planted_patient_is_found_nowhere(
    store: TrackingStore,
    hospital: Path,
    pretrained: Bundle,
    dataset: Dataset,
    ray_cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = Workspace(store.workspace)
    bundle = shutil.copytree(pretrained.folder, hospital / "pretrained")
    space = hospital / "space.yaml"
    space.write_text(SPACE)
    plan = StudyPlan(
        domain="toy", data=hospital / "slices", pretrained=Path(bundle), space_file=space
    )
    asked = replace(plan_study(place, plan), space=SPACE + BROKEN)
    adapt(place, store, asked, SearchScale(trials=4, concurrent=1))

    models = SiteModels(store)
    assert len(held_out(place, models.show("mfdiff-toy@candidate"))) == 4
    test = dataset.part("test", "ld")
    pet, mr = to_volume(test, "x_p", "scale"), to_volume(test, "x_m", "mr_scale")
    files = [
        nifti(hospital / f"{NAME}_pet.nii.gz", np.repeat(pet.data, 4, axis=2), pet.affine),
        nifti(hospital / f"{NAME}_t1.nii.gz", np.repeat(mr.data, 4, axis=2), mr.affine),
    ]
    monkeypatch.setenv(ENVIRONMENT, str(place.root))
    scan = ["--pet", str(files[0]), "--mr", str(files[1]), "--out", str(place.root / "o.nii.gz")]
    assert run(["restore", "--model", "mfdiff-toy@candidate", *scan]) == 0
    run(["model", "promote", "--domain", "toy"])
    export_study(place, store, "toy", place.root / "toy.zip")
    capfd.readouterr()

    (request,) = place.root.glob("studies/*/study.json")
    local = json.loads(request.read_text())
    assert local["data"] == str(hospital / "slices")  # the workspace itself knows the way
    request.unlink()
    assert found_in(place.root) == []
    assert list(ray_session().iterdir())
    assert found_in(ray_session()) == []


def ray_session() -> Path:
    """Where the running Ray writes its logs and whatever else."""
    import ray

    return Path(ray._private.worker._global_node.get_session_dir_path())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"/data/{NAME}/a.arrow: shard is missing", "<path>: shard is missing"),
        (f"DataError('/scans of {NAME}/a b.nii')", "DataError('<path>')"),
        (f"file:///data/{NAME}.nii.gz", "<path>"),
        (f"~/{NAME}/x", "<path>"),
        (f"C:\\scans\\{NAME}.dcm: no", "<path>: no"),
        ("gain 3/4 dB, see https://mlflow.org/docs", "gain 3/4 dB, see https://mlflow.org/docs"),
        ("two-stage (paper)", "two-stage (paper)"),
    ],
)
def test_paths_are_taken_out_of_messages_and_nothing_else(text: str, told: str) -> None:
    assert without_paths(text) == told


def test_runs_take_no_path_into_the_store(store: TrackingStore) -> None:
    written = store.find_or_create("studies", "a", tags={"where": f"/data/{NAME}"})
    written.log_config({"data": f"/data/{NAME}", "lr": 0.1})
    written.set_tags({"source": f"/data/{NAME}/x"})
    written.finish("failed", f"/data/{NAME}/x.arrow: damaged")
    found = store.client.get_run(written.run_id)
    assert found.data.tags["state"] == "failed: <path>: damaged"
    assert found.data.params == {"data": "<path>", "lr": "0.1"}
    assert NAME.encode() not in (store.workspace / "mlflow.db").read_bytes()
