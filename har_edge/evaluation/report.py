"""Figures over predictions, as values that can be written as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from har_edge.config.catalog import FoundModel, SplitScore
from har_edge.config.task import Task
from har_edge.data.recording import Recording
from har_edge.errors import ConfigError, DataError
from har_edge.evaluation.comparison import Comparison
from har_edge.evaluation.metrics import confusion_matrix, count_classes, rank_of
from har_edge.evaluation.packed import PackedScore
from har_edge.evaluation.prediction import Prediction
from har_edge.inference.saturation import Saturation


class GroupScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One subject: its pure windows and how they did."""

    windows: int
    accuracy: float
    macro_f1: float


# More classes get no confusion matrix: a thousand would take a million cells, nearly all of them empty.
MAX_MATRIX = 64


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
    `accuracy` and `macro_f1` are None where there are none. `confusion` has a row for each true class and a column for
    each answer; it is empty, and `per_class` has the classes that occur alone, for more than 64 classes. `top_k` is the
    share of windows whose true class is among so many with the best scores, where it was asked for.
    """

    windows: int
    mixed: int
    accuracy: float | None
    macro_f1: float | None
    per_subject: dict[str, GroupScore]
    per_class: list[ClassRow]
    confusion: list[list[int]]
    labels: list[str]
    top_k: dict[int, float]


class Saturated(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The share of one source's values that saturated in what quantises them, what came, and what that takes."""

    share: float
    came: tuple[float, float]
    takes: tuple[float, float]


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
    other people, and `split` (trained without its test streams) does. `trained_on` and `split` are None for a model of
    which no manifest says that. `agreement` has an entry for each other way
    (`slices`, `mqtt`) by which the same windows were answered. `saturated` has an entry for each source whose values
    are quantised by a fixed scale. `packed` has the effect of activations that travel packed.
    """

    model: str
    model_sha256: str
    data: str
    real: bool
    trained_on: list[str] | None
    seen: list[str]
    split: SplitScore | None
    agreement: dict[str, Agreement]
    saturated: dict[str, Saturated] = {}
    packed: PackedScore | None = None


def score(predictions: Iterable[Prediction], labels: Sequence[str], top_k: Sequence[int] = ()) -> Scores:
    """Return the figures over these predictions; `labels` names the classes by index.

    Raises ConfigError for `top_k` where the model answers with a class and no scores.
    """
    streams: dict[str, tuple[list[int], list[int]]] = {}
    ranks: list[int] = []
    mixed = 0
    for prediction in predictions:
        if prediction.truth is None:
            mixed += 1
            continue
        truth, answers = streams.setdefault(prediction.stream, ([], []))
        truth.append(prediction.truth)
        answers.append(prediction.answer)
        if top_k and prediction.scores.size != len(labels):
            raise ConfigError("--top-k came, but this model answers with a class and no scores; leave it out")
        if top_k:
            ranks.append(rank_of(prediction.scores, prediction.truth))
    parts = {stream: count_classes(*pair, len(labels)) for stream, pair in streams.items()}
    truths = [one for truth, _ in streams.values() for one in truth]
    given = [one for _, answers in streams.values() for one in answers]
    whole, few = count_classes(truths, given, len(labels)), len(labels) <= MAX_MATRIX
    rows = zip(labels, whole.scores(), (whole.came + whole.asked).tolist(), strict=True)
    return Scores(
        windows=whole.windows,
        mixed=mixed,
        accuracy=whole.accuracy,
        macro_f1=whole.macro_f1,
        per_subject={
            stream: GroupScore(part.windows, part.accuracy or 0.0, part.macro_f1 or 0.0)
            for stream, part in parts.items()
        },
        per_class=[
            ClassRow(label, row.windows, row.precision, row.recall, row.f1)
            for label, row, occurs in rows
            if few or occurs
        ],
        confusion=confusion_matrix(truths, given, len(labels)).tolist() if few else [],
        labels=list(labels),
        top_k={k: sum(rank < k for rank in ranks) / len(ranks) for k in top_k if ranks},
    )


def scored(scores: Scores) -> tuple[float, float]:
    """Return accuracy and macro F1; DataError where no window was scored."""
    if scores.accuracy is None or scores.macro_f1 is None:
        raise DataError("no window of the test streams has one known activity; name others to test on")
    return scores.accuracy, scores.macro_f1


def evaluate(
    found: FoundModel,
    task: Task,
    predictions: Iterable[Prediction],
    recordings: Sequence[Recording],
    data: str,
    comparisons: Mapping[str, Comparison],
    top_k: Sequence[int] = (),
    saturations: Iterable[Saturation] = (),
    packed: PackedScore | None = None,
) -> Evaluation:
    """Return the evaluation of a model for a task; `data` says in words where the recordings are from.

    `packed` is the effect of activations that travel packed.
    """
    entry = found.entry
    scores = score(predictions, task.labels, top_k)
    real = all(recording.real for recording in recordings)
    trained_on = entry.trained_on if entry else []
    return Evaluation(
        **msgspec.structs.asdict(scores),
        model=entry.name if entry else found.path.name,
        model_sha256=found.sha256,
        data=data,
        real=real,
        trained_on=trained_on if entry else None,
        seen=[recording.stream for recording in recordings if recording.stream in trained_on and real],
        split=entry.split if entry else None,
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
        saturated={
            one.source: Saturated(one.share, (one.least, one.largest), (one.range.low, one.range.high))
            for one in saturations
        },
        packed=packed,
    )


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=2) + b"\n")
