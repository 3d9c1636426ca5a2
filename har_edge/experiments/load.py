"""Steady load for a deployment that is hurt, and whether every window of it was answered, once and right."""

from __future__ import annotations

import bisect
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from har_edge.data.live import LiveStream
from har_edge.data.recording import Recording, Window
from har_edge.errors import NodeError
from har_edge.experiments.cluster import RecordedCluster
from har_edge.experiments.recorder import Answered
from har_edge.protocol.results import Result
from har_edge.protocol.status import State

# Window (stream, number) -> label and confidence, as the whole model gives them.
EXAMPLES = 20
Answers = Mapping[tuple[str, int], tuple[int, float]]


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """How the answers compare: `doubled` passed the sink twice, `different` have another label or confidence.

    `strange` answers are to windows that nobody sent; `examples` name some windows that are not as they should be.
    """

    windows: int
    answered: int
    lost: int
    doubled: int
    different: int
    strange: int
    examples: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.strange) and self.answered == self.windows

    def __add__(self, other: AnswerCheck) -> AnswerCheck:
        return AnswerCheck(
            self.windows + other.windows,
            self.answered + other.answered,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.different + other.different,
            self.strange + other.strange,
            (self.examples + other.examples)[:EXAMPLES],
        )


def check_answers(results: Iterable[Result], expected: Answers) -> AnswerCheck:
    """Compare the results of one run, as the sink let them through, with what the whole model answers."""
    came: Counter[tuple[str, int]] = Counter()
    different = set()
    for result in results:
        came[result.stream, result.seq] += 1
        wanted = expected.get((result.stream, result.seq))
        if wanted is not None and wanted != (result.label_id, result.confidence):
            different.add((result.stream, result.seq))
    known = came.keys() & expected.keys()
    kinds = {
        "lost": expected.keys() - known,
        "doubled": {key for key, count in came.items() if count > 1},
        "different": different,
        "strange": came.keys() - expected.keys(),
    }
    examples = [f"{what} {stream}/{seq}" for what, keys in kinds.items() for stream, seq in sorted(keys)]
    return AnswerCheck(
        windows=len(expected),
        answered=len(known),
        lost=len(expected) - len(known),
        doubled=came.total() - len(came),
        different=len(different),
        strange=len(kinds["strange"]),
        examples=tuple(examples[:EXAMPLES]),
    )


@dataclass(slots=True)
class Load:
    """Sensors, one a source, that replay `windows` of each stream at a steady rate, and begin anew when they are done.

    `options` go to each sensor. A sensor only ends when all of its windows are answered; one that fails ends the run.
    """

    cluster: RecordedCluster
    sources: Sequence[str]
    streams: Sequence[str]
    windows: int
    spacing_s: float
    options: Sequence[str]
    rounds: list[float] = field(default_factory=list)
    again: bool = True
    _sensors: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start the first round; the steps of the cluster start the others."""
        self._sensors = [f"sensor-{source}" for source in self.sources]
        self._begin()
        self.cluster.steps.append(self._step)

    def finish(self, timeout_s: float) -> None:
        """Let the round that runs come to its end."""
        self.again = False
        processes = self.cluster.processes
        self.cluster.until(lambda: not processes.alive(self._sensors), "the sensors have not ended", timeout_s)

    @property
    def left_s(self) -> float:
        """For how long the slowest stream of this round still sends, about."""
        return self.spacing_s * (self.windows - max(self._next(stream) for stream in self.streams))

    def is_flowing(self) -> bool:
        """Return whether every stream of this round had a result in the time of two windows, or in half a second."""
        recent = time.monotonic() - max(0.5, 2 * self.spacing_s)
        last = [self.cluster.recorder.last_result(stream) for stream in self.streams]
        return all(one is not None and one.at > recent and one.result.captured >= self.rounds[-1] for one in last)

    def check_answers(self, expected: Answers) -> AnswerCheck:
        """Compare every round with what the whole model answers to the windows of one."""
        wanted = {key: answer for key, answer in expected.items() if key[0] in self.streams and key[1] < self.windows}
        rounds: list[list[Result]] = [[] for _ in self.rounds]
        for one in self.cluster.recorder.answered:
            if one.result.stream in self.streams:
                rounds[bisect.bisect_right(self.rounds, one.result.captured) - 1].append(one.result)
        total = AnswerCheck(0, 0, 0, 0, 0, 0)
        for results in rounds:
            total += check_answers(results, wanted)
        return total

    def _next(self, stream: str) -> int:
        last = self.cluster.recorder.last_result(stream)
        return last.result.seq + 1 if last is not None and last.result.captured >= self.rounds[-1] else 0

    def _begin(self) -> None:
        self.rounds.append(time.time())
        for source, name in zip(self.sources, self._sensors, strict=True):
            words = ["--source", source, "--windows", str(self.windows), *self.options]
            self.cluster.start("sensor", "--name", name, *words, name=name)

    def _step(self) -> None:
        ended = [one for name in self._sensors if not (one := self.cluster.processes.running[name]).alive]
        failed = [one for one in ended if one.process.returncode != 0]
        if failed:
            raise NodeError(
                f"{failed[0].name} ended with exit code {failed[0].process.returncode}\n{failed[0].last_lines()}"
            )
        if self.again and len(ended) == len(self._sensors):
            self._begin()


class LineDevice:
    """A device that sends one line a sample, with its time, into a FIFO at the rate of its recording.

    `shadow` takes the same lines: it knows which windows a sensor makes of them.
    """

    def __init__(
        self, cluster: RecordedCluster, recording: Recording, shadow: LiveStream, stream: str, *, queue: int
    ) -> None:
        self.stream, self.name = stream, f"sensor-{stream}"
        self._cluster, self._recording, self._shadow, self._queue = cluster, recording, shadow, queue
        self._path = cluster.folder / f"{stream}.fifo"
        self._columns = list(recording.samples)
        self.windows: list[Window] = []
        self._row, self._stopped = 0, False

    def start(self) -> None:
        """Start the sensor, and the lines with it."""
        os.mkfifo(self._path)
        # Read and write: it opens before there is a reader, and no reader that goes breaks it.
        self._file = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
        words = ["--live", str(self._path), "--timestamps", "--stream", self.stream, "--queue", str(self._queue)]
        self._cluster.start("sensor", "--name", self.name, *words, name=self.name)
        self._started = time.time()
        self._cluster.steps.append(self._step)

    def finish(self, timeout_s: float) -> None:
        """Send no more lines, wait until every window is answered or counted as dropped, and end the sensor."""
        self._stopped = True
        with contextlib.suppress(NodeError):  # what is missing, the verdict says
            self._cluster.until(
                lambda: self.answered + self.dropped >= len(self.windows), "windows are missing", timeout_s
            )
        self._cluster.kill(self.name, 15)
        os.close(self._file)
        self._cluster.until(lambda: self._cluster.recorder.state(self.name) is State.STOPPED, "no farewell")

    @property
    def answered(self) -> int:
        """How many windows of this device were answered."""
        return len({one.result.seq for one in self._results()})

    @property
    def dropped(self) -> int:
        """How many windows the sensor says it dropped because too many waited."""
        return self._cluster.recorder.sum_of("dropped", "sensor")

    def check_answers(self, expected: Answers) -> AnswerCheck:
        """Compare the answers with the whole model's; windows the sensor says it dropped are not lost."""
        check = check_answers([one.result for one in self._results()], expected)
        reported = min(check.lost, self.dropped)
        surplus = self.dropped - reported
        return AnswerCheck(
            check.windows - reported,
            check.answered,
            check.lost - reported,
            check.doubled,
            check.different,
            check.strange + surplus,
            () if check.lost == self.dropped else check.examples,
        )

    def _results(self) -> list[Answered]:
        return [one for one in self._cluster.recorder.answered if one.result.stream == self.stream]

    def _step(self) -> None:
        rate, rows = self._recording.rate_hz, len(self._recording.labels)
        while not self._stopped and self._started + self._row / rate <= time.time():
            at = self._started + self._row / rate
            values = [repr(float(v)) for name in self._columns for v in self._recording.samples[name][self._row % rows]]
            line = "\t".join([f"{at:.6f}", *values]).encode() + b"\n"
            try:
                os.write(self._file, line)  # shorter than PIPE_BUF: all of it or nothing
            except BlockingIOError:
                return
            self.windows += [window for _, window in self._shadow.feed(line, at)]
            self._row += 1
