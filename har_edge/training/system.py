"""Whole systems, fitted for a study or to be shipped: the model, its reducers, and the task that joins them."""

from __future__ import annotations

from dataclasses import replace

from har_edge.data.description import StreamDescription
from har_edge.errors import ConfigError
from har_edge.evaluation.study import NO_REDUCTION, Downstream, System, Training, Variant
from har_edge.training.context import TrainingContext
from har_edge.training.fit import Progress, Recipe, no_progress
from har_edge.training.methods import (
    CodeClassifier,
    EarlyFusion,
    LateFusion,
    RestoredWindows,
    SupervisedBottleneck,
    TrainingMethod,
    is_bottleneck,
)

PRECISIONS = ("float", "int8")


class SystemTrainer:
    """Fits systems for one data set; the same variant, training and seed give the same bytes."""

    def __init__(
        self, description: StreamDescription, recipe: Recipe, *, stem: str = "har", progress: Progress = no_progress
    ) -> None:
        """Take the description as the data set has it, ungrouped; files of reducers are named after `stem`."""
        self._description = description
        self._recipe = recipe
        self._stem = stem
        self._progress = progress

    def fit(self, variant: Variant, training: Training, seed: int, unreduced: System | None) -> System:
        """Return a system that can be deployed; see evaluation/study.py.

        Raise ConfigError for a variant that cannot be, DataError where a class has no training window.
        """
        if variant.precision not in PRECISIONS:
            raise ConfigError(f"precision is {variant.precision!r}; expected one of {', '.join(PRECISIONS)}")
        return choose_method(self._context(variant, training, seed), unreduced).fit()

    def fit_early(self, grouping: str, training: Training, seed: int) -> dict[str, System]:
        """Return the network of early fusion, without reduction, in each precision, from one training."""
        variant = Variant(NO_REDUCTION, Downstream.CODES, grouping)
        return EarlyFusion(self._context(variant, training, seed)).fit_each_precision()

    def _context(self, variant: Variant, training: Training, seed: int) -> TrainingContext:
        recipe = replace(self._recipe, seed=seed)
        return TrainingContext(self._description, variant, training, recipe, self._stem, self._progress)


def choose_method(context: TrainingContext, unreduced: System | None) -> TrainingMethod:
    """Return the method that trains the variant of a context."""
    variant = context.variant
    if variant.reducer == NO_REDUCTION:
        return LateFusion(context) if variant.precision == "float" else EarlyFusion(context)
    if variant.downstream is Downstream.RESTORE:
        return RestoredWindows(context, unreduced)
    return SupervisedBottleneck(context) if is_bottleneck(variant.reducer) else CodeClassifier(context)
