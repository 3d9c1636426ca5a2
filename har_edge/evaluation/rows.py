"""From the results of trials to the rows of a study: one for each variant and number of windows a message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median, stdev

import msgspec
import numpy as np

from har_edge.data.files import natural
from har_edge.evaluation.baseline import METHOD
from har_edge.evaluation.executor import TrialOutcome
from har_edge.evaluation.metrics import Confusion, accuracy, macro_f1
from har_edge.evaluation.protocol import Protocol
from har_edge.evaluation.study import NO_REDUCTION, Downstream, Variant
from har_edge.evaluation.trial import Counts, Trial, TrialResult
from har_edge.evaluation.trial_runner import StudyConfig

NETWORK = "network"
_NONE = "-"
_PUBACK_BYTES = 4


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of one variant under one protocol, over all its folds and seeds.

    `accuracy` and `macro_f1`, the headline figures, are means over subjects of each subject's own figure (itself a mean
    over seeds); `accuracy_std` is the standard deviation over subjects (n - 1), None for one. The pooled ones are of
    all windows together. `macro_f1` of a subject is over the classes that occur in its truth or answers.

    Bytes are per second of a stream, all sources together: `raw` counts each sample once as float32, `code` the codes
    alone, `wire` the whole PUBLISH packets with topic aliases, `named` without (see `Traffic`), `ack` the broker's
    acknowledgements on their way back. Windows overlap, so a code without reduction takes more than raw. `reduction` is
    1 - wire / raw. `operations` and `encode_us` are of one window, all sources together. `error` is that of restored
    windows (see `Score`). `without` holds the accuracy with each source missing. `conditions` is a hash of what rows
    must share to be compared: data, seeds, recipe, version.
    """

    protocol: Protocol
    method: str
    reducer: str
    downstream: str
    grouping: str
    precision: str
    batch: int
    subjects: int
    windows: int
    accuracy: float
    accuracy_std: float | None
    macro_f1: float
    accuracy_pooled: float
    macro_f1_pooled: float
    raw_bytes_per_s: float
    code_bytes_per_s: float
    wire_bytes_per_s: float
    named_bytes_per_s: float
    ack_bytes_per_s: float
    reduction: float
    operations: int
    encode_us: float
    error: float | None
    per_subject: dict[str, float]
    without: dict[str, float]
    confusion: Counts
    labels: list[str]
    conditions: str

    @property
    def name(self) -> str:
        """The name of this row for readers: the reducer, and everything else that is not as usual."""
        if self.method != NETWORK:
            return " ".join([self.method, *_batch(self.batch)])
        return name_of(Variant(self.reducer, Downstream(self.downstream), self.grouping, self.precision), self.batch)

    @property
    def key(self) -> tuple[str | int, ...]:
        """The values that tell one row from another."""
        return (
            self.protocol.value, self.method, self.reducer, self.downstream, self.grouping, self.precision, self.batch
        )  # fmt: skip


def name_of(variant: Variant, batch: int = 1) -> str:
    """Return the name of a variant for readers: its reducer, and everything else that is not as usual."""
    extras = [variant.downstream.value] if variant.reducer != NO_REDUCTION else []
    extras += [variant.grouping] * (variant.grouping != "location") + [variant.precision] * (
        variant.precision != "int8"
    )
    return " ".join([variant.reducer, *extras, *_batch(batch)])


def _batch(batch: int) -> list[str]:
    return [f"batch {batch}"] if batch > 1 else []


class ResultAggregator:
    """Gathers outcomes and gives the rows of a variant once all its folds and seeds are there."""

    def __init__(self, config: StudyConfig, trials: Sequence[Trial], conditions: str) -> None:
        self._config, self._conditions = config, conditions
        self._open: dict[Variant | None, int] = {}
        for trial in trials:
            self._open[trial.variant] = self._open.get(trial.variant, 0) + 1
        self._results: dict[Variant | None, list[TrialResult]] = {variant: [] for variant in self._open}

    def add(self, outcome: TrialOutcome) -> Iterator[Row]:
        """Take one outcome; yield rows, one a batch size, where it was the last one that was missing."""
        if outcome.result is None:
            return
        results = self._results[outcome.trial.variant]
        results.append(outcome.result)
        if len(results) == self._open[outcome.trial.variant]:
            yield from make_rows(self._config, results, self._conditions)


def make_rows(config: StudyConfig, results: Sequence[TrialResult], conditions: str) -> Iterator[Row]:
    """Yield the rows of one variant, from the results of all its folds and seeds; one row a batch size."""
    variant, scores = results[0].variant, [result.score for result in results]
    answers = _gather((result.seed, result.score.confusions) for result in results)
    subjects = _by_subject(answers, accuracy)
    pooled = _pool(answers)
    errors = [score.error for score in scores if score.error is not None]
    raw = config.raw_bytes_per_s
    for number, batch in enumerate(config.batches):
        traffic = [score.traffic[number] for score in scores]
        # A window comes every hop; what a second sends is what a window sends, on average over all of them.
        a_second = config.description.rate_hz / config.hop / max(1, sum(part.windows for part in traffic))
        wire = a_second * sum(part.wire_bytes for part in traffic)
        yield Row(
            protocol=results[0].protocol,
            method=METHOD if variant is None else NETWORK,
            reducer=NO_REDUCTION if variant is None else variant.reducer,
            downstream=_NONE if variant is None else variant.downstream.value,
            grouping="location" if variant is None else variant.grouping,
            precision=_NONE if variant is None else variant.precision,
            batch=batch,
            subjects=len(subjects),
            windows=int(pooled.sum()) // len(answers),
            accuracy=fmean(subjects.values()),
            accuracy_std=stdev(subjects.values()) if len(subjects) > 1 else None,
            macro_f1=fmean(_by_subject(answers, macro_f1).values()),
            accuracy_pooled=accuracy(pooled),
            macro_f1_pooled=macro_f1(pooled),
            raw_bytes_per_s=raw,
            code_bytes_per_s=a_second * sum(score.code_bytes for score in scores),
            wire_bytes_per_s=wire,
            named_bytes_per_s=a_second * sum(part.named_bytes for part in traffic),
            ack_bytes_per_s=a_second * sum(part.messages for part in traffic) * _PUBACK_BYTES,
            reduction=1 - wire / raw,
            operations=round(fmean(score.operations for score in scores)),
            encode_us=median(score.encode_us for score in scores),
            error=fmean(errors) if len(errors) == len(scores) else None,
            per_subject={stream: subjects[stream] for stream in sorted(subjects, key=natural)},
            without=_without(results),
            confusion=pooled.tolist(),
            labels=config.labels,
            conditions=conditions,
        )


def _gather(parts: Iterable[tuple[int, Mapping[str, Counts]]]) -> dict[int, dict[str, Confusion]]:
    """Add up the confusions of all folds, by seed and subject."""
    gathered: dict[int, dict[str, Confusion]] = {}
    for seed, confusions in parts:
        streams = gathered.setdefault(seed, {})
        for stream, counts in confusions.items():
            matrix = np.array(counts, np.int64)
            streams[stream] = streams[stream] + matrix if stream in streams else matrix
    return gathered


def _by_subject(
    gathered: Mapping[int, Mapping[str, Confusion]], figure: Callable[[Confusion], float]
) -> dict[str, float]:
    """Return each subject's figure, a mean over seeds."""
    streams = {stream: None for subjects in gathered.values() for stream in subjects}
    return {
        stream: fmean(figure(subjects[stream]) for subjects in gathered.values() if stream in subjects)
        for stream in streams
    }


def _pool(gathered: Mapping[int, Mapping[str, Confusion]]) -> Confusion:
    matrices = [matrix for subjects in gathered.values() for matrix in subjects.values()]
    pooled: Confusion = np.sum(matrices, axis=0)
    return pooled


def _without(results: Sequence[TrialResult]) -> dict[str, float]:
    """Return the mean accuracy over subjects with each source missing."""
    return {
        source: fmean(
            _by_subject(_gather((result.seed, result.score.without[source]) for result in results), accuracy).values()
        )
        for source in results[0].score.without
    }
