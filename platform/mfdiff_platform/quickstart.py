"""The whole chain in minutes: simulate, pretrain, adapt, choose, restore.

Every step is the function that the verb of its name calls; only the sizes are small.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfdiff_core.bundle import Bundle, load_bundle
from mfdiff_core.data.dataset import Dataset, SliceSet, open_dataset
from mfdiff_core.data.nifti import Modality, read_volume, write_volume
from mfdiff_core.data.volumes import Volume, axial_slices, from_axial_slices
from mfdiff_core.evaluation.figures import Image, comparison_figure
from mfdiff_core.files import write_bytes
from mfdiff_core.model import preset
from mfdiff_core.restore import restore_volume
from mfdiff_core.training.loop import TrainConfig
from mfdiff_core.training.optim import OptimConfig
from mfdiff_platform.adapt import Adapted, adapt
from mfdiff_platform.cluster import connect
from mfdiff_platform.plan import StudyPlan, plan_study
from mfdiff_platform.pretrain import PretrainRequest, Workers, pretrain
from mfdiff_platform.registry import SiteModels
from mfdiff_platform.search_space import spaces_folder
from mfdiff_platform.session import SearchScale
from mfdiff_platform.simulate import SimulationRequest, simulate
from mfdiff_platform.tracking import TrackingStore
from mfdiff_platform.workspace import Workspace

NAME, DOMAIN = "quickstart", "ood3"
SUBJECTS = {"phantom": 20, "ood1": 4, "ood2": 4, "ood3": 10}
TRIALS = 6
KBQ = 1e-3
PLANE_MM = 2.03125
"""Distance of the scanner's planes; slice indices count them."""


@dataclass(frozen=True)
class QuickstartResult:
    """Where everything is.

    Attributes:
        adapted: study, table and site model.
        scan: folder with the held-out scan and its restoration.
        picture: a restored slice of it.
        dashboard: address of the Ray dashboard while a command runs.
        seconds: wall time.
    """

    adapted: Adapted
    scan: Path
    picture: Path
    dashboard: str
    seconds: float


def quickstart(workspace: Workspace, store: TrackingStore, seed: int = 0) -> QuickstartResult:
    """Run the chain; what an earlier call finished is kept."""
    started = time.monotonic()
    with connect() as cluster:
        for domain, subjects in SUBJECTS.items():
            request = SimulationRequest(domain, quick=True, num_subjects=subjects, seed=seed)
            simulate(request, dataset_folder(workspace, domain))
        pretrained = pretrain(workspace, store, pretraining(workspace, seed), _workers(2))
        study = plan_study(workspace, study_plan(workspace, pretrained, seed))
        adapted = adapt(workspace, store, study, SearchScale(trials=TRIALS))
    bundle = load_bundle(SiteModels(store).resolve(adapted.model))
    dataset = open_dataset(dataset_folder(workspace, DOMAIN))
    scan, picture = restore_held_out_scan(workspace, bundle, dataset, seed)
    seconds = time.monotonic() - started
    return QuickstartResult(adapted, scan, picture, cluster.dashboard, seconds)


def dataset_folder(workspace: Workspace, domain: str) -> Path:
    """Small datasets of the quick start, beside those of full size."""
    return workspace.dataset(f"{NAME}-{domain}")


def pretraining(workspace: Workspace, seed: int) -> PretrainRequest:
    """The external stage, cut to what two CPU cores do in about two minutes."""
    return PretrainRequest(
        name=NAME,
        data=str(dataset_folder(workspace, "phantom")),
        model=preset("quick"),
        train=TrainConfig(
            iterations=320,
            optim=OptimConfig(lr=4e-3, warmup=20, schedule="cosine", ema=0.99),
            seed=seed,
            log_every=10,
            validate_every=80,
            snapshot_every=160,
        ),
        batch_size=8,
        augment="affine",
    )


def study_plan(workspace: Workspace, pretrained: Bundle, seed: int) -> StudyPlan:
    """The internal stage: three references and a few points of the quick-start space."""
    return StudyPlan(
        domain=DOMAIN,
        name=NAME,
        data=dataset_folder(workspace, DOMAIN),
        phantom=dataset_folder(workspace, "phantom"),
        pretrained=pretrained.folder,
        space_file=spaces_folder() / f"{NAME}.yaml",
        scheduler="none",
        validations=3,
        seed=seed,
    )


def _workers(count: int) -> Workers:
    return Workers(count=count, on_gpu=False)


def restore_held_out_scan(
    workspace: Workspace, bundle: Bundle, dataset: Dataset, seed: int
) -> tuple[Path, Path]:
    """Write a test subject as NIfTI files and restore it from them, as a user would.

    Returns:
        The folder of the scan and the picture of its middle slice.
    """
    folder = workspace.root / NAME
    slices = test_subject(dataset)
    pet, mr, spet = (folder / f"{name}.nii.gz" for name in ("lpet", "t1", "spet"))
    write_volume(pet, to_volume(slices, "x_p", "scale"))
    write_volume(mr, to_volume(slices, "x_m", "mr_scale"))
    write_volume(spet, to_volume(slices, "x_s", "scale"))
    lpet = read_volume(pet, "pet")
    restored = restore_volume(bundle, lpet, read_volume(mr, "mr"), seed=seed)
    write_volume(folder / "restored.nii.gz", restored.pet)
    picture = workspace.picture("quickstart.png")
    write_bytes(picture, _picture(folder, slices.infos[0].voxel_mm))
    return folder, picture


def test_subject(dataset: Dataset) -> SliceSet:
    """One setting of the first test subject, slices in order from feet to head."""
    test = dataset.part("test")
    first = test.infos[0]
    chosen = test.select(
        lambda info: (
            (info.subject, info.setting, info.rotation_index) == (first.subject, first.setting, 0)
        )
    )
    heights = [info.slice_index for info in chosen.infos]
    assert heights == sorted(heights), "shards hold slices in order"
    return chosen


def to_volume(slices: SliceSet, name: str, scale: str) -> Volume:
    """Axial slices in physical units as a volume, at the phantom's slice distance."""
    images = getattr(slices, name)[:, 0].numpy()
    factors = np.array([getattr(info, scale) for info in slices.infos], dtype=np.float32)
    stack = images * factors[:, None, None]
    gaps = np.diff([info.slice_index for info in slices.infos])
    voxel_mm, slice_mm = slices.infos[0].voxel_mm, float(gaps.min()) * PLANE_MM
    grid = np.zeros(stack.shape[::-1], dtype=np.float32)
    affine = np.diag([voxel_mm, voxel_mm, slice_mm, 1.0])
    return from_axial_slices(stack, Volume(grid, affine))


def _picture(folder: Path, voxel_mm: float) -> bytes:
    """The middle slice of the files that were written, read back."""

    def middle(name: str) -> Image:
        modality: Modality = "mr" if name == "t1" else "pet"
        stack = axial_slices(read_volume(folder / f"{name}.nii.gz", modality))
        return np.ascontiguousarray(stack[len(stack) // 2])

    return comparison_figure(
        {"LPET": middle("lpet") * KBQ, "restored": middle("restored") * KBQ},
        middle("spet") * KBQ,
        x_m=middle("t1"),
        voxel_mm=voxel_mm,
        title="Held-out test subject",
    )
