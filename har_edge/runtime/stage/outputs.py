"""Write the messages that a stage publishes for a window: results, and activations for later stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from har_edge.config.classifier_output import read_classes
from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.protocol.results import Result, encode_results
from har_edge.runtime.counters import Counters
from har_edge.runtime.stage.no_score import check_scores
from har_edge.runtime.stage.packed import TensorPacker
from har_edge.runtime.stage.setup import Array, StageSetup
from har_edge.runtime.stage.stream_quota import StreamQuota


class OutputWriter:
    """Writes what a slice made; `quota` says in each result how many messages of a stream may be on their way."""

    def __init__(self, setup: StageSetup, quota: StreamQuota, counters: Counters, clock: Callable[[], float]) -> None:
        self._setup, self._quota, self._clock = setup, quota, clock
        self._packer = TensorPacker(setup.wiring.entry.outputs, counters)

    def write(
        self, message: wire.Message, outputs: Mapping[str, Array], deliveries: tuple[Delivery, ...]
    ) -> list[Outgoing]:
        """Return the messages for a window; raises MessageError for what is too large, NoScore for no number."""
        setup, outgoing = self._setup, list[Outgoing]()
        if setup.result_port is not None:
            scores = outputs[setup.result_port.name]
            results = self._results(message, scores)
            outgoing.append(Outgoing(setup.topics.result(message.stream), encode_results(results), deliveries))
        if setup.wiring.sends:
            tensors = self._packer.pack({name: outputs[name] for name in setup.wiring.sends})
            made = msgspec.structs.replace(message, tensors=tensors)
            topic = setup.topics.activation(setup.epoch, setup.wiring.index, message.stream)
            payload = wire.encode(made, setup.wire_version, setup.ids, self._packer.compressed)
            if len(payload) > setup.max_payload_bytes:
                raise MessageError(
                    f"its activations take {len(payload)} bytes; expected at most {setup.max_payload_bytes}; "
                    "send fewer windows a message, or raise max_payload_bytes in the pipeline file"
                )
            outgoing.append(Outgoing(topic, payload, deliveries, needs_subscriber=True))
        return outgoing

    def _results(self, message: wire.Message, scores: Array) -> list[Result]:
        port, task, now = self._setup.result_port, self._setup.task, self._clock()
        room = self._quota.grant()
        assert port is not None
        winners, best = read_classes(scores, message.count, len(task.labels))
        tops = [1.0] * message.count if best is None else port.real(best).tolist()
        check_scores(tops)
        truth = message.truth or (None,) * message.count
        return [
            Result(
                stream=message.stream,
                seq=message.seq + offset,
                label=task.labels[winner],
                label_id=task.label_ids[winner],
                confidence=top,
                captured=message.captured[offset],
                emitted=now,
                epoch=message.epoch,
                truth=truth[offset],
                missing=list(message.missing),
                room=room,
                sent=message.sent and (message.sent[0], message.sent[1] + offset),
            )
            for offset, (winner, top) in enumerate(zip(winners, tops, strict=True))
        ]
