"""Compare the windows that sensors report with the results that came, to find every window that is lost."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from har_edge.protocol.results import Result
from har_edge.protocol.status import ALIVE, NodeStatus, State, StreamCount
from har_edge.protocol.text import listed
from har_edge.protocol.topics import is_probe
from har_edge.runtime.sensor.sent_counter import OTHERS

# A sensor without results: seconds after its report of a window within which the result should have come.
LATE_S = 60.0
# Times that went through a message and back are the same to the microsecond.
SAME_S = 0.001
# Results that came before the status that tells of their run; runs of a stream, and sensors, that are kept apart.
EARLY = 4096
MOST_RUNS = 8
MOST_NODES = 1024
MOST_NAMED = 8
# Stands for the name of a sensor whose status did not come; no node has it.
UNTOLD = ""


@dataclass(slots=True)
class _Run:
    """One start of a sensor, for one stream: what it says, and how many of its windows came.

    Without `whole`, it began before anybody counted here; with `over`, it had ended by then, too, and what it lost is
    no concern of those who came later. A later run of the same stream begins at `until`.
    """

    count: StreamCount
    whole: bool
    until: float = float("inf")
    over: bool = False
    came: int = 0
    # How many windows that it sent do not count, as nobody counted then; and how many more it sent, as results show.
    first: int = 0
    shown: int = 0
    said: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def sent(self) -> int:
        """How many windows it has sent, as it says itself or as the results of later ones show."""
        return max(self.count.sent, self.shown)

    def note(self, now: float) -> None:
        """Remember how many windows were sent by now, and forget what is of no use."""
        self.said.append((now, self.sent))
        while len(self.said) > 1 and self.said[1][0] <= now - LATE_S:
            self.said.popleft()

    def show(self, number: int) -> None:
        """Take the word of a result: the run had sent so many windows before this one."""
        self.shown = max(self.shown, number + 1 - self.first)

    def lost(self, now: float, *, final: bool, waits: bool = True) -> int:
        """Return how many windows did not come, and will not: that is certain when all is over.

        Unless the sensor `waits` for answers, and so may send again, those are lost that are late.
        """
        if not self.whole:
            return 0 if self.over else self.count.lost
        if final:
            return self.missing
        late = 0
        if self.count.answered is None or not waits:
            late = max((sent for at, sent in self.said if at <= now - LATE_S), default=0) - self.came
        return min(self.missing, max(self.count.lost, late, 0))

    @property
    def missing(self) -> int:
        """How many windows have not come; what came before anybody counted here is not known."""
        if not self.whole:
            return self.lost(0.0, final=False)
        return max(0, self.sent - self.count.incomplete - self.came)

    def takes(self, captured: float) -> bool:
        return self.count.began - SAME_S <= captured < self.until - SAME_S


@dataclass(frozen=True, slots=True)
class StreamAccount:
    """Windows of one stream: sent by its sensors since they began, come here, lost, and still on their way.

    `incomplete` are those that a sensor calls so: others of the stream have not sent them. The `open` ones
    that are `left` are not sent again: their sensor has gone.
    """

    stream: str
    sent: int
    came: int
    lost: int
    open: int
    incomplete: int = 0
    left: int = 0


class WindowAccount:
    """Compares what came since `began` (seconds since 1970) with what the sensors say. Pure.

    Several sensors of a stream, one a source, send the same windows: these count once. A sensor that began
    earlier counts only with the windows that it calls lost itself, and one that had ended by then not at all.

    Results tell, too, how many windows a sensor had sent before (protocol/wire.py): this counts what one sent after
    its last status that broke off, and what one sent, from the first result on, of which no status came at all.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._runs: OrderedDict[tuple[str, str], list[_Run]] = OrderedDict()  # by node and stream
        self._named: dict[str, frozenset[str]] = {}  # by node: the streams that it tells one by one
        self._early: dict[str, deque[float]] = {}
        self._living: dict[str, str] = {}  # sensors that were seen at work: the start (instance) of each
        self._broken: dict[str, str] = {}  # those whose start ended without a farewell
        self._gone: set[str] = set()
        self._final = False

    def take_status(self, status: NodeStatus, now: float) -> None:
        """Take what a sensor says, at `now` (seconds since 1970); statuses of others say nothing of windows."""
        node = status.node
        self._take_state(status)
        if status.streams and (node in self._named or len(self._named) < MOST_NODES):
            self._named[node] = frozenset(status.streams)
            for stream, count in status.streams.items():
                self._take_count(node, stream, count, now, alive=status.state in ALIVE)

    def _take_state(self, status: NodeStatus) -> None:
        """Remember which sensors broke off: what such a one sent after its last status, nobody counts."""
        node, instance = status.node, status.instance
        if status.state in ALIVE:
            self._gone.discard(node)
        elif len(self._gone) < MOST_NODES:
            self._gone.add(node)
        if (
            status.role == "sensor"
            and status.state in ALIVE
            and (node in self._living or len(self._living) < MOST_NODES)
        ):
            self._living[node] = instance
        if status.state is State.LOST and self._living.get(node) == instance:
            self._broken[node] = instance
        elif self._broken.get(node) == instance:  # it was only cut off
            del self._broken[node]

    def _take_count(self, node: str, stream: str, count: StreamCount, now: float, *, alive: bool) -> None:
        runs = self._runs.setdefault((node, stream), [])
        if not runs or runs[-1].count.run != count.run:
            if runs:
                runs[-1].until = count.began
            del runs[: max(0, len(runs) + 1 - MOST_RUNS)]
            whole = count.began >= self._began
            runs.append(_Run(count, whole, over=not whole and not alive))
            early = self._early_of(node, stream)
            runs[-1].came = sum(map(runs[-1].takes, early))
            runs[-1].shown = self._introduce(stream, count.run)
        run = runs[-1]
        run.count = count
        if count.answered is None:
            run.note(now)

    def _introduce(self, stream: str, run: int) -> int:
        """Forget a run that only results told of, as its status is here; return how many windows they show."""
        told = self._runs.get((UNTOLD, stream), [])
        known = next((one for one in told if one.count.run == run), None)
        if known is None:
            return 0
        told.remove(known)
        if not told:
            del self._runs[UNTOLD, stream]
        return known.first + known.shown

    def _take_sent(self, result: Result) -> None:
        assert result.sent is not None
        stream, (number_of_run, number) = result.stream, result.sent
        for node, named in self._named.items():
            for run in self._runs.get((node, stream if stream in named else OTHERS), ()):
                if run.count.run == number_of_run:
                    if stream in named:
                        run.show(number)
                    return
        if (UNTOLD, stream) in self._runs or len(self._runs) < MOST_NODES:
            told = self._runs.setdefault((UNTOLD, stream), [])
            self._untold(told, number_of_run, number, result.captured).show(number)

    def _untold(self, told: list[_Run], run: int, number: int, captured: float) -> _Run:
        """Return what is known of a run whose status did not come, and begin to count it where that is nothing."""
        known = next((one for one in told if one.count.run == run), None)
        if known is not None and captured < known.until:
            return known
        if known is not None:  # it goes on, after another sensor of the stream began and told instead
            told.remove(known)
        if number == 0:  # a sensor begins: those before it have ended, as far as is known
            for one in told:
                one.until = min(one.until, captured)
        del told[: max(0, len(told) + 1 - MOST_RUNS)]
        told.append(_Run(StreamCount(run, captured), whole=True, first=number))
        return told[-1]

    def _early_of(self, node: str, stream: str) -> Iterator[float]:
        for name, captured in self._early.items():
            if name == stream or (stream == OTHERS and name not in self._named[node]):
                yield from captured

    def take_result(self, result: Result) -> None:
        """Take a result that came for the first time."""
        stream, captured = result.stream, result.captured
        if is_probe(stream):
            return
        if stream in self._early or len(self._early) < EARLY:
            self._early.setdefault(stream, deque(maxlen=EARLY)).append(captured)
        for node, named in self._named.items():
            for run in self._runs.get((node, stream if stream in named else OTHERS), ()):
                run.came += run.takes(captured)
        if result.sent is not None:
            self._take_sent(result)
        for run in self._runs.get((UNTOLD, stream), ()):
            run.came += run.takes(captured)

    def close(self) -> None:
        """Say that all is over: whatever has not come is lost."""
        self._final = True

    def figures(self, now: float) -> list[StreamAccount]:
        """Return what is known of each stream."""
        found: dict[str, StreamAccount] = {}
        for (node, stream), runs in self._runs.items():
            waits = node != UNTOLD and node not in self._broken
            for run in () if waits else runs:
                run.note(now)
            lost = sum(run.lost(now, final=self._final or run is not runs[-1], waits=waits) for run in runs)
            sent, came = sum(run.sent for run in runs), sum(run.came for run in runs)
            open_ = max(0, sum(run.missing for run in runs) - lost)
            incomplete, left = sum(run.count.incomplete for run in runs), open_ if node in self._gone else 0
            one = StreamAccount(stream, sent, came, lost, open_, incomplete, left)
            known = found.get(stream, one)
            worst = max(known, one, key=lambda figures: (figures.lost, figures.open, figures.sent))
            incomplete, left = max(known.incomplete, one.incomplete), max(known.left, one.left)
            found[stream] = replace(worst, incomplete=incomplete, left=left)
        return sorted(found.values(), key=lambda figures: figures.stream)

    def lost(self, now: float) -> int:
        """Return how many windows are lost, all streams together."""
        return sum(figures.lost for figures in self.figures(now))

    def sentence(self, now: float) -> str:
        """Name the lost windows by stream; empty where none is lost."""
        return _listed("lost windows", [(one.lost, one) for one in self.figures(now)])

    def open_sentence(self, now: float) -> str:
        """Name the windows that have not come yet by stream; empty where there is none."""
        return _listed("windows that have not come yet", [(one.open, one) for one in self.figures(now)])

    def left_sentence(self, now: float) -> str:
        """Name the windows that have not come, and that nobody sends again; empty where there is none."""
        what = "windows that have not come and whose sensors have gone"
        return _listed(what, [(one.left, one) for one in self.figures(now)])

    def incomplete_sentence(self, now: float) -> str:
        """Name the windows that not all sensors of a stream have sent; empty where there is none."""
        what = "windows that not all sensors of their stream have sent"
        return _listed(what, [(one.incomplete, one) for one in self.figures(now)])

    def broken_sentence(self) -> str:
        """Name the sensors that broke off, of whose last windows nothing is known; empty where there is none."""
        said = "not known of sensors that broke off: whether the windows came that they sent last"
        return f"{said}: {listed(sorted(self._broken), MOST_NAMED)}" if self._broken else ""


def _listed(what: str, counts: list[tuple[int, StreamAccount]]) -> str:
    said = [f"{count} of {one.sent} of {_name(one.stream)}" for count, one in counts if count]
    more = f" and of {len(said) - MOST_NAMED} more streams" if len(said) > MOST_NAMED else ""
    return f"{what}: {', '.join(said[:MOST_NAMED])}{more}" if said else ""


def _name(stream: str) -> str:
    return "other streams" if stream == OTHERS else stream
