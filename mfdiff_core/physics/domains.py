"""The recipes: the paper's phantom set and simulated stand-ins of its three in-vivo domains."""

from __future__ import annotations

import dataclasses
from typing import Literal

from mfdiff_core.physics.acquisition import (
    AcquisitionConfig,
    FrameConfig,
    ReconConfig,
    ScannerConfig,
)
from mfdiff_core.physics.activity import ActivityConfig
from mfdiff_core.physics.head import ContrastConfig
from mfdiff_core.physics.kinetics import ProtocolConfig
from mfdiff_core.physics.lesions import LesionConfig
from mfdiff_core.physics.mni import AnatomyConfig
from mfdiff_core.physics.phantom import TissueValues
from mfdiff_core.physics.recipe import GridConfig, SettingConfig, SimulationConfig, SlicesConfig

DOMAINS = ("phantom", "ood1", "ood2", "ood3")
View = Literal["headbox", "crop192"]

_PHANTOM_MM, _INVIVO_MM = 2.08626, 1.39084
_NATIVE_DIVISOR, _HEADBOX_DIVISOR = 100.0, 160.0
_QUICK_GRID = GridConfig(recon_px=128, recon_mm=_PHANTOM_MM, field_px=128, output_px=128)
# eight images cost no more than five: the matrix is read once for all of them
_QUICK_SLICES = SlicesConfig(indices=tuple(range(66, 82, 2)), num_rotations=1)

# Relative FDG activity of the reference recipe.
_FDG = TissueValues(
    csf=8.0,
    grey=96.0,
    white=32.0,
    fat=8.0,
    muscle=8.0,
    skin=16.0,
    skull=8.0,
    vessels=8.0,
    connective=8.0,
    dura=8.0,
    marrow=8.0,
)
# BrainWeb's T1 signal.
_T1_PHANTOM = TissueValues(
    csf=48.0,
    grey=106.0,
    white=154.0,
    fat=0.0,
    muscle=0.0,
    skin=92.0,
    skull=48.0,
    vessels=0.0,
    connective=0.0,
    dura=0.0,
    marrow=48.0,
)


def recipe(domain: str, *, quick: bool = False, view: View = "headbox") -> SimulationConfig:
    """Settings of a domain.

    Args:
        domain: "phantom" (the external stage, Sec. 4.2), or a stand-in of Sec. 4.3: "ood1"
            (imaging time), "ood2" (injected dose), "ood3" (administration).
        quick: 128 x 128 pixels, eight slices, no rotations; the same physics.
        view: of "phantom" only. "headbox": the central 267 mm on 192 pixels, as large in the image
            as the in-vivo domains; "crop192": 192 native pixels, 400 mm.

    Raises:
        ValueError: unknown domain.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {domain=}")
    stand_ins = {"ood1": _ood1, "ood2": _ood2, "ood3": _ood3}
    config = _phantom(view) if domain == "phantom" else stand_ins[domain]()
    if not quick:
        return config
    return dataclasses.replace(
        config,
        grid=_QUICK_GRID,
        slices=_QUICK_SLICES,
        scanner=dataclasses.replace(config.scanner, num_bins=128, counts_divisor=_NATIVE_DIVISOR),
    )


def _phantom(view: View) -> SimulationConfig:
    """Sec. 4.2; what it leaves open follows the reference recipe of its ref. [22].

    The divisor is the one that reproduces the LPET row of Table 1 in either view; interpolating
    the head box to 192 pixels smooths noise, so it needs fewer counts.
    """
    head = view == "headbox"
    grid = GridConfig(
        recon_px=128 if head else 192,
        recon_mm=_PHANTOM_MM,
        field_px=128 if head else 192,
        output_px=192,
    )
    standard = AcquisitionConfig(
        name="sd",
        counts_3d=(1e10, 1e10),
        divide_counts=False,
        psf_data_mm=2.5,
        recon=ReconConfig(num_iterations=15, num_subsets=10, psf_mm=2.5),
    )
    low = AcquisitionConfig(
        name="ld",
        counts_3d=(9e7, 12e7),
        psf_data_mm=4.0,
        recon=ReconConfig(num_iterations=10, num_subsets=14, psf_mm=2.5),
    )
    return SimulationConfig(
        domain="phantom",
        settings=(SettingConfig(name="ld", low=low, standard=standard),),
        grid=grid,
        scanner=ScannerConfig(
            num_bins=grid.recon_px, counts_divisor=_HEADBOX_DIVISOR if head else _NATIVE_DIVISOR
        ),
        contrast=ContrastConfig(mr=_T1_PHANTOM),
        activity=ActivityConfig(fixed=_FDG),
    )


# ---- stand-ins: Monash mMR, 3 iterations x 21 subsets, post-filter, 1.39 mm pixels (Sec. 4.3) ----

_STANDARD_S = (1800.0, 1800.0)  # start and length of the SPET: 30 minutes from minute 30 on
_FRAME_S, _TWO_MINUTES_S = 16.0, 128.0  # a frame of the scans; two minutes are eight of them
_CENTRE_S = 2700.0  # where the short windows of ood1 and ood2 lie; infusion goes on all the time
_LATE_S = 3000.0  # where they lie in ood3, five minutes before its infusions end
_SCAN_END_S, _INFUSION_END_S = 5700.0, 3300.0  # ood1 and ood2 are infused for all of 95 minutes


def _pair(
    name: str,
    protocol: ProtocolConfig,
    low_s: tuple[float, float] = (_CENTRE_S, _FRAME_S),
    filter_mm: float = 5.0,
) -> SettingConfig:
    """A short window, centred on ``low_s[0]``, against the 30 minutes around it."""
    recon = ReconConfig(num_iterations=3, num_subsets=21, post_filter_mm=filter_mm)
    given = f"{protocol.kind}-{protocol.dose_mbq:g}MBq"

    def frame(start_s: float, duration_s: float) -> AcquisitionConfig:
        return AcquisitionConfig(
            name=f"{given}-{start_s:g}s+{duration_s:g}s",
            psf_data_mm=4.0,
            recon=recon,
            frame=FrameConfig(protocol=protocol, start_s=start_s, duration_s=duration_s),
        )

    middle, duration = low_s
    return SettingConfig(
        name=name, low=frame(middle - duration / 2, duration), standard=frame(*_STANDARD_S)
    )


def _stand_in(
    domain: str,
    settings: tuple[SettingConfig, ...],
    sensitivity: float,
    contrast: ContrastConfig,
    anatomy: AnatomyConfig,
) -> SimulationConfig:
    """What the domains share; ``sensitivity`` is set by the noise that the paper's LPET rows show.

    In ood1 it gives 4e5 counts in 16 s, also what 1e8 events in 150 s at 250 MBq come to, divided
    by 100 slices and multiplied by the 3.7 slices over which the axial part of the filter averages.
    The lower values of ood2 and ood3 stand for the worse rows that the paper reports there.
    """
    return SimulationConfig(
        domain=domain,
        settings=settings,
        grid=GridConfig(recon_px=192, recon_mm=_INVIVO_MM, field_px=192, output_px=192),
        scanner=ScannerConfig(
            sensitivity=sensitivity,
            normalisation="before_noise",
            normalisation_spread=0.5,
            background_fraction=0.3,
        ),
        contrast=contrast,
        activity=ActivityConfig(fixed=_FDG),
        lesions=LesionConfig(num_pet=6, num_mr=6, radius_mm=(4.0, 7.0)),
        anatomy=anatomy,
    )


_T1_MPRAGE = TissueValues(
    csf=28.0,
    grey=104.0,
    white=168.0,
    fat=210.0,
    muscle=85.0,
    skin=110.0,
    skull=18.0,
    vessels=60.0,
    connective=70.0,
    dura=60.0,
    marrow=150.0,
)


def _infused(dose_mbq: float, end_s: float = _SCAN_END_S) -> ProtocolConfig:
    return ProtocolConfig(kind="infusion", dose_mbq=dose_mbq, infusion_end_s=end_s)


def _ood1() -> SimulationConfig:
    """Imaging time (Sec. 4.3.1): one frame of 16 s, or two minutes."""
    protocol = _infused(233.0)
    return _stand_in(
        "ood1",
        (
            _pair("16s", protocol),
            _pair("2min", protocol, (_CENTRE_S, _TWO_MINUTES_S)),
        ),
        1.1,
        ContrastConfig(mr=_T1_MPRAGE, pet_texture=0.08, pet_regional=0.08, mr_bias=0.06),
        AnatomyConfig(
            prefix="ood1",
            num_subjects=6,
            scale=(1.0, 0.03),
            cortex=0.05,
            fold_std=0.16,
            skin_mm=3.6,
        ),
    )


def _ood2() -> SimulationConfig:
    """Injected dose (Sec. 4.3.2): 225 or 167 MBq, one frame of 16 s."""
    return _stand_in(
        "ood2",
        (_pair("ld", _infused(225.0)), _pair("uld", _infused(167.0))),
        0.45,
        ContrastConfig(
            mr=dataclasses.replace(_T1_MPRAGE, csf=40.0, grey=120.0, white=160.0, fat=180.0),
            pet_texture=0.08,
            pet_regional=0.1,
            mr_bias=0.1,
            mr_noise=0.02,
        ),
        AnatomyConfig(
            prefix="ood2",
            num_subjects=6,
            scale=(0.94, 0.03),
            cortex=-0.03,
            fold_std=0.2,
            fat_mm=2.6,
        ),
    )


def _ood3() -> SimulationConfig:
    """Administration (Sec. 4.3.3): mean doses of the three groups, one frame near minute 50."""
    hybrid = ProtocolConfig(kind="hybrid", dose_mbq=244.3, infusion_end_s=_INFUSION_END_S)
    low_s, filter_mm = (_LATE_S, _FRAME_S), 4.0  # the filter that the scans' own headers give
    return _stand_in(
        "ood3",
        (
            _pair("bolus", ProtocolConfig(kind="bolus", dose_mbq=262.9), low_s, filter_mm),
            _pair("infusion", _infused(256.7, _INFUSION_END_S), low_s, filter_mm),
            _pair("hybrid", hybrid, low_s, filter_mm),
        ),
        0.3,
        ContrastConfig(
            mr=dataclasses.replace(_T1_MPRAGE, csf=20.0, grey=92.0, white=172.0, marrow=170.0),
            pet_texture=0.08,
            pet_regional=0.12,
            mr_bias=0.08,
            mr_noise=0.015,
        ),
        AnatomyConfig(
            prefix="ood3",
            num_subjects=6,
            scale=(1.03, 0.03),
            cortex=0.02,
            fold_std=0.24,
            csf_mm=3.6,
        ),
    )
