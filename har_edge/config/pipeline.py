"""The pipeline file: the settings on which sensors, stages and sink must agree, and the tensors between stages."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import msgspec

from har_edge.config.anomaly_outputs import check_anomaly_outputs, write_tables
from har_edge.config.array_output import check_arrays
from har_edge.config.classifier_output import check_classifier_output
from har_edge.config.flows import check_flows
from har_edge.config.message_sizes import largest_message, tensor_bytes
from har_edge.config.task import (
    AnomalyOutput,
    ArrayOutput,
    ImageInput,
    SourceInput,
    StateRule,
    StreamTask,
    Task,
    describe,
)
from har_edge.config.wiring import Wiring, find_wiring, is_batched
from har_edge.data.description import StreamDescription
from har_edge.data.fields import explain_unknown
from har_edge.data.grouping import Grouping, regroup
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.files import TOMLDecodeError, inside, parse_toml, read_text, write_atomic
from har_edge.tflite.manifest import FILE_NAME as MANIFEST_NAME
from har_edge.tflite.manifest import SliceManifest, Text, load_manifest
from har_edge.timing import STAGE_SESSION_S

FILE_NAME = "pipeline.toml"
DEFAULT_NAME = "har"
MQTT_MAX_BYTES = 268_435_455
LEAST_PAYLOAD_LIMIT = 16 * 1024 * 1024  # of pipelines that say nothing: batches fit, too
PACKET_BYTES = 4096  # the most that topic and properties of a packet take beside its payload
_EPOCH_BITS = 31


class BrokerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How nodes reach the broker; options of a command override it."""

    url: Text = "mqtt://127.0.0.1:1883"
    username: Text | None = None
    password_file: Text | None = None
    ca_file: Text | None = None
    cert_file: Text | None = None
    key_file: Text | None = None
    client: Text = "auto"
    protocol: Text = "5"


class MissingRule(Enum):
    """The reaction of a stage to a missing source: wait and give the window up, or run without the source."""

    WAIT = "wait"
    CARRY_ON = "carry_on"


class JoinConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many seconds a stage waits for the parts of a window, and for how many windows at once.

    `carry_on_after_s` matters only under MissingRule.CARRY_ON.
    """

    timeout_s: float = 30.0
    capacity: int = 256
    missing: MissingRule = MissingRule.WAIT
    carry_on_after_s: float = 1.0

    @property
    def patience_s(self) -> float | None:
        """Seconds that a window waits for a source before the stage runs without it; None: the stage never does."""
        return self.carry_on_after_s if self.missing is MissingRule.CARRY_ON else None


class PipelineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the pipeline file in TOML; `slices` is relative to the file.

    A file without `epoch` gets the generation id of its slices when it is loaded. `delegate` names what computes on
    every device: "xnnpack" where the runtime hands operators to it (the default), or "none". Without
    `max_payload_bytes`, the limit follows from the slices (`payload_limit`). `flows` gives the brokers of flows that do
    not go through the central one, in a fixed folder (config/flows.py).
    """

    task: Task
    name: Text = DEFAULT_NAME
    base: Text = "har"
    epoch: int = 1
    slices: Text = "."
    max_payload_bytes: int | msgspec.UnsetType = msgspec.UNSET
    session_expiry_s: int = STAGE_SESSION_S
    broker: BrokerConfig = BrokerConfig()
    join: JoinConfig = JoinConfig()
    # Left out by default: nodes of older versions refuse keys that they do not know.
    delegate: Literal["xnnpack", "none"] | msgspec.UnsetType = msgspec.UNSET
    flows: dict[Text, Text] | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline file, checked against its slices and its stream description.

    `described` is the stream as its recordings are written; `stream` is the same stream as the task groups its sources.
    """

    config: PipelineConfig
    folder: Path
    manifest: SliceManifest
    described: StreamDescription
    stream: StreamDescription

    def __repr__(self) -> str:
        return f"Pipeline({self.config.name!r}, {len(self.manifest.slices)} slices, folder={str(self.folder)!r})"

    @property
    def task(self) -> Task:
        return self.config.task

    @property
    def flows(self) -> dict[str, str]:
        """The brokers of flows that do not go through the central one."""
        return {} if self.config.flows is msgspec.UNSET else self.config.flows

    @property
    def grouped(self) -> bool:
        """Whether one sensor node must have all sources, since a group takes channels of several."""
        return self.task.stream.grouping != Grouping.LOCATION

    @property
    def payload_limit(self) -> int:
        """The most bytes of a message."""
        return payload_limit(self.config, self.manifest)

    def channels(self, source: str) -> int:
        return len(self.stream.source(source).channels)

    def source_shape(self, source: str) -> tuple[int, ...]:
        """Return the shape of the input that a source enters, also where each slice takes a region of it.

        Raises ConfigError where the windows of the source have another size.
        """
        tensor = self.task.inputs[source].tensor
        specs = [spec for entry in self.manifest.slices for spec in entry.inputs if spec.of == tensor]
        whole = next((spec for spec in specs if spec.region is None), None)
        if whole is not None:
            return whole.shape
        spec = specs[0]
        assert spec.region is not None
        axis = spec.region.axis
        values, rest = self.task.stream.length * self.channels(source), math.prod(map(abs, spec.shape))
        size, left = divmod(values * spec.shape[axis], rest)
        least = max(one.region.stop for one in specs if one.region is not None)
        if left or size < least:
            raise ConfigError(
                f"windows of source {source!r} have {values} values, but the slices take regions {list(spec.shape)} of "
                f"{tensor!r} up to {least} along axis {axis}; use the task that belongs to this model"
            )
        return (*spec.shape[:axis], size, *spec.shape[axis + 1 :])

    def wiring(self, index: int) -> Wiring:
        """Return the inputs and outputs of stage `index`. Raises ConfigError when there is no such stage."""
        return find_wiring(self.manifest, self.task, index)


def payload_limit(config: PipelineConfig, manifest: SliceManifest) -> int:
    """Return the most bytes of a message: what the configuration says, else what one window of these slices needs."""
    if config.max_payload_bytes is not msgspec.UNSET:
        return config.max_payload_bytes
    return min(MQTT_MAX_BYTES - PACKET_BYTES, max(LEAST_PAYLOAD_LIMIT, largest_message(manifest)))


def find_batch_problem(manifest: SliceManifest, task: Task) -> str:
    """Return why a message can carry one window only, an empty text when it may carry several.

    Every tensor that takes windows, crosses a cut or gives the result must have the batch as its first dimension.
    Raises ConfigError when slices and task do not belong together.
    """
    for index, entry in enumerate(manifest.slices):
        wiring = find_wiring(manifest, task, index)
        used = {*wiring.sources.values(), *wiring.sends, *(task.results if wiring.answers else ())}
        for spec in (*entry.inputs, *entry.outputs, *wiring.passes):
            if spec.name in used and not is_batched(spec):
                reason = "has a first dimension that is no batch" if spec.shape[:1] == (-1,) else "has no dynamic batch"
                return f"tensor {spec.name!r} {list(spec.shape)} of slice {index} {reason}"
    return ""


def check_batch(pipeline: Pipeline, batch: int) -> None:
    """Raise ConfigError when messages of so many windows cannot pass; see `find_batch_problem`."""
    problem = find_batch_problem(pipeline.manifest, pipeline.task) if batch > 1 else ""
    if problem:
        raise ConfigError(
            f"--batch {batch} came, but {problem}; send one window a message (--batch 1), cut the model elsewhere "
            "(`har-edge slice MODEL --list`), or convert it with a dynamic batch"
        )


def load_pipeline(path: Path) -> Pipeline:
    """Read a pipeline file, or the one in a folder, with the manifest of its slices.

    Raises ConfigError, which names the file and the error in it, and ModelError for the manifest.
    """
    file = inside(path, FILE_NAME)
    return _assemble(file, None)


def keep_existing(folder: Path, manifest: SliceManifest, task: Task | None) -> bool:
    """Return whether `folder` holds a pipeline file. It belongs to a person, and stays when the model is cut anew.

    `manifest` is the manifest of the new slices, `task` the known task of their model. Raises ConfigError when the file
    would not fit the slices, or has the task of another model.
    """
    file = folder / FILE_NAME
    if not file.exists():
        return False
    try:
        kept = _assemble(file, manifest)
        same_model = load_manifest(folder).model_sha256 == manifest.model_sha256
    except HarEdgeError as error:
        raise _unfit(str(error)) from None
    if not same_model and task is not None and msgspec.structs.replace(kept.task, state=task.state) != task:
        raise _unfit(f"the [task] in {file} is that of another model")
    return True


def _unfit(reason: str) -> ConfigError:
    return ConfigError(
        f"nothing is written, because the pipeline file that is there would not fit the new slices: {reason}; give a "
        "new folder with --out, or remove that file to have it made anew"
    )


def generation_id(manifest: SliceManifest) -> int:
    """Return the generation id of slices, from the model's hash and the cuts: 1 to 2^31 - 1.

    Stages of another model, or of another cut of this one, therefore never take each other's activations.
    """
    identity = ",".join([manifest.model_sha256, *(str(entry.start) for entry in manifest.slices)])
    if any(entry.steps for entry in manifest.slices):  # shards may share operators in many ways
        identity += msgspec.json.encode(manifest.slices).decode()
    elif any(spec.packing for spec in manifest.tensors):  # who reads a packing must have that of the sender
        identity += "".join(f",{spec.name}={spec.packing}" for spec in manifest.tensors if spec.packing)
    digest = hashlib.sha256(identity.encode()).digest()
    return max(1, int.from_bytes(digest[:4], "big") >> (32 - _EPOCH_BITS))


def _read(file: Path) -> tuple[PipelineConfig, bool]:
    """Return the content of a pipeline file, and whether it names a generation (key `epoch`)."""
    try:
        document = parse_toml(read_text(file))
        config = msgspec.convert(document, PipelineConfig)
    except OSError as error:
        mend = "make it with `har-edge slice`"
        if not isinstance(error, FileNotFoundError):
            mend = "name the file, or the folder, that `har-edge slice` made"
        elif (file.parent / MANIFEST_NAME).is_file():
            mend = (
                "its slices are there, but no manifest said what the model is for: write it by "
                "docs/reference/pipeline-file.md"
            )
        raise ConfigError(f"cannot read {file}: {error.strerror}; {mend}") from None
    except msgspec.ValidationError as error:
        tables: dict[str, type[msgspec.Struct]] = {
            "": PipelineConfig,
            "broker": BrokerConfig,
            "join": JoinConfig,
            "task": Task,
            "task.stream": StreamTask,
            "task.image": ImageInput,
            "task.arrays": ArrayOutput,
            "task.anomaly": AnomalyOutput,
            "task.anomaly.score": ArrayOutput,
            "task.anomaly.heat_map": ArrayOutput,
            "task.anomaly.limit": ArrayOutput,
            "task.inputs": SourceInput,
        }
        raise ConfigError(
            f"{file}: {explain_unknown(error, tables)}; see docs/reference/pipeline-file.md for every key"
        ) from None
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}; see docs/reference/pipeline-file.md for every key") from None
    return config, "epoch" in document


def _assemble(file: Path, manifest: SliceManifest | None) -> Pipeline:
    """Read a pipeline file and check it against these slices, by default those that it names."""
    config, has_epoch = _read(file)
    manifest = manifest or load_manifest(file.parent / config.slices)
    if not has_epoch:
        config = msgspec.structs.replace(config, epoch=generation_id(manifest))
    return assemble(config, manifest, file)


def assemble(config: PipelineConfig, manifest: SliceManifest, file: Path) -> Pipeline:
    """Combine a configuration and slices. The folder of `file`, which need not exist, holds all other files.

    Raises ConfigError, which names `file` and what does not fit.
    """
    try:
        described = describe(config.task, file.parent)
        stream = regroup(described, config.task.stream.grouping)
        for source in config.task.inputs:
            stream.source(source)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    if not config.task.labels and config.task.output in manifest.labels:
        config = msgspec.structs.replace(config, task=name_classes(config.task, manifest, stream.labels))
    pipeline = Pipeline(config, file.parent, manifest, described, stream)
    _check_task(pipeline, file)
    _check_limits(config, file)
    for index in range(len(manifest.slices)):
        _check_missing(pipeline.wiring(index), config.join, file)
        _check_sizes(pipeline.wiring(index), pipeline.payload_limit, file)
    check_flows(pipeline.flows, [pipeline.wiring(index) for index in range(len(manifest.slices))], file)
    return pipeline


def name_classes(task: Task, manifest: SliceManifest, known: Sequence[str]) -> Task:
    """Return the task with the labels that the model itself gives its classes.

    A label's id is the number that the stream description (`known`, by number) has for the same name. If the
    description has no labels, the id is the index of the class.
    """
    labels = list(manifest.labels[task.output])
    numbers = {label: number for number, label in enumerate(known)}
    ids = [numbers.get(label, len(known) + index) for index, label in enumerate(labels)]
    return msgspec.structs.replace(task, labels=labels, label_ids=task.label_ids or ids)


def _check_task(pipeline: Pipeline, file: Path) -> None:
    task = pipeline.task
    _check_labels(pipeline, file)
    taken = {tensor.of for entry in pipeline.manifest.slices for tensor in entry.inputs}
    enters = [source.tensor for source in task.inputs.values()]
    for source, where in task.inputs.items():
        if where.tensor not in taken or enters.count(where.tensor) > 1:
            problem = "is taken by no slice" if where.tensor not in taken else "is named for two sources"
            raise ConfigError(
                f"{file}: the tensor {where.tensor!r} of source {source!r} {problem}; expected an input of the model"
            )
    outputs = {tensor.name: tensor for entry in pipeline.manifest.slices for tensor in entry.outputs}
    for name in task.results:
        if name not in outputs:
            raise ConfigError(f"{file}: output {name!r} is made by no slice; expected one of {', '.join(outputs)}")
    if task.anomaly is not None:
        check_anomaly_outputs(task.anomaly, outputs, str(file))
    elif task.labels:
        check_classifier_output(outputs[task.output], len(task.labels), str(file))
    check_arrays([outputs[one.tensor] for one in task.arrays], str(file))
    if not math.isclose(task.stream.rate_hz, pipeline.stream.rate_hz):
        raise ConfigError(
            f"{file}: the model was trained at {task.stream.rate_hz} Hz, but {task.stream.description} runs at "
            f"{pipeline.stream.rate_hz} Hz; resample the stream or use another model"
        )


def _check_labels(pipeline: Pipeline, file: Path) -> None:
    """Raise ConfigError for classes that the recordings do not have; a description without labels passes."""
    task, known = pipeline.task, pipeline.stream.labels
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


def _check_limits(config: PipelineConfig, file: Path) -> None:
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


def _check_missing(wiring: Wiring, join: JoinConfig, file: Path) -> None:
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


def _check_sizes(wiring: Wiring, limit: int, file: Path) -> None:
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


def write_pipeline(
    folder: Path,
    task: Task,
    *,
    name: str = DEFAULT_NAME,
    broker: BrokerConfig | None = None,
    delegate: str | None = None,
) -> Path:
    """Write a pipeline file with every choice that a person may want to change, whole or not at all; return its path.

    Raises ConfigError when the file cannot be written.
    """
    quote, broker = _quote, broker or BrokerConfig()
    lines = [
        "# What sensors, stages and watchers must agree on. Copy this folder to every device.",
        f"name = {quote(name)}      # the level of the topics that tells pipelines apart",
        "# epoch: unless it is set here, a number made from the model and its cuts",
        'slices = "."',
        *([] if delegate is None else [f"delegate = {quote(delegate)}"]),
        "",
        "[broker]",
        *(f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(broker).items() if value is not None),
        "",
        "[join]             # how long a stage waits for the parts of a window, and for how many windows at once",
        *(f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(JoinConfig()).items()),
        "",
        "[task]             # what the model was trained for",
        f"output = {quote(task.output)}",
        f"labels = {quote(task.labels)}",
        f"label_ids = {quote(task.label_ids)}",
        *([] if task.state is StateRule.REFUSE else [f"state = {quote(task.state.value)}"]),
        "",
        "[task.stream]",
        *(f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(task.stream).items()),
    ]
    if task.image is not None:
        image = msgspec.structs.asdict(task.image) | {"fit": task.image.fit.value}
        lines += ["", "[task.image]"]
        lines += [f"{key} = {quote(value)}" for key, value in image.items() if value != ()]
    for one in task.arrays:
        lines += ["", "[[task.arrays]]"]
        lines += [f"{key} = {quote(value)}" for key, value in msgspec.to_builtins(one).items()]
    if task.anomaly is not None:
        lines += write_tables(task.anomaly)
    for source, enters in task.inputs.items():
        lines += [
            "",
            f"[task.inputs.{source}]",
            f"tensor = {quote(enters.tensor)}",
            f"reducer = {quote(enters.reducer)}",
        ]
        if enters.files:
            lines += ["", f"[task.inputs.{source}.files]"]
            lines += [f"{quote(name)} = {quote(sha256)}" for name, sha256 in enters.files.items()]
    file = folder / FILE_NAME
    try:
        write_atomic(file, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; give another --out") from error
    return file


def _quote(value: object) -> str:
    """Return a value in TOML. Its strings are those of JSON but for one character and surrogate pairs."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
