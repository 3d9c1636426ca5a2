"""Read the inputs of a slice from messages, and check their shapes and types."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from har_edge.config.source_pieces import SourcePiece, piece_of
from har_edge.errors import MessageError
from har_edge.inference.saturation import totals
from har_edge.protocol import wire
from har_edge.protocol.text import listed
from har_edge.protocol.topics import ALL_SOURCES, Kind, Topic
from har_edge.runtime.counters import Counters
from har_edge.runtime.stage.packed import TensorUnpacker
from har_edge.runtime.stage.setup import Array, StageSetup


class InputReader:
    """Reads the inputs of a slice out of windows and activations."""

    def __init__(self, setup: StageSetup, counters: Counters) -> None:
        self._setup, self._counters = setup, counters
        taken = (*setup.wiring.entry.inputs, *setup.wiring.passes)
        self._specs = {spec.name: (spec, np.dtype(spec.dtype)) for spec in taken}
        self._unpacker = TensorUnpacker(taken)
        entered = set(setup.wiring.sources.values())
        self._regions = {spec.name: spec.region for spec in taken if spec.name in entered and spec.region is not None}
        self._pieces = {piece.level: piece for piece in self._find_pieces()}
        self._sources = frozenset(setup.task.inputs)
        self._levels = {level: frozenset(names) for level, names in setup.wiring.levels.items()}

    @property
    def pieces(self) -> Collection[str]:
        """The levels of topics on which pieces of windows come that this stage takes."""
        return self._pieces

    def _find_pieces(self) -> Iterator[SourcePiece]:
        setup = self._setup
        for source, tensor in setup.wiring.sources.items():
            if tensor in self._regions and source in setup.ports:
                shape = setup.ports[source].shape
                found = piece_of(source, self._regions[tensor], shape, setup.task.stream.length, shape[-1])
                if found is not None:
                    yield found

    def _complete(self, piece: SourcePiece, message: wire.Message) -> tuple[str, Mapping[str, Array]]:
        """Return a piece of a window as a whole one, with zeros for what this stage cuts off; and its source."""
        codes, length = message.tensors.get(piece.source), self._setup.task.stream.length
        channels = self._setup.ports[piece.source].shape[-1]
        wanted = (1, piece.stop - piece.start, channels)
        if codes is None or message.count != 1 or codes.shape != wanted:
            came = f"{list(codes.shape)}" if codes is not None else message.content
            raise MessageError(
                f"{came} came for {message.count} windows on the topic of {piece.level}; expected codes of "
                f"{piece.source!r} {list(wanted)} for one window"
            )
        whole = np.zeros((1, length, channels), codes.dtype)
        whole[:, piece.start : piece.stop] = codes
        return piece.source, {piece.source: whole}

    def _cut(self, name: str, array: Array) -> Array:
        """Return the region of a window that this stage takes."""
        region = self._regions.get(name)
        return array if region is None else array[(slice(None),) * region.axis + (slice(region.start, region.stop),)]

    @property
    def wanted(self) -> frozenset[str]:
        """The names of all inputs."""
        return frozenset(self._setup.wiring.sources.values()).union(*self._levels.values())

    def read(self, topic: Topic, message: wire.Message) -> dict[str, Array]:
        """Return the inputs of the slice that a message brings, by tensor name; raises MessageError for others."""
        setup = self._setup
        if message.epoch != setup.epoch:
            raise MessageError(
                f"epoch {message.epoch} came; expected {setup.epoch}; restart the node with the older plan"
            )
        if topic.kind is Kind.WINDOW:
            stream = topic.levels[0]
            level, tensors = topic.levels[1], message.tensors
            self._check_content(message, self._sources)
            if level in self._pieces:
                level, tensors = self._complete(self._pieces[level], message)
            parts = {
                tensor: setup.feeds[source](tensors[source], message.count)
                for source, tensor in setup.wiring.sources.items()
                if source in tensors and level in (source, ALL_SOURCES)
            }
            if self._regions:
                parts = {name: self._cut(name, array) for name, array in parts.items()}
            self._counters.quantised, self._counters.saturated = totals(setup.saturations)
        else:
            maker, stream = topic.levels[1], topic.levels[2]
            self._check_content(message, setup.sent)
            names = self._levels.get(maker, frozenset())
            parts = {name: message.tensors[name] for name in names if name in message.tensors}
            if len(parts) < len(names):
                missing = ", ".join(sorted(names - parts.keys()))
                raise MessageError(
                    f"stage {maker} sent no tensor {missing}; expected it: slices of one cut on all nodes"
                )
            parts = self._unpacker.unpack(parts)
        if stream != message.stream:
            raise MessageError(f"stream {message.stream!r} came on the topic of {stream!r}; expected the same")
        if not parts:
            raise MessageError(
                f"no tensor this stage needs came, but {message.content}; expected {', '.join(setup.wiring.sources)}"
            )
        self._check_batch(message, parts)
        known = setup.task.inputs if topic.kind is Kind.ACTIVATION else ()
        if any(source not in known for source in message.missing):
            raise MessageError(
                f"a message of kind {topic.kind.value} came that misses {', '.join(message.missing)}; expected only "
                f"activations to miss something, and of {', '.join(setup.task.inputs)}"
            )
        return parts

    def _check_content(self, message: wire.Message, known: frozenset[str]) -> None:
        """Refuse tensors that no stage takes: they would only fill memory, here and at the broker."""
        if not known or (message.tensors.keys() <= known and not message.unknown):
            return
        strange = [name for name in message.tensors if name not in known] + [f"id {one}" for one in message.unknown]
        if len(strange) < len(message.tensors) + len(message.unknown):  # else nothing of use came, as `read` says
            raise MessageError(
                f"{listed([text[:64] for text in strange])} came beside what stages take; expected nothing but "
                f"{listed(sorted(known))}: slices and sensors of one cut on all nodes"
            )

    def _check_batch(self, message: wire.Message, parts: Mapping[str, Array]) -> None:
        for name, array in parts.items():
            spec, dtype = self._specs[name]
            dynamic = spec.batched and bool(spec.shape) and spec.shape[0] == -1
            shape = (message.count, *spec.shape[1:]) if dynamic else spec.shape
            if array.dtype == dtype and array.shape == shape and (dynamic or message.count == 1):
                continue  # the most frequent case, quickly
            if message.count > 1 and not dynamic:
                raise MessageError(
                    f"a batch of {message.count} windows came, but input {name!r} takes {list(spec.shape)}"
                    f"{'' if spec.batched else ', whose first dimension is no batch'}; "
                    "send one window a message, or convert the model with a dynamic batch"
                )
            fits = array.ndim == len(shape) and all(
                wanted in (-1, got) for wanted, got in zip(shape, array.shape, strict=True)
            )
            empty = 0 in array.shape and spec.batched  # of one that is no batch, values may say how many there are
            if not fits or array.dtype != dtype or empty:
                raise MessageError(
                    f"input {name!r} came as {array.dtype} {list(array.shape)} for {message.count} windows; "
                    f"expected {spec.dtype} {list(spec.shape)}"
                )
