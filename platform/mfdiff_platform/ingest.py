"""Real scans to a dataset like a simulated one: one shard per subject, manifest and split.

Subjects are written under pseudonyms, and finished ones are kept when the command is run again.
A subject that cannot be used is listed and does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mfdiff_core.config import from_dict, to_dict
from mfdiff_core.data.facts import dataset_facts
from mfdiff_core.data.manifest import (
    MANIFEST,
    SHARDS,
    SPLIT,
    Manifest,
    describe_shard,
    load_manifest,
    unique,
)
from mfdiff_core.data.slices import SliceRecord, read_shard, write_shard
from mfdiff_core.data.splits import LEAST_SUBJECTS, Split, load_split, make_split
from mfdiff_core.errors import ConfigError, InputFault
from mfdiff_core.files import read_json, write_json
from mfdiff_core.scans.pairing import PairedScan, registered
from mfdiff_core.scans.pairing_config import PairingConfig
from mfdiff_core.scans.pseudonyms import pseudonym
from mfdiff_core.scans.registration import Registration, simple_itk
from mfdiff_core.scans.slicing import to_records
from mfdiff_platform.ingest_page import write_subject_page
from mfdiff_platform.ingest_sources import Person
from mfdiff_platform.lpet_row import lpet_rows, mean_rows
from mfdiff_platform.names import check_name
from mfdiff_platform.progress import say, task

ORIGIN, SUBJECTS, PAGES = "origin.json", "subjects", "qc"
FRACTIONS = (0.5, 0.25, 0.25)
"""A site's handful of subjects: half to adapt on, the rest held out to choose and to test."""

SESSION_STEP = 1000
"""Planes of a subject's later sessions are numbered from here, so that no two are the same."""


@dataclass(frozen=True)
class Refused:
    """A subject that was not taken in: what the source calls it, its pseudonym, and why."""

    name: str
    subject: str
    fault: InputFault


@dataclass(frozen=True)
class Ingested:
    """What `ingest` leaves; ``manifest`` is None if no subject could be used."""

    manifest: Manifest | None
    refused: tuple[Refused, ...]
    notes: dict[str, list[str]]


def ingest(
    people: Sequence[Person],
    *,
    domain: str,
    kind: str,
    config: PairingConfig,
    out: Path,
    salt: bytes,
    seed: int = 0,
) -> Ingested:
    """Take ``people`` into the dataset folder ``out``.

    Args:
        people: see `ingest_sources`.
        domain: name of the domain.
        kind: ``bids``, ``nifti`` or ``dicom``.
        config: how pairs are made.
        out: dataset folder; subjects that it has already are kept.
        salt: of the pseudonyms.
        seed: of the split.

    Raises:
        ConfigError: ``out`` holds a dataset made with other settings.
        DataError: registration is asked for and SimpleITK is missing.
    """
    origin = {"kind": f"ingest {kind}", "seed": seed, "config": to_dict(config)}
    _check_same(out, origin)
    if config.register:
        simple_itk()
    refused = []
    with task(f"Reading {domain}", len(people)) as shown:
        for done, person in enumerate(people, start=1):
            subject = pseudonym(salt, person.identity)
            try:
                _take_in(person, subject, domain, config, out, origin)
            except InputFault as fault:
                refused.append(Refused(person.name, subject, fault))
                say(f"{person.name} left out: {fault}")
            shown.update(done)
    subjects = sorted(path.stem for path in (out / SHARDS).glob("*.arrow"))
    if not subjects:
        return Ingested(None, tuple(refused), {})
    facts = {subject: read_json(out / SUBJECTS / f"{subject}.json") for subject in subjects}
    manifest = _finish(out, domain, config, seed, origin | {"subjects": facts}, subjects)
    notes = {subject: list(facts[subject]["notes"]) for subject in subjects}
    return Ingested(manifest, tuple(refused), notes)


def _check_same(out: Path, origin: dict[str, Any]) -> None:
    path = out / ORIGIN
    if not path.is_file():
        return
    found = read_json(path)
    # a key that is younger than the dataset has its default
    config = to_dict(from_dict(PairingConfig, found.get("config", {})))
    if found | {"config": config} != origin:
        raise ConfigError(
            f"{out} holds a dataset made with other settings; choose another --out, or remove it"
        )


def _take_in(
    person: Person,
    subject: str,
    domain: str,
    config: PairingConfig,
    out: Path,
    origin: dict[str, Any],
) -> None:
    """Write a subject's facts, page and shard, in this order: a shard says that all is there."""
    path = out / SHARDS / f"{subject}.arrow"
    if path.is_file():
        return
    records: list[SliceRecord] = []
    sessions = []
    for number, scan in enumerate(person.read(config)):
        before, motion = scan, None
        for setting in scan.lpets:
            check_name("setting", setting)
        if config.register:
            scan, motion = registered(scan, config)
        cut = to_records(scan, domain, subject, config)
        records += [_in_session(record, number) for record in cut]
        sessions.append((before, scan, motion))
    page = out / PAGES / f"{subject}.html"
    facts = [_facts(scan, motion) for _, scan, motion in sessions]
    write_subject_page(page, subject, domain, sessions, records)
    notes = list(unique([note for fact in facts for note in fact["notes"]]))
    write_json(out / SUBJECTS / f"{subject}.json", {"sessions": facts, "notes": notes})
    write_json(out / ORIGIN, origin)  # an interrupted run must not go on with other settings
    write_shard(path, records)


def _in_session(record: SliceRecord, number: int) -> SliceRecord:
    shifted = record.info.slice_index + SESSION_STEP * number
    return replace(record, info=replace(record.info, slice_index=shifted))


def _facts(scan: PairedScan, motion: Registration | None) -> dict[str, Any]:
    """What the manifest keeps of a session: nothing that names a person, day or place."""
    return {
        "dose_mbq": scan.dose_mbq if scan.dose_source else None,
        "dose_source": scan.dose_source,
        "tracer": scan.tracer,
        "protocol": scan.protocol,
        "settings": list(scan.lpets),
        "windows_s": {n: [used[0].start_s, used[-1].end_s] for n, used in scan.used.items()},
        "num_frames": {name: len(frames) for name, frames in scan.used.items()},
        "moved_mm": motion.moved_mm if motion else None,
        "mutual_information": [motion.information_before, motion.information] if motion else None,
        "notes": list(scan.notes),
    }


def _finish(
    out: Path,
    domain: str,
    config: PairingConfig,
    seed: int,
    origin: dict[str, Any],
    subjects: list[str],
) -> Manifest:
    """Split and manifest over all shards of the folder."""
    _split(out, subjects, seed)
    paths = [out / SHARDS / f"{subject}.arrow" for subject in subjects]
    shards = [read_shard(path) for path in paths]
    entries = tuple(
        describe_shard(out, path, subject, len(shard.infos))
        for path, subject, shard in zip(paths, subjects, shards, strict=True)
    )
    lpet, quantitative = mean_rows(map(lpet_rows, shards))
    manifest = Manifest(
        domain=domain,
        image_size=shards[0].arrays["x_p"].shape[-1],
        settings=unique([info.setting for shard in shards for info in shard.infos]),
        seed=seed,
        origin=origin,
        shards=entries,
        lpet=lpet,
        lpet_quantitative=quantitative,
        facts=dataset_facts(shards, config.intensity),
    )
    if (out / MANIFEST).is_file() and load_manifest(out) == manifest:
        return manifest
    manifest.save(out)
    return manifest


def _split(out: Path, subjects: list[str], seed: int) -> None:
    """Decided once; subjects that come later are for training, so that no test subject moves."""
    path = out / SPLIT
    if path.is_file():
        old = load_split(path)
        known = {*old.train, *old.validation, *old.test}
        new = [subject for subject in subjects if subject not in known]
        if new:
            Split(tuple(sorted([*old.train, *new])), old.validation, old.test).save(path)
    elif len(subjects) >= LEAST_SUBJECTS:
        make_split(subjects, FRACTIONS, seed).save(path)
