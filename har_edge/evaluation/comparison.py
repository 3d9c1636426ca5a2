"""Answers that came another way (slices, MQTT) against the predictions of the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from har_edge.evaluation.prediction import Prediction
from har_edge.inference.interpreter import Port

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that a result gives for one window: the class index and the model's score for it."""

    index: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers that agree and that do not, by (stream, seq); `identical` only if none is missing, extra or different."""

    equal: int
    different: tuple[Key, ...]
    missing: tuple[Key, ...]
    extra: tuple[Key, ...]

    @property
    def identical(self) -> bool:
        return not (self.different or self.missing or self.extra)


def compare_answers(expected: Iterable[Prediction], came: Mapping[Key, Answer], output: Port) -> Comparison:
    """Compare class and confidence, to the last bit, by (stream, seq): the way to check what came over MQTT.

    `output` is the port the scores came from; it turns them into the numbers that a result carries.
    """
    wanted = {
        (prediction.stream, prediction.seq): Answer(prediction.answer, prediction.confidence(output))
        for prediction in expected
    }
    return _compare({key: came.get(key) == answer for key, answer in wanted.items()}, set(came))


def compare_scores(expected: Iterable[Prediction], came: Iterable[Prediction]) -> Comparison:
    """Compare whole outputs, bit for bit: the way to check composed slices."""
    wanted = {(prediction.stream, prediction.seq): prediction.scores.tobytes() for prediction in expected}
    got = {(prediction.stream, prediction.seq): prediction.scores.tobytes() for prediction in came}
    return _compare({key: got.get(key) == scores for key, scores in wanted.items()}, set(got))


def _compare(right: Mapping[Key, bool], came: set[Key]) -> Comparison:
    return Comparison(
        equal=sum(right.values()),
        different=tuple(key for key, good in right.items() if not good and key in came),
        missing=tuple(key for key in right if key not in came),
        extra=tuple(sorted(came - set(right))),
    )
