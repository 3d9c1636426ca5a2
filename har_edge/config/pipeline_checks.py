"""Check a pipeline file: the task against slices and stream, the figures against their bounds, what stages send."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from har_edge.config.anomaly_outputs import check_anomaly_outputs
from har_edge.config.array_output import check_arrays
from har_edge.config.classifier_output import check_classifier_output
from har_edge.config.message_sizes import tensor_bytes
from har_edge.config.pipeline_config import (
    LEAST_PAYLOAD_LIMIT,
    MQTT_MAX_BYTES,
    PACKET_BYTES,
    JoinConfig,
    PipelineConfig,
)
from har_edge.config.task import Task
from har_edge.config.wiring import Wiring
from har_edge.data.description import StreamDescription
from har_edge.errors import ConfigError
from har_edge.tflite.manifest import SliceManifest


def check_task(task: Task, manifest: SliceManifest, stream: StreamDescription, file: Path) -> None:
    """Raise ConfigError where the task does not fit the slices or the stream."""
    _check_labels(task, stream, file)
    taken = {tensor.of for entry in manifest.slices for tensor in entry.inputs}
    enters = [source.tensor for source in task.inputs.values()]
    for source, where in task.inputs.items():
        if where.tensor not in taken or enters.count(where.tensor) > 1:
            problem = "is taken by no slice" if where.tensor not in taken else "is named for two sources"
            raise ConfigError(
                f"{file}: the tensor {where.tensor!r} of source {source!r} {problem}; expected an input of the model"
            )
    outputs = {tensor.name: tensor for entry in manifest.slices for tensor in entry.outputs}
    for name in task.results:
        if name not in outputs:
            raise ConfigError(f"{file}: output {name!r} is made by no slice; expected one of {', '.join(outputs)}")
    if task.anomaly is not None:
        check_anomaly_outputs(task.anomaly, outputs, str(file))
    elif task.labels:
        check_classifier_output(outputs[task.output], len(task.labels), str(file))
    check_arrays([outputs[one.tensor] for one in task.arrays], str(file))
    if not math.isclose(task.stream.rate_hz, stream.rate_hz):
        raise ConfigError(
            f"{file}: the model was trained at {task.stream.rate_hz} Hz, but {task.stream.description} runs at "
            f"{stream.rate_hz} Hz; resample the stream or use another model"
        )


def _check_labels(task: Task, stream: StreamDescription, file: Path) -> None:
    """Raise ConfigError for classes that the recordings do not have; a description without labels passes."""
    known = stream.labels
    if task.arrays and not task.labels and not task.label_ids:
        return
    if len(task.labels) != len(task.label_ids) or not task.labels:
        raise ConfigError(
            f"{file}: {len(task.labels)} labels and {len(task.label_ids)} label_ids; expected one of each"
        )
    for what, values in (("labels", task.labels), ("label_ids", [str(number) for number in task.label_ids])):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ConfigError(f"{file}: {what} has {', '.join(twice)} twice; expected each class once")
    for label, number in zip(task.labels, task.label_ids, strict=True):
        if known and (not 0 <= number < len(known) or known[number] != label):
            there = repr(known[number]) if 0 <= number < len(known) else f"labels 0 to {len(known) - 1} only"
            raise ConfigError(
                f"{file}: label_ids says {number} for {label!r}, but {task.stream.description} has {there}; use the "
                "names and numbers of the stream description"
            )


def check_limits(config: PipelineConfig, file: Path) -> None:
    """Raise ConfigError for a figure beyond its bounds."""
    stream, join = config.task.stream, config.join
    payload = LEAST_PAYLOAD_LIMIT if config.max_payload_bytes is msgspec.UNSET else config.max_payload_bytes
    limits: list[tuple[str, float, float, float]] = [
        ("epoch", config.epoch, 0, 2**62),
        ("max_payload_bytes", payload, 1, MQTT_MAX_BYTES),
        ("session_expiry_s", config.session_expiry_s, 0, 2**32 - 1),
        ("join.capacity", join.capacity, 1, 2**31 - 1),
        ("task.stream.length", stream.length, 1, 2**31 - 1),
        ("task.stream.hop", stream.hop, 1, 2**31 - 1),
    ]
    for name, value, low, high in limits:
        if value < low:
            raise ConfigError(f"{file}: {name} is {value}; it must {'not be negative' if not low else 'be at least 1'}")
        if value > high:
            raise ConfigError(f"{file}: {name} is {value}; it must be at most {high}")
    if not 0 < join.timeout_s < math.inf:
        raise ConfigError(f"{file}: join.timeout_s is {join.timeout_s}; it must be a number of seconds above 0")
    most_s = math.inf if join.patience_s is None else join.timeout_s
    if not 0 < join.carry_on_after_s <= most_s:
        raise ConfigError(
            f"{file}: join.carry_on_after_s is {join.carry_on_after_s}; it must be a number of seconds above 0, and at "
            f"most join.timeout_s, which is {join.timeout_s}"
        )


def check_missing(wiring: Wiring, join: JoinConfig, file: Path) -> None:
    """Raise ConfigError for a stage that would run without its source and has no other input: no message would start
    it.
    """
    if join.patience_s is not None and len(wiring.sources) == 1 and not wiring.earlier:
        (source,) = wiring.sources
        raise ConfigError(
            f'{file}: join.missing is "carry_on", but slice {wiring.index} takes source {source!r} and nothing else, '
            "so nothing starts it when that is missing; cut the model so that this slice takes two sources or an "
            'activation too, or set join.missing = "wait"'
        )


def check_sizes(wiring: Wiring, limit: int, file: Path) -> None:
    """Raise ConfigError for tensors that no message may hold, even with one window."""
    specs = {spec.name: spec for spec in wiring.entry.outputs}
    for names in wiring.flows.values():
        size = sum(tensor_bytes(specs[name], packed=True) for name in names)
        if size > limit:
            mend = "raise it, or " if limit < MQTT_MAX_BYTES - PACKET_BYTES else ""
            raise ConfigError(
                f"{file}: what slice {wiring.index} sends takes {size} bytes a window, but max_payload_bytes is "
                f"{limit}; {mend}cut the model where less crosses (`har-edge slice --list`), or let it travel in fewer "
                "bytes (`--pack`)"
            )
