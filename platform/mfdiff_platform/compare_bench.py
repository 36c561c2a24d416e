"""The bench of a comparison: its datasets, its test slices, and how each row comes about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mfdiff_core.bundle import Bundle
from mfdiff_core.data.check import open_sound_dataset, shared_subjects
from mfdiff_core.data.dataset import Dataset, SliceSet, open_dataset
from mfdiff_core.errors import DataError
from mfdiff_core.training.strategies import Recipe
from mfdiff_platform.compare_plan import (
    PHANTOM,
    CompareScale,
    Comparison,
    Method,
    without_sinograms,
)
from mfdiff_platform.compare_restoration import Restoration, restoration_name, restored_by
from mfdiff_platform.compare_training import Arm, Trained, find_trained, trained
from mfdiff_platform.preflight import check_augmentation, check_image_size
from mfdiff_platform.slice_parts import evenly
from mfdiff_platform.workspace import Workspace


@dataclass(frozen=True)
class Bench:
    """Everything that decides the rows of a comparison.

    Attributes:
        workspace: holds ``comparisons``, with all that was ever trained or restored.
        comparison: rows and domain.
        scale: how much is trained.
        domain: slices of the domain.
        phantom: those of the external stage, if there is one.
    """

    workspace: Workspace
    comparison: Comparison
    scale: CompareScale
    domain: Dataset
    phantom: Dataset | None

    @cached_property
    def test(self) -> SliceSet:
        """The slices that decide."""
        part = self.domain.part("test", self.comparison.setting or None)
        return evenly(part, self.scale.test_slices)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """That of the domain, and that of the external stage if it is another."""
        both = self.phantom is not None and self.phantom is not self.domain
        return (self.domain, self.phantom) if both and self.phantom else (self.domain,)

    def check(self) -> None:
        """Refuse networks that do not fit the slices, and test subjects that are no strangers.

        Raises:
            ConfigError: a network does not fit.
            DataError: the external stage trains on test subjects.
        """
        for method in self.comparison.methods:
            arm = self.arm(method)
            for dataset in self.datasets:
                check_image_size(dataset, arm.model)
            check_augmentation(arm.model, arm.recipe.augment)
        for other in self.datasets[1:]:
            if shared := shared_subjects(self.domain, other):
                raise DataError(
                    f"{other.folder}: trains on test subjects of {self.domain.folder}"
                    f" ({', '.join(shared)}); give --phantom a dataset without them"
                )

    def carry_out(self, method: Method) -> tuple[Trained, Restoration]:
        """Train and restore a row, or find what an earlier comparison left.

        Raises:
            ConfigError: slices and network are of different size.
            TrainingError: the training diverged or ran out of memory.
        """
        done = trained(self.arm(method), self._models)
        folder = self._restoration(method, done.bundle)
        return done, restored_by(method, done.bundle, self.test, self.scale, folder)

    def is_done(self, method: Method) -> bool:
        """Whether a row has only to be read."""
        bundle = find_trained(self.arm(method), self._models)
        return bundle is not None and self._restoration(method, bundle).is_dir()

    def chains(self) -> list[list[Method]]:
        """The rows, those together that begin with the same training."""
        by_start: dict[str, list[Method]] = {}
        for method in self.comparison.methods:
            by_start.setdefault(self.arm(method).first.fingerprint, []).append(method)
        return list(by_start.values())

    def arm(self, method: Method) -> Arm:
        """The training behind a row; rows of one training share it by fingerprint."""
        label, domain = method.label.partition(",")[0], self.comparison.domain
        scratch = Arm(
            label=label,
            model=method.config(self.scale.size),
            recipe=replace(self.scale.recipe, strategy="internal"),
            data=self.domain,
            precision=self.scale.precision,
            seed=self.scale.seed,
        )
        if domain == PHANTOM:
            return scratch
        external = None
        if self.phantom is not None:
            external = replace(scratch, label=f"{label} on phantoms", data=self.phantom)
        if method.strategy == "external":
            assert external is not None, "phantoms were opened for this strategy"
            return external
        recipe = _adapting(method, self.scale)
        return replace(
            scratch,
            label=f"{label} on {domain}",
            recipe=recipe,
            phantom=self.phantom if method.strategy == "single_stage" else None,
            parent=external if recipe.starts_pretrained else None,
        )

    @property
    def _models(self) -> Path:
        return self.workspace.comparison("models")

    def _restoration(self, method: Method, bundle: Bundle) -> Path:
        name = restoration_name(method, bundle, self.test, self.domain, self.scale)
        return self.workspace.comparison("restored") / name


def open_bench(
    workspace: Workspace,
    comparison: Comparison,
    scale: CompareScale,
    data: Path | None = None,
    phantom: Path | None = None,
    *,
    thorough: bool = True,
) -> Bench:
    """The bench of a comparison; FB-SEM is left out where the slices carry no sinograms.

    Args:
        workspace: holds datasets, and ``comparisons`` with everything that is written.
        comparison: rows and domain.
        scale: how much is trained.
        data, phantom: dataset folders instead of the workspace's.
        thorough: look at every value, which once is enough.

    Raises:
        DataError: a dataset is missing or damaged.
        ConfigError: no row is left.
    """
    opened = open_sound_dataset if thorough else open_dataset
    domain = opened((data or workspace.dataset(comparison.domain)).absolute())
    if not domain.manifest.sinograms:
        comparison = without_sinograms(comparison)
    external: Dataset | None = None
    if comparison.domain == PHANTOM:
        external = domain
    elif {method.strategy for method in comparison.methods} != {"internal"}:
        external = opened((phantom or workspace.dataset(PHANTOM)).absolute())
    return Bench(workspace, comparison, scale, domain, external)


def _adapting(method: Method, scale: CompareScale) -> Recipe:
    """Second stage; a single stage takes the iterations of both, so that all are equal."""
    iterations = scale.adapt_iterations
    if method.strategy == "single_stage":
        iterations += scale.recipe.iterations
    warmup = min(scale.recipe.warmup, iterations // 20)
    recipe = replace(scale.recipe, strategy=method.strategy, iterations=iterations, warmup=warmup)
    return replace(recipe, lr=recipe.lr * scale.adapt_rate) if recipe.starts_pretrained else recipe
