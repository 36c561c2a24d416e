"""The foot of a comparison's table: what was done for each row, in words."""

from __future__ import annotations

from collections.abc import Mapping

from mfdiff_core.model import ModelConfig, build_model
from mfdiff_platform.code_state import code_fingerprint
from mfdiff_platform.compare_bench import Bench
from mfdiff_platform.compare_restoration import Restoration
from mfdiff_platform.compare_training import THEN, VALIDATION_SLICES, VALIDATIONS, Arm, Trained
from mfdiff_platform.pretrain_request import fast_sampler

_USUAL_BETAS = (0.9, 0.999)


def facts(
    bench: Bench, trained: Mapping[str, Trained], restored: Mapping[str, Restoration]
) -> dict[str, str]:
    """What the numbers rest on, by name.

    Args:
        bench: what was compared.
        trained, restored: what came of each row, by its label.
    """
    test, manifest = bench.test, bench.domain.manifest
    subjects = {info.subject for info in test.infos}
    rows = {m.label: bench.arm(m) for m in bench.comparison.methods if m.mean_of == 1}
    found = {
        "data": f"{manifest.domain}, fingerprint {manifest.fingerprint[:16]}",
        "test": f"{len(test)} slices of {len(subjects)} subject(s) that no training has seen",
        "networks": f"preset {bench.scale.size}",
        "training": grouped({label: _stages(arm) for label, arm in rows.items()}),
        "all trainings": _shared(bench),
        "Adam's betas": grouped({label: _betas(arm) for label, arm in rows.items()}),
        "weights kept": _choice(rows),
        "losses": grouped({label: arm.model.loss_text for label, arm in rows.items()}),
        "samplers": _samplers(bench),
        "code": f"mfdiff-platform {code_fingerprint()}",
        "trained by": grouped({label: THEN.join(trained[label].by) for label in rows}),
        "restored by": grouped({m.label: restored[m.label].by for m in bench.comparison.methods}),
    }
    if bench.phantom is not None and bench.phantom is not bench.domain:
        found["phantoms"] = f"fingerprint {bench.phantom.manifest.fingerprint[:16]}"
    return {name: text for name, text in found.items() if text}


def grouped(texts: Mapping[str, str]) -> str:
    """One text if all rows have the same, else each with the rows that have it."""
    rows: dict[str, list[str]] = {}
    for label, text in texts.items():
        rows.setdefault(text, []).append(label)
    if len(rows) == 1:
        return next(iter(rows))
    return "; ".join(f"{' / '.join(labels)}: {text}" for text, labels in rows.items())


def _stages(arm: Arm) -> str:
    """The stages of a training, first to last."""
    before = f"{_stages(arm.parent)}, then " if arm.parent else ""
    recipe, mixed = arm.recipe, " mixed with phantoms" if arm.phantom else ""
    return (
        f"{before}{recipe.iterations} iterations on {arm.data.manifest.domain}{mixed} at"
        f" {recipe.lr:g} (warm-up {recipe.warmup})"
    )


def _shared(bench: Bench) -> str:
    recipe, scale = bench.scale.recipe, bench.scale
    layers = f", layer decay {recipe.layer_decay:g}" if recipe.layer_decay != 1 else ""
    return (
        f"batch {recipe.batch_size}, AdamW ({recipe.schedule} rate, weight decay"
        f" {recipe.weight_decay:g}{layers}), averaged at {recipe.ema:g}, augmentation"
        f" {recipe.augment}, all settings of a domain together, {scale.precision},"
        f" seed {scale.seed}"
    )


def _betas(arm: Arm) -> str:
    betas = build_model(arm.model, seed=0).betas
    return f"{betas[0]:g} and {betas[1]:g}{', as published' if betas != _USUAL_BETAS else ''}"


def _choice(rows: Mapping[str, Arm]) -> str:
    """Which of a training's weights are kept, and with which sampler that is found out."""
    other = [
        f"{label} by {fast.name} in {fast.num_evaluations} evaluations"
        for label, arm in rows.items()
        if isinstance(arm.model, ModelConfig)
        and (fast := fast_sampler(arm.model)) != arm.model.sampler
    ]
    return (
        f"of each stage those of the better of {VALIDATIONS} validations, half-way and at the end,"
        f" by PSNR on at most {VALIDATION_SLICES} slices of each setting"
        f"{''.join(f'; {text}' for text in other)}"
    )


def _samplers(bench: Bench) -> str:
    """Of the rows that sample; empty where none does."""
    rows = {m.label: m.restoring(bench.scale.size) for m in bench.comparison.methods}
    found = {label: config.sampler_text for label, config in rows.items() if config.sampler_text}
    return grouped(found) if found else ""
