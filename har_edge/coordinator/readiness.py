"""Whether a generation answers: a probe goes through it now and then, sooner while none comes back."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median_low

import msgspec

from har_edge.errors import HarEdgeError, MessageError
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.deployment import Generation
from har_edge.protocol.results import Result
from har_edge.protocol.topics import PROBE

EVERY_S = 5.0
AGAIN_S = 1.0
# Behind a queue of windows a probe waits its turn.
PATIENCE_S = 10.0
# How many times as long as a window takes a probe may take.
PATIENCE = 3.0
# The longest latency of a plan that is believed.
MOST_EXPECTED_S = 60.0
_KEPT = 64
_TYPICAL = 5


@dataclass(slots=True)
class ProbeSeries:
    """The probes of one process: windows of one stream, called after `author`, with rising numbers.

    `expected_s` is how long a window is predicted to take. `sent` are the times of the last probes, `overtaken` those
    of probes that never came back although later ones did.
    """

    author: str
    answered_at: float = 0.0
    took_s: float = 0.0
    expected_s: float = 0.0
    sent: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    overtaken: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _number: int = 0
    _sent_at: float = float("-inf")
    _asked: float | None = None
    _out: OrderedDict[int, tuple[int, float]] = field(default_factory=OrderedDict)
    _ready: int = 0
    _took: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_TYPICAL))

    @property
    def asked_at(self) -> float | None:
        """When the first probe that is not answered went out; None where all are."""
        return self._asked

    def latency_s(self, epoch: int) -> float:
        """Return how long a window takes: as predicted, or as the last probes did where that is longer."""
        took = [took for answered, took in self._took if answered == epoch]
        return max(self.expected_s, median_low(took) if took else 0.0)

    def hasten(self) -> None:
        """Let a probe be due, unless one is under way."""
        if self._asked is None:
            self._sent_at = float("-inf")

    @property
    def stream(self) -> str:
        """The stream of these probes, so that one subscription hears all of their results and no others."""
        return PROBE + self.author

    def is_ready(self, epoch: int) -> bool:
        """Return whether the last probes through a generation were answered."""
        return epoch != 0 and self._ready == epoch

    def invalidate(self, now: float) -> None:
        """Be not ready until a probe that is sent from now on is answered."""
        self._ready, self._asked, self._sent_at = 0, None, float("-inf")
        self._out.clear()

    def next_number(self, epoch: int, now: float) -> int | None:
        """Return the number of a probe that is due now, None where none is; it counts as sent."""
        latency_s = self.latency_s(epoch)
        if self._asked is not None and now > self._asked + max(PATIENCE_S, PATIENCE * latency_s):
            self._ready = 0
        # More probes than the stages can run would only make the queue longer.
        again_s = max(AGAIN_S, latency_s)
        if now < self._sent_at + (max(EVERY_S, again_s) if self.is_ready(epoch) and self._asked is None else again_s):
            return None
        if self._asked is None:
            self._asked = now
        self._sent_at, self._number = now, self._number + 1
        self._out[self._number] = (epoch, now)
        self.sent.append(now)
        if len(self._out) > _KEPT:
            self._out.popitem(last=False)
        return self._number

    def answer(self, stream: str, results: Sequence[Result], now: float) -> int:
        """Take a result of a stream; return the generation that answered, 0 where it was no probe of this process.

        Raises MessageError for what is no result.
        """
        if stream != self.stream:
            return 0
        asked = next((self._out[result.seq] for result in results if result.seq in self._out), None)
        if asked is None:
            return 0
        epoch, sent = asked
        if not any(result.stream == stream and result.epoch == epoch for result in results):
            raise MessageError(f"an answer to probe {stream} came from another epoch or stream; expected epoch {epoch}")
        self._ready, self._asked, self.answered_at, self.took_s = epoch, None, now, now - sent
        self._took.append((epoch, self.took_s))
        for other, (_, at) in list(self._out.items()):
            if at <= sent:
                del self._out[other]
                if at < sent:
                    self.overtaken.append(at)
        return epoch


@dataclass(frozen=True, slots=True)
class DueProbes:
    """The messages of the probes that are due, and what a person should read of those that cannot be made."""

    messages: list[Outgoing]
    problems: list[str]


class ReadinessProbe:
    """Probes the `current` generation, and the `candidate` that may become it.

    `make` makes the messages of a probe from its stream and number. `was_ready` is whether a current generation has
    ever answered.
    """

    def __init__(self, author: str, make: Callable[[Generation, str, int], list[Outgoing]]) -> None:
        self.current, self.candidate = ProbeSeries(f"{author}-a"), ProbeSeries(f"{author}-b")
        self.was_ready = False
        self._make = make

    @property
    def streams(self) -> list[str]:
        """The streams of all probes of this process."""
        return [self.current.stream, self.candidate.stream]

    def answer(self, stream: str, results: Sequence[Result], now: float) -> bool:
        """Take results of a stream; return whether they answer a probe. Raises MessageError for a wrong answer."""
        return any(one.answer(stream, results, now) for one in (self.current, self.candidate))

    def switch(self) -> None:
        """Take the generation on trial for the current one."""
        self.current, self.candidate = self.candidate, self.current

    def ask(self, current: Generation | None, running: bool, trial: Generation | None, now: float) -> DueProbes:
        """Return the probes that are due: of the current generation while it is `running`, and of `trial`, if any."""
        asked = DueProbes([], [])
        if current is not None:
            ready = self.current.is_ready(current.epoch)
            self.was_ready = self.was_ready or ready
            if running:
                self._ask(self.current, current, asked, now)
            elif ready:
                self.current.invalidate(now)
        if trial is not None:
            self._ask(self.candidate, trial, asked, now)
        return asked

    def _ask(self, series: ProbeSeries, generation: Generation, asked: DueProbes, now: float) -> None:
        series.expected_s = min(MOST_EXPECTED_S, max(0.0, generation.predicted_latency_s))
        number = series.next_number(generation.epoch, now)
        try:
            messages = self._make(generation, series.stream, number) if number is not None else []
        except HarEdgeError as error:
            asked.problems.append(f"epoch {generation.epoch} cannot be asked whether it answers: {error}")
            return
        # A probe that nobody hears is answered by nobody: there is no point in keeping it.
        asked.messages.extend(msgspec.structs.replace(message, needs_subscriber=False) for message in messages)
