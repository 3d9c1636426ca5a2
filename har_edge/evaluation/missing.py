"""Score a model with each of its sources missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from har_edge.config.task import Task
from har_edge.data.recording import Recording
from har_edge.errors import ConfigError
from har_edge.evaluation.prediction import Classifier, predict_recordings
from har_edge.evaluation.report import score


class WithoutSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures over all pure windows when one source is missing in every one."""

    source: str
    windows: int
    accuracy: float | None
    macro_f1: float | None


def score_without_each(classifier: Classifier, recordings: Sequence[Recording], task: Task) -> Iterator[WithoutSource]:
    """Yield the figures with each source of the task missing, in its order.

    Raises ConfigError for a task of one source: without it there is nothing to answer from.
    """
    if len(task.inputs) < 2:
        raise ConfigError(
            f"the model takes {', '.join(task.inputs)} and nothing else; expected two sources or more, of which one "
            "can be missing"
        )
    for source in task.inputs:
        scores = score(predict_recordings(classifier, recordings, task, frozenset({source})), task.labels)
        yield WithoutSource(source, scores.windows, scores.accuracy, scores.macro_f1)
