"""Tiny real objects shared by the tests: a dataset of 32 x 32 slices, a model, a bundle, scans.

``dataset_folder`` is made once and read-only; a test that damages a dataset takes
``own_dataset``, its private copy.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mfdiff_core.bundle import Bundle, Provenance, save_bundle
from mfdiff_core.config import override, to_dict
from mfdiff_core.data.dataset import Dataset, open_dataset
from mfdiff_core.data.intensity import mr_scale, pet_scale
from mfdiff_core.data.manifest import SHARDS, SPLIT, Manifest, describe_shard
from mfdiff_core.data.slices import PET_LESION, SliceInfo, SliceRecord, write_shard
from mfdiff_core.data.splits import make_split
from mfdiff_core.data.volumes import Volume
from mfdiff_core.model import MFdiffModel, ModelConfig, build_model, preset
from mfdiff_core.physics.projector import Geometry, cached_projector
from mfdiff_core.seeding import rng

SIZE = 32
SUBJECTS = ("s0", "s1", "s2", "s3", "s4")
SETTINGS = ("ld", "uld")
NOISE = {"ld": 0.2, "uld": 0.4}
BQ_PER_ML = 20_000.0

SEARCHES = {
    *("test_adapt.py", "test_adapt_cli.py", "test_outcome.py", "test_privacy.py"),
    *("test_search_faults.py", "test_trial_group.py"),
}
"""Of the tests that start Ray, about half by the time they take."""

MakeDataset = Callable[..., Path]
MakeRecord = Callable[..., SliceRecord]
MakeModel = Callable[[], MFdiffModel]
MakeHead = Callable[..., Volume]
MakeBids = Callable[..., Path]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none; the others are shared out.

    All that start Ray go to two processes, searches and the rest, and first, since they take
    longest; of the others a file stays together, with what it sets up once.
    """
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        group = str(item.path)
        if item.get_closest_marker("ray"):
            group = "searches" if item.path.name in SEARCHES else "ray"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's own MLflow nor that of an earlier test gets this test's runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _make_record(
    subject: str = "s0", setting: str = "ld", index: int = 0, domain: str = "toy", seed: int = 0
) -> SliceRecord:
    """A head of smooth activity with one lesion, its noisy low-dose image and its MR."""
    draws = rng(seed, domain, subject, index)
    row, column = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    head = ((row / 14) ** 2 + (column / 11) ** 2 < 1).astype(np.float32)
    cortex = gaussian_filter(draws.random((SIZE, SIZE)), 2)
    lesion = (row - draws.uniform(-6, 6)) ** 2 + (column - draws.uniform(-5, 5)) ** 2 < 4
    x_s = BQ_PER_ML * head * (cortex + 0.5 * lesion)
    noise = rng(seed, domain, subject, index, setting).standard_normal((SIZE, SIZE))
    x_p = (x_s * (1 + NOISE[setting] * noise)).clip(0)
    x_m = 800 * head * (1 - cortex)
    scale, scale_m = pet_scale(x_p.astype(np.float32)), mr_scale(x_m.astype(np.float32))
    info = SliceInfo(domain, setting, subject, index, 0, 2.0, scale, scale_m, 1e5)
    images = [image.astype(np.float32) for image in (x_p / scale, x_m / scale_m, x_s / scale)]
    maps = [head.astype(np.uint8), (PET_LESION * lesion).astype(np.uint8)]
    return SliceRecord(info, *images, *maps)


def _make_dataset(
    folder: Path,
    domain: str = "toy",
    subjects: tuple[str, ...] = SUBJECTS,
    slices_per_setting: int = 2,
    seed: int = 0,
    sinograms: Geometry | None = None,
) -> Path:
    """A complete dataset folder: one shard per subject, split and manifest."""
    entries = []
    for subject in subjects:
        records = [
            _make_record(subject, setting, index, domain, seed)
            for setting in SETTINGS
            for index in range(slices_per_setting)
        ]
        if sinograms is not None:
            records = [_measured(record, sinograms) for record in records]
        path = folder / SHARDS / f"{subject}.arrow"
        write_shard(path, records)
        entries.append(describe_shard(folder, path, subject, len(records)))
    make_split(subjects, (0.6, 0.2, 0.2), seed).save(folder / SPLIT)
    origin = {"kind": "test"}
    manifest = Manifest(domain, SIZE, SETTINGS, seed, origin, tuple(entries), {"psnr": 20.0})
    replace(manifest, sinograms=to_dict(sinograms) if sinograms else {}).save(folder)
    return folder


def _measured(record: SliceRecord, geometry: Geometry) -> SliceRecord:
    """The record with the noiseless sinogram of its LPET, without attenuation."""
    size = (geometry.image_px, geometry.image_px)
    x = torch.nn.functional.interpolate(torch.from_numpy(record.x_p)[None, None], size=size)
    y = cached_projector(geometry, 1).project(x.reshape(-1, 1))[..., 0].numpy()
    return replace(record, sinogram=np.stack((y, np.ones_like(y))))


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """``make_record(subject, setting, index, domain, seed)``."""
    return _make_record


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """``make_dataset(folder, domain, subjects, slices_per_setting, seed, sinograms)``."""
    return _make_dataset


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five subjects, two settings, two slices of each: 20 slices."""
    return _make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def dataset(dataset_folder: Path) -> Dataset:
    return open_dataset(dataset_folder)


@pytest.fixture
def own_dataset(dataset_folder: Path, tmp_path: Path) -> Path:
    """A copy of `dataset_folder` that a test may damage."""
    return Path(shutil.copytree(dataset_folder, tmp_path / "dataset"))


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Preset ``tiny`` on half the grid with fewer channels: 30 ms per training step."""
    thin = {
        "network.patch_size": 2,
        "network.fusion.channels": 8,
        "network.fusion.heads": 2,
        "network.fusion.couplings": 1,
        "network.fusion.fusion_couplings": 1,
        "network.unet.channels": 8,
        "network.unet.norm_groups": 4,
        "network.unet.attention_resolutions": (8,),
        "diffusion.num_steps": 20,
    }
    return override(preset("tiny"), thin)


@pytest.fixture(scope="session")
def make_model(tiny_config: ModelConfig) -> MakeModel:
    """Makes one and the same model, in which no layer is left at zero: every input matters."""

    def make() -> MFdiffModel:
        model = build_model(tiny_config, seed=0)
        source = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1, generator=source)
        return model

    return make


@pytest.fixture
def tiny_model(make_model: MakeModel) -> MFdiffModel:
    return make_model().eval()


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_model: MFdiffModel) -> Bundle:
    """`tiny_model` on disk."""
    provenance = Provenance(
        domain="toy", strategy="pretrain", iterations=0, seed=0, data="none", voxel_mm=2.0
    )
    folder = tmp_path / "bundle"
    return save_bundle(folder, tiny_model.config, tiny_model.state_dict(), provenance)


# --- scans: an uneven head in space, on any grid, and BIDS folders of it -----------------------

PET_GRID = ((30, 34, 26), np.diag([-6.0, 6.0, 6.0, 1.0]))
MR_GRID = ((48, 56, 48), np.diag([4.0, 4.0, 4.0, 1.0]))
FRAME_S = 16.0
_BLOBS_MM = (
    (-30, 40, 10, 15), (35, -20, 25, 18), (10, 50, -20, 12), (-25, -45, 35, 16),
    (-48, 0, -15, 13), (45, 25, -10, 12), (0, -10, 55, 14), (20, -55, -20, 14), (-5, 15, -45, 13),
)  # fmt: skip
"""Where the head is not symmetric: x, y, z and radius."""


def _make_head(kind: str, grid: tuple[Any, Any] = PET_GRID, seed: int = 0) -> Volume:
    """PET ("pet", about 10 kBq/mL in the cortex) or T1 ("mr") of one and the same head."""
    shape, axes = grid
    affine = np.array(axes, dtype=float)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    radius = np.sqrt((x / 68) ** 2 + (y / 85) ** 2 + (z / 72) ** 2)
    scalp, cortex, white = radius < 1, radius < 0.88, radius < 0.62
    blobs = [(x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 < r**2 for a, b, c, r in _BLOBS_MM]
    values = {"pet": (1500, 10000, 4000, 14000), "mr": (700, 350, 600, 150)}[kind]
    image = np.zeros(shape, dtype=np.float32)
    for mask, value in zip((scalp, cortex, white, np.any(blobs, axis=0)), values, strict=True):
        image[mask & scalp] = value
    image = gaussian_filter(image, 0.6)
    noise = rng(seed, "head", kind).standard_normal(shape)
    return Volume((image * (1 + 0.02 * noise)).clip(0).astype(np.float32), affine)


def _times(first_s: float, count: int) -> list[float]:
    return [first_s + FRAME_S * index for index in range(count)]


def _film(head: Volume, starts: list[float], noise: float, person: str) -> nibabel.Nifti1Image:
    frames = []
    for start in starts:
        draw = rng(0, "frame", person, int(start)).standard_normal(head.data.shape)
        level = 1 + start / 20_000  # activity rises while tracer is taken up
        frames.append((head.data * level * (1 + noise * draw)).clip(0).astype(np.float32))
    image = nibabel.Nifti1Image(np.stack(frames, axis=-1), head.affine)
    image.header["descrip"] = b"DOE^JANE"
    return image


def _save_pet(
    path: Path, film: nibabel.Nifti1Image, values: dict[str, Any], *, misnamed: bool
) -> None:
    """A file, gzipped or, as in ds003397, only called so; and its sidecar."""
    data = film.to_bytes()
    path.write_bytes(data if misnamed else gzip.compress(data, 1))
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(values))


def _save_runs(
    path: Path, film: nibabel.Nifti1Image, values: dict[str, Any], counts: tuple[int, ...]
) -> None:
    """As ds003397: a file per run, with the clock time of its start and no other times."""
    frames, first = np.asarray(film.dataobj), 0
    untimed = {key: value for key, value in values.items() if not key.startswith("Frame")}
    for run, count in enumerate(counts, start=1):
        part = nibabel.Nifti1Image(frames[..., first : first + count], film.affine)
        seconds = int(FRAME_S) * first
        clock = {"AcquisitionTime": f"12:{seconds // 60:02d}:{seconds % 60}"}
        name = path.name.replace("_pet", f"_run-{run}_pet")
        _save_pet(path.with_name(name), part, untimed | clock, misnamed=True)
        first += count


PET_JSON: dict[str, Any] = {
    "Unit": "Bq/ml",
    "RadionuclideTotalDose": 249_800_000.0,
    "RadionuclideHalfLife": 6586.2,
    "InjectedRadioactivity": "222.264",
    "InjectedRadioactivityUnit": "MBq",
    "ImageDecayCorrected": True,
    "TracerName": "FDG",
    "InstitutionName": "St Elsewhere",
    "PatientName": "DOE^JANE",
}


def _make_bids(
    root: Path,
    people: Mapping[str, Mapping[str, Any]],
    *,
    first_s: float = 0.0,
    count: int = 24,
    groups: Mapping[str, str] | None = None,
    mr_grid: tuple[Any, Any] = MR_GRID,
    noise: float = 0.3,
) -> Path:
    """A BIDS set; each person is a mapping of sidecar changes and of traits.

    Traits: ``starts`` (frame times on disk), ``misnamed`` (uncompressed .nii.gz), ``runs``
    (frames per file, without frame times), ``masks`` (of defacing, beside the images),
    ``mr_affine`` (an MR whose affine is wrong by this motion), ``annexed`` (content of the PET
    not fetched), ``no_mr``, ``no_pet``, ``unlike`` (noise of its own: without it all people are
    one person under several names). A sidecar value None removes the key.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "toy set"}))
    table = [f"sub-{label}\t{(groups or {}).get(label, 'n/a')}" for label in people]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tgroup", *table]) + "\n")
    pet, mr = _make_head("pet"), _make_head("mr", mr_grid)
    for label, person in people.items():
        traits = dict(person)
        starts = traits.pop("starts", _times(first_s, count))
        home = root / f"sub-{label}"
        path = home / "pet" / f"sub-{label}_task-rest_pet.nii.gz"
        path.parent.mkdir(parents=True)
        annexed, no_pet = traits.pop("annexed", False), traits.pop("no_pet", False)
        misnamed, runs = traits.pop("misnamed", False), traits.pop("runs", ())
        masks, no_mr = traits.pop("masks", False), traits.pop("no_mr", False)
        film = _film(pet, starts, noise, label if traits.pop("unlike", False) else "")
        affine = traits.pop("mr_affine", np.eye(4)) @ mr.affine
        times = {"FrameTimesStart": starts, "FrameDuration": [FRAME_S] * len(starts)}
        values = {k: v for k, v in {**PET_JSON, **times, **traits}.items() if v is not None}
        if annexed:
            path.symlink_to("../../.git/annex/objects/xx/yy/MD5E-s1260000000--0af.nii.gz/a.nii.gz")
        elif runs:
            _save_runs(path, film, values, runs)
        elif not no_pet:
            _save_pet(path, film, values, misnamed=misnamed)
        if not no_mr:
            (home / "anat").mkdir()
            t1 = nibabel.Nifti1Image(mr.data, affine)
            nibabel.save(t1, home / "anat" / f"sub-{label}_T1w.nii.gz")
        for image in list(home.glob("*/*.nii.gz")) if masks else ():
            mask = image.with_name(image.name.replace(".nii.gz", "_defacemask.nii.gz"))
            nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), mask)
    return root


@pytest.fixture(scope="session")
def make_head() -> MakeHead:
    """``make_head("pet" or "mr", (shape, axes), seed)``."""
    return _make_head


@pytest.fixture(scope="session")
def make_bids() -> MakeBids:
    """``make_bids(root, people, first_s, count, groups, mr_grid, noise)``."""
    return _make_bids


def _rigid(degrees: tuple[float, float, float], mm: tuple[float, float, float]) -> npt.NDArray[Any]:
    motion = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(4)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        motion = turn @ motion
    motion[:3, 3] = mm
    return motion


@pytest.fixture(scope="session")
def rigid() -> Callable[..., npt.NDArray[Any]]:
    """``rigid(degrees, mm)``: a motion about the origin, [4, 4]."""
    return _rigid


# --- DICOM: a patient's series, slice by slice ---------------------------------------------------

MakeDicom = Callable[..., Path]
PATIENT = {
    "PatientName": "DOE^JANE",
    "PatientID": "MRN4711",
    "PatientBirthDate": "19700102",
    "AccessionNumber": "ACC0815",
}
PET_MODULE = {
    "Units": "BQML",
    "DecayCorrection": "START",
    "CorrectedImage": ["DECY", "ATTN", "SCAT"],
    "PatientWeight": "70",
    "SeriesDate": "20260102",
    "SeriesTime": "120000.000000",
}


def _make_dicom(
    folder: Path,
    volume: Volume,
    modality: str = "PT",
    *,
    number: int = 1,
    duration_s: float = 120.0,
    frames: int = 1,
    patient: Mapping[str, str] = PATIENT,
    tags: Mapping[str, Any] | None = None,
    drop: tuple[int, ...] = (),
) -> Path:
    """One file per slice and frame, in no order; a slope per slice, as PET scanners write them.

    Args:
        volume: [X, Y, Z] with an affine whose columns are right-angled.
        tags: DICOM keywords to set, or with None to leave out.
        drop: slices that are missing.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    zooms = np.linalg.norm(lps[:3, :3], axis=0)
    who = patient["PatientID"]
    sop = {"PT": "1.2.840.10008.5.1.4.1.1.128", "MR": "1.2.840.10008.5.1.4.1.1.4"}[modality]
    for frame in range(frames):
        for place in range(volume.data.shape[2]):
            if place in drop:
                continue
            data = pydicom.Dataset()
            for keyword, value in patient.items():
                setattr(data, keyword, value)
            data.SOPClassUID = pydicom.uid.UID(sop)
            key = [who, modality, str(number)]
            data.SOPInstanceUID = generate_uid(entropy_srcs=[*key, str(frame), str(place)])
            data.StudyInstanceUID = generate_uid(entropy_srcs=[who, "study"])
            data.FrameOfReferenceUID = generate_uid(entropy_srcs=[who, "place"])
            data.SeriesInstanceUID = generate_uid(entropy_srcs=key)
            data.Modality, data.SeriesNumber = modality, str(number)
            data.InstanceNumber = str(frame * 1000 + place + 1)
            data.ImageType = ["ORIGINAL", "PRIMARY"]
            data.StudyDate, data.StudyTime, data.StudyID = "20260102", "115000", "1"
            data.Manufacturer, data.InstitutionName = "ACME", "St Elsewhere"
            data.ImageOrientationPatient = [
                f"{v:.8f}" for axis in (0, 1) for v in lps[:3, axis] / zooms[axis]
            ]
            data.ImagePositionPatient = [f"{v:.6f}" for v in lps[:3, 2] * place + lps[:3, 3]]
            data.PixelSpacing = [f"{zooms[1]:.6f}", f"{zooms[0]:.6f}"]
            data.SliceThickness = f"{zooms[2]:.6f}"
            if modality == "PT":
                _add_pet(data, frame, duration_s)
            image = volume.data[:, :, place].T
            _add_pixels(data, image, 1.0 if modality == "MR" else max(image.max() / 30000, 1e-6))
            for keyword, value in (tags or {}).items():
                if value is None:
                    delattr(data, keyword)
                else:
                    setattr(data, keyword, value)
            data.add_new((0x0029, 0x0010), "LO", "ACME PRIVATE")
            data.add_new((0x0029, 0x1010), "OB", b"DOE^JANE private")
            meta = pydicom.dataset.FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = pydicom.uid.UID(sop)
            meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
            data.file_meta = meta
            shuffled = (7 * place + 3 * frame) % 1009
            data.save_as(folder / f"I{shuffled:04d}{frame:02d}", enforce_file_format=True)
    return folder


def _add_pet(data: Any, frame: int, duration_s: float) -> None:
    import pydicom

    for keyword, value in PET_MODULE.items():
        setattr(data, keyword, value)
    clock = 12 * 3600 + frame * duration_s
    data.AcquisitionDate = "20260102"
    minutes, seconds = divmod(clock, 60)
    data.AcquisitionTime = f"{int(minutes // 60):02d}{int(minutes % 60):02d}{seconds:09.6f}"
    data.ActualFrameDuration = str(int(1000 * duration_s))
    data.FrameReferenceTime = f"{1000 * (frame + 0.5) * duration_s:.1f}"
    drug = pydicom.Dataset()
    drug.RadionuclideTotalDose = "200000000"
    drug.RadionuclideHalfLife = "6586.2"
    drug.RadiopharmaceuticalStartTime = "110000.00"
    data.RadiopharmaceuticalInformationSequence = [drug]


def _add_pixels(data: Any, image: npt.NDArray[Any], slope: float) -> None:
    data.Rows, data.Columns = image.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    text = f"{slope:.8g}"
    data.RescaleSlope, data.RescaleIntercept = text, "0"
    data.PixelData = np.rint(image / float(text)).clip(0, 65535).astype("<u2").tobytes()


@pytest.fixture(scope="session")
def make_dicom() -> MakeDicom:
    """``make_dicom(folder, volume, "PT" or "MR", number, duration_s, frames, patient, tags)``."""
    return _make_dicom
