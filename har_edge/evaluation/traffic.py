"""How many bytes windows take on their way: as codes, and as the MQTT packets that a sensor sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from har_edge.codecs.packing import pack
from har_edge.codecs.reducer import Code, Reducer
from har_edge.data.recording import Window
from har_edge.mqtt.clients.transport import publish_bytes
from har_edge.protocol import wire
from har_edge.protocol.topics import Topics

# As a pipeline that nobody renamed: har/v1/har/window/<stream>/<source>.
TOPICS = Topics("har", "har")
# Epochs are made from a hash, and nearly all of them take five bytes, as this one does.
EPOCH = 2**31 - 1
# A capture time is a float64 whatever it says.
_CAPTURED = 1.5e9


@dataclass(frozen=True, slots=True)
class Encoded:
    """One window with the code of each source; `truth` is its label where the model knows it."""

    stream: str
    seq: int
    codes: Mapping[str, Code]
    truth: int | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """The bytes that sensors send for some windows, `batch` windows a message, one message a source.

    `wire_bytes` are whole PUBLISH packets at QoS 1: fixed header, topic, packet id, properties, envelope, codes. They
    are those of the native client, which names the topic of a stream once and by its alias from then on; `named_bytes`
    are those of a client or broker without aliases, which names it in every packet. The broker acknowledges each packet
    with a PUBACK of 4 bytes, which `messages` counts and the others do not.
    """

    batch: int
    windows: int
    messages: int
    wire_bytes: int
    named_bytes: int


def encode_window(window: Window, reducers: Mapping[str, Reducer], label_ids: Sequence[int]) -> Encoded:
    """Reduce one window as its sensors do."""
    codes = {source: reducer.encode(window.samples[source]) for source, reducer in reducers.items()}
    return Encoded(window.stream, window.seq, codes, window.label if window.label in label_ids else None)


def measure_traffic(
    encoded: Sequence[Encoded], reducers: Mapping[str, Reducer], batch: int, topics: Topics = TOPICS, epoch: int = EPOCH
) -> Traffic:
    """Pack windows into the messages that sensors publish, one sensor a source, and count their bytes."""
    messages = wire_bytes = named_bytes = 0
    named: set[str] = set()
    for group in _groups(encoded, batch):
        first = group[0]
        truth = tuple(window.truth for window in group)
        known = truth if any(label is not None for label in truth) else None
        for source, reducer in reducers.items():
            tensors = {source: pack(reducer, [window.codes[source] for window in group])}
            message = wire.Message(first.stream, first.seq, epoch, (_CAPTURED,) * len(group), tensors, known)
            payload, topic = wire.encode(message), topics.window(first.stream, source)
            messages += 1
            wire_bytes += publish_bytes("" if topic in named else topic, payload, aliased=True)
            named_bytes += publish_bytes(topic, payload)
            named.add(topic)
    return Traffic(batch, len(encoded), messages, wire_bytes, named_bytes)


def code_bytes(encoded: Sequence[Encoded]) -> int:
    """Return the bytes of the codes alone, without envelopes and headers."""
    return sum(code.nbytes for window in encoded for code in window.codes.values())


def _groups(encoded: Sequence[Encoded], batch: int) -> Iterator[Sequence[Encoded]]:
    """Yield runs of up to `batch` windows of one stream, in the order they come."""
    start = 0
    for stop in range(1, len(encoded) + 1):
        ends = stop == len(encoded) or encoded[stop].stream != encoded[start].stream
        if ends or stop - start == batch:
            yield encoded[start:stop]
            start = stop
