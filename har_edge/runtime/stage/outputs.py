"""Write the messages that a stage publishes for a window: results, and activations for later stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from har_edge.config.array_output import MAX_VALUES, real_values, split_windows
from har_edge.config.classifier_output import best_classes, read_classes
from har_edge.config.wiring import flow_level
from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.protocol.results import BEST, AnomalyScore, LabelScore, NamedArray, Result, encode_results
from har_edge.runtime.counters import Counters
from har_edge.runtime.stage.anomalies import judge_windows
from har_edge.runtime.stage.no_score import check_scores
from har_edge.runtime.stage.packed import TensorPacker
from har_edge.runtime.stage.setup import Array, StageSetup
from har_edge.runtime.stage.stream_quota import StreamQuota

# The class in results of a model without classes: older readers want these keys.
NO_CLASS = LabelScore("", -1, 0.0)


class OutputWriter:
    """Writes what a slice made; `quota` says in each result how many messages of a stream may be on their way."""

    def __init__(self, setup: StageSetup, quota: StreamQuota, counters: Counters, clock: Callable[[], float]) -> None:
        self._setup, self._quota, self._clock = setup, quota, clock
        self._packer = TensorPacker(setup.wiring.entry.outputs, counters)
        wiring = setup.wiring
        self.flows = tuple((flow_level(wiring.index, flow), names) for flow, names in wiring.messages.items())

    def write(
        self, message: wire.Message, outputs: Mapping[str, Array], deliveries: tuple[Delivery, ...]
    ) -> list[Outgoing]:
        """Return the messages for a window; raises MessageError for what is too large, NoScore for no number."""
        setup, outgoing = self._setup, list[Outgoing]()
        if setup.answers:
            outgoing += self.write_results(message, outputs, deliveries)
        for level, names in self.flows:
            tensors = {name: outputs[name] for name in names}
            outgoing.append(self.write_flow(message, level, tensors, deliveries))
        return outgoing

    def write_results(
        self, message: wire.Message, outputs: Mapping[str, Array], deliveries: tuple[Delivery, ...]
    ) -> list[Outgoing]:
        """Return the messages of the results; raises NoScore for what is no number."""
        results, topic = self._results(message, outputs), self._setup.topics.result(message.stream)
        # Arrays and heat maps may be large: a message for each result then.
        groups = [[result] for result in results] if self._setup.task.gathers else [results]
        return [Outgoing(topic, encode_results(group), deliveries) for group in groups]

    def write_flow(
        self, message: wire.Message, level: str, tensors: Mapping[str, Array], deliveries: tuple[Delivery, ...]
    ) -> Outgoing:
        """Return the message of one flow; `level` names it in the topic. Raises MessageError for what is too large."""
        setup = self._setup
        made = msgspec.structs.replace(message, tensors=self._packer.pack(tensors))
        payload = wire.encode(made, setup.wire_version, setup.ids, self._packer.compressed)
        if len(payload) > setup.max_payload_bytes:
            raise MessageError(
                f"its activations take {len(payload)} bytes; expected at most {setup.max_payload_bytes}; "
                "send fewer windows a message, or raise max_payload_bytes in the pipeline file"
            )
        topic = setup.topics.activation(setup.epoch, level, message.stream)
        return Outgoing(topic, payload, deliveries, needs_subscriber=True)

    def _results(self, message: wire.Message, outputs: Mapping[str, Array]) -> list[Result]:
        now, room = self._clock(), self._quota.grant()
        judged = self._judge(message, outputs)
        found = self._classify(message, outputs, judged)
        arrays = self._arrays(message, outputs)
        truth = message.truth or (None,) * message.count
        return [
            Result(
                stream=message.stream,
                seq=message.seq + offset,
                label=best.label,
                label_id=best.label_id,
                confidence=best.confidence,
                captured=message.captured[offset],
                emitted=now,
                epoch=message.epoch,
                truth=truth[offset],
                missing=list(message.missing),
                room=room,
                sent=message.sent and (message.sent[0], message.sent[1] + offset),
                classes=classes,
                arrays=arrays[offset],
                anomaly=judged[offset] if judged else None,
            )
            for offset, (best, classes) in enumerate(found)
        ]

    def _judge(self, message: wire.Message, outputs: Mapping[str, Array]) -> list[AnomalyScore]:
        """Return how unusual each window is; nothing where the model does not say so."""
        task = self._setup.task
        return [] if task.anomaly is None else judge_windows(task.anomaly, outputs, message.count)

    def _classify(
        self, message: wire.Message, outputs: Mapping[str, Array], judged: Sequence[AnomalyScore]
    ) -> list[tuple[LabelScore, list[LabelScore]]]:
        """Return the class of each window, and where the task asks for them, the best classes."""
        port, task = self._setup.result_port, self._setup.task
        if judged:
            return [(self._class(int(one.anomaly), 1.0), []) for one in judged]
        if port is None:
            return [(NO_CLASS, [])] * message.count
        scores, classes = outputs[port.name], len(task.labels)
        winners, best = read_classes(scores, message.count, classes)
        tops = [1.0] * message.count if best is None else port.real(best).tolist()
        check_scores(tops)
        first = [self._class(winner, top) for winner, top in zip(winners, tops, strict=True)]
        if best is None or not task.ranked:
            return [(one, []) for one in first]
        rows = port.real(scores).reshape(message.count, classes)
        return [
            (one, [self._class(index, float(row[index])) for index in best_classes(row, BEST)])
            for one, row in zip(first, rows, strict=True)
        ]

    def _class(self, index: int, score: float) -> LabelScore:
        task = self._setup.task
        return LabelScore(task.labels[index], task.label_ids[index], score)

    def _arrays(self, message: wire.Message, outputs: Mapping[str, Array]) -> list[list[NamedArray]]:
        """Return the arrays of each window; raises MessageError for more values than a result carries."""
        rows: list[list[NamedArray]] = [[] for _ in range(message.count)]
        for one in self._setup.task.arrays:
            parts = split_windows(one.tensor, outputs[one.tensor], message.count)
            for row, part in zip(rows, parts, strict=True):
                count = sum(len(array.values) for array in row) + part.size
                if count > MAX_VALUES:
                    raise MessageError(f"its arrays have {count} values or more; expected at most {MAX_VALUES}")
                row.append(NamedArray(one.tensor, part.shape, real_values(one, part)))
        return rows
