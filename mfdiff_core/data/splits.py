"""Which subject belongs to which part. Decided once, saved, never recomputed (Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mfdiff_core.config import from_dict
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import read_json, write_json
from mfdiff_core.seeding import rng

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
PAPER_FRACTIONS = (0.8, 0.15, 0.05)
"""Of 20 phantoms: 16, 3 and 1."""
LEAST_SUBJECTS = len(PARTS)
"""One each to train on, to choose by and to test on; smaller sets have no split."""


@dataclass(frozen=True)
class Split:
    """Subjects of each part; no subject stands in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in PARTS:
            if not self.subjects(part):
                raise DataError(f"split: no subject in {part}")
        everyone = [*self.train, *self.validation, *self.test]
        twice = sorted({subject for subject in everyone if everyone.count(subject) > 1})
        if twice:
            raise DataError(
                f"split: {', '.join(twice)} in more than one part: this leaks test data"
            )

    def subjects(self, part: Part) -> tuple[str, ...]:
        """Subjects of one part."""
        chosen: tuple[str, ...] = getattr(self, part)
        return chosen

    def save(self, path: Path) -> None:
        """Write the split as JSON."""
        write_json(path, {part: list(self.subjects(part)) for part in PARTS})


def make_split(subjects: Iterable[str], fractions: tuple[float, float, float], seed: int) -> Split:
    """Shuffle subjects by ``seed`` and share them out, at least one to each part.

    Raises:
        DataError: fewer than three subjects.
    """
    names = sorted(set(subjects))
    if len(names) < LEAST_SUBJECTS:
        raise DataError(
            f"split: {len(names)} subject(s); at least {LEAST_SUBJECTS} are needed, one each"
            " to train on, to choose by and to test on"
        )
    order = [names[i] for i in rng(seed, "split").permutation(len(names))]
    num_test = min(max(1, round(fractions[2] * len(names))), len(names) - 2)
    num_validation = min(max(1, round(fractions[1] * len(names))), len(names) - num_test - 1)
    held_out = num_test + num_validation
    return Split(
        train=tuple(sorted(order[held_out:])),
        validation=tuple(sorted(order[num_test:held_out])),
        test=tuple(sorted(order[:num_test])),
    )


def load_split(path: Path) -> Split:
    """Read a saved split.

    Raises:
        DataError: missing or damaged file, an empty part, or a subject in two parts.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no split; a dataset needs at least 3 subjects, one each to train on, to"
            " choose by and to test on"
        )
    try:
        return from_dict(Split, read_json(path))
    except ConfigError as fault:
        raise DataError(f"{path}: a split lists the subjects of {PARTS} ({fault})") from None
