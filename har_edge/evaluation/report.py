"""Figures over predictions, as values that can be written as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from har_edge.errors import ModelError
from har_edge.evaluation.comparison import Comparison
from har_edge.evaluation.metrics import Confusion, accuracy, class_scores, confusion_matrix, macro_f1
from har_edge.evaluation.prediction import Prediction
from har_edge.planning.catalog import FoundModel, SplitScore
from har_edge.streams.recording import Recording


class GroupScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One subject: its pure windows and how they did."""

    windows: int
    accuracy: float
    macro_f1: float


class ClassRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One activity: its pure windows and how they did."""

    label: str
    windows: int
    precision: float
    recall: float
    f1: float


class Scores(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures over all pure windows: those in which one known activity lasts throughout.

    `mixed` counts the windows that were left out: two activities in one, or a label that the model does not know.
    `confusion` has a row for each true class and a column for each answer.
    """

    windows: int
    mixed: int
    accuracy: float
    macro_f1: float
    per_subject: dict[str, GroupScore]
    per_class: list[ClassRow]
    confusion: list[list[int]]
    labels: list[str]


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many answers that came another way equal those of the whole model."""

    identical: bool
    equal: int
    different: int
    missing: int
    extra: int


class Evaluation(Scores, frozen=True, forbid_unknown_fields=True):
    """The figures of one model file on some recordings, and what they are worth.

    `seen` names the streams that the weights were trained on: where it is not empty, the figures say nothing about
    other people, and `split` (trained without its test streams) does. `agreement` has an entry for each other way
    (`slices`, `mqtt`) by which the same windows were answered.
    """

    model: str
    model_sha256: str
    data: str
    real: bool
    trained_on: list[str]
    seen: list[str]
    split: SplitScore
    agreement: dict[str, Agreement]


def score(predictions: Iterable[Prediction], labels: Sequence[str]) -> Scores:
    """Return the figures over these predictions; `labels` names the classes by index."""
    streams: dict[str, tuple[list[int], list[int]]] = {}
    mixed = 0
    for prediction in predictions:
        if prediction.truth is None:
            mixed += 1
            continue
        truth, answers = streams.setdefault(prediction.stream, ([], []))
        truth.append(prediction.truth)
        answers.append(prediction.answer)
    parts = {stream: confusion_matrix(*pair, len(labels)) for stream, pair in streams.items()}
    whole: Confusion = sum(parts.values(), np.zeros((len(labels), len(labels)), np.int64))
    return Scores(
        windows=int(whole.sum()),
        mixed=mixed,
        accuracy=accuracy(whole),
        macro_f1=macro_f1(whole),
        per_subject={
            stream: GroupScore(int(part.sum()), accuracy(part), macro_f1(part)) for stream, part in parts.items()
        },
        per_class=[
            ClassRow(label, row.windows, row.precision, row.recall, row.f1)
            for label, row in zip(labels, class_scores(whole), strict=True)
        ],
        confusion=whole.tolist(),
        labels=list(labels),
    )


def evaluate(
    found: FoundModel,
    predictions: Iterable[Prediction],
    recordings: Sequence[Recording],
    data: str,
    comparisons: Mapping[str, Comparison],
) -> Evaluation:
    """Return the evaluation of a model that has an entry; `data` says in words where the recordings are from."""
    entry = found.entry
    if entry is None:
        raise ModelError(f"{found.path}: no manifest says what this model answers; expected an entry with its hash")
    scores = score(predictions, entry.task.labels)
    real = all(recording.real for recording in recordings)
    return Evaluation(
        **msgspec.structs.asdict(scores),
        model=entry.name,
        model_sha256=found.sha256,
        data=data,
        real=real,
        trained_on=entry.trained_on,
        seen=[recording.stream for recording in recordings if recording.stream in entry.trained_on and real],
        split=entry.split,
        agreement={
            way: Agreement(
                comparison.identical,
                comparison.equal,
                len(comparison.different),
                len(comparison.missing),
                len(comparison.extra),
            )
            for way, comparison in comparisons.items()
        },
    )


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2) + b"\n")
