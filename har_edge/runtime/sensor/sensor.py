"""A sensor: windows of one or several sources in, messages with their codes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from har_edge.codecs.packing import pack
from har_edge.codecs.reducer import Code, Reducer
from har_edge.config.source_pieces import SourcePiece
from har_edge.data.recording import Window
from har_edge.errors import ConfigError
from har_edge.inference.saturation import Saturation, totals
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol import wire
from har_edge.protocol.topics import ALL_SOURCES, Topics
from har_edge.runtime.counters import Counters

BYTES_A_RAW_VALUE = 4  # float32, as a sensor without reduction would send it


# How many messages of a stream may be on their way until the stages have said how many.
FIRST_ROOM = 8


@dataclass(frozen=True, slots=True)
class SensorSetup:
    """The setup of a sensor: topics, generation, one reducer for each source, and how it packs messages.

    With `combine`, one message carries all sources; otherwise each source has its own topic. `labels` lists the labels
    that count as known truth: those the model can answer. No message is larger than `max_payload_bytes`. Messages are
    written in `wire_version`, with `ids` for the names of sources. `alone`: each carries one window, whatever comes,
    since the slices take no batch. A value of a window would take `raw_value_bytes` without a reducer. `saturations`
    count values beyond what reducers or slices take. At first, `first_room` messages of a stream may be on their way.
    A source with `pieces` is sent in these, each on a topic of its own, instead of whole.
    """

    topics: Topics
    epoch: int
    reducers: Mapping[str, Reducer]
    labels: frozenset[int]
    combine: bool = False
    max_payload_bytes: int = wire.MAX_PAYLOAD_BYTES
    first_room: int = FIRST_ROOM
    wire_version: int = 1
    ids: Mapping[str, int] = field(default_factory=dict)
    alone: bool = False
    raw_value_bytes: int = BYTES_A_RAW_VALUE
    saturations: tuple[Saturation, ...] = ()
    pieces: Mapping[str, tuple[SourcePiece, ...]] = field(default_factory=dict)


class Sensor:
    """Reduces and packs windows. Pure: the loop has the clock and the connection.

    `setup` may be replaced while it runs, where a deployment changes its epoch or its reducers.
    """

    def __init__(self, setup: SensorSetup) -> None:
        if ALL_SOURCES in setup.reducers and len(setup.reducers) > 1:
            raise ConfigError(
                f"one of several sources is called {ALL_SOURCES!r}, which stands for all of them; choose another name"
            )
        self.setup = setup
        self.counters = Counters()
        self.raw_values = 0
        self._measured: dict[str, int] = {}

    @property
    def raw_bytes(self) -> int:
        """The bytes that a sensor without reducers would have sent."""
        return self.raw_values * self.setup.raw_value_bytes

    def handle(
        self,
        windows: Sequence[Window],
        captured: Sequence[float],
        *,
        again: bool = False,
        sent: tuple[int, int] | None = None,
    ) -> list[Outgoing]:
        """Return the messages for consecutive windows of one stream, captured at those times (seconds since 1970).

        `sent` is the run of this sensor, and how many windows of the stream it sent before (see wire.Message). Those
        that are sent `again` are counted as such. Raises ConfigError when they take more bytes than a message may
        have.
        """
        setup, first = self.setup, windows[0]
        if setup.alone and len(windows) > 1:
            numbers = [None if sent is None else (sent[0], sent[1] + index) for index in range(len(windows))]
            each = zip(windows, captured, numbers, strict=True)
            return [one for window, at, number in each for one in self.handle([window], [at], again=again, sent=number)]
        codes = {
            source: pack(reducer, [reducer.encode(window.samples[source]) for window in windows])
            for source, reducer in setup.reducers.items()
        }
        truth = tuple(window.label if window.label in setup.labels else None for window in windows)
        known = truth if any(label is not None for label in truth) else None
        if again:
            self.counters.resent += len(windows)
        else:
            self._count(windows)
            self._watch(windows)
        return self.write(first.stream, first.seq, tuple(captured), codes, known, sent)

    def write(
        self,
        stream: str,
        seq: int,
        captured: tuple[float, ...],
        codes: Mapping[str, Code],
        truth: tuple[int | None, ...] | None = None,
        sent: tuple[int, int] | None = None,
    ) -> list[Outgoing]:
        """Return the messages for the codes of windows, by source; raises ConfigError as `handle` does."""
        setup, outgoing = self.setup, []
        for name, tensors in self._groups(codes).items():
            message = wire.Message(stream, seq, setup.epoch, captured, tensors, truth, sent=sent)
            payload = wire.encode(message, setup.wire_version, setup.ids)
            if len(payload) > setup.max_payload_bytes:
                raise ConfigError(
                    f"a message of {len(captured)} windows takes {len(payload)} bytes; expected at most "
                    f"{setup.max_payload_bytes}; lower --batch, or raise max_payload_bytes in the pipeline file"
                )
            outgoing.append(Outgoing(setup.topics.window(stream, name), payload, needs_subscriber=True))
        self.counters.messages += len(outgoing)
        return outgoing

    def _groups(self, codes: Mapping[str, Code]) -> dict[str, dict[str, Code]]:
        """Return what each message carries, by the last level of its topic."""
        setup, groups = self.setup, dict[str, dict[str, Code]]()
        for source, code in codes.items():
            for piece in setup.pieces.get(source, ()):
                groups[piece.level] = {source: code[:, piece.start : piece.stop]}
        whole = {source: code for source, code in codes.items() if not setup.pieces.get(source)}
        if setup.combine and not groups:
            return {ALL_SOURCES: whole}
        # Beside pieces, each source on its own topic: who takes pieces alone could use nothing of a common message.
        return groups | {source: {source: code} for source, code in whole.items()}

    def _watch(self, windows: Sequence[Window]) -> None:
        for one in self.setup.saturations:
            for window in windows:
                one.note(window.samples[one.source])
        self.counters.quantised, self.counters.saturated = totals(self.setup.saturations)

    def _count(self, windows: Sequence[Window]) -> None:
        """Count windows, and each raw value once although windows overlap."""
        self.counters.windows += len(windows)
        for window in windows:
            samples = [window.samples[source] for source in self.setup.reducers]
            stop = window.start + len(samples[0])
            fresh = stop - max(window.start, self._measured.get(window.stream, 0))
            self._measured[window.stream] = stop
            self.raw_values += max(0, fresh) * sum(array.shape[1] for array in samples)
