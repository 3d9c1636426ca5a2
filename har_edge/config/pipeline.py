"""A pipeline: its file, read and checked with the slices and the stream that it names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from har_edge.config.flows import check_flows
from har_edge.config.pipeline_checks import check_limits, check_missing, check_sizes, check_task
from har_edge.config.pipeline_config import FILE_NAME, BrokerConfig, JoinConfig, PipelineConfig, payload_limit
from har_edge.config.task import (
    AnomalyOutput,
    ArrayOutput,
    ImageInput,
    SourceInput,
    StreamTask,
    Task,
    describe,
)
from har_edge.config.wiring import Wiring, find_wiring, is_batched
from har_edge.data.description import StreamDescription
from har_edge.data.fields import explain_unknown
from har_edge.data.grouping import Grouping, regroup
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.files import TOMLDecodeError, inside, parse_toml, read_text
from har_edge.tflite.manifest import FILE_NAME as MANIFEST_NAME
from har_edge.tflite.manifest import SliceManifest, load_manifest

_EPOCH_BITS = 31


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
    check_task(config.task, manifest, stream, file)
    check_limits(config, file)
    for index in range(len(manifest.slices)):
        check_missing(pipeline.wiring(index), config.join, file)
        check_sizes(pipeline.wiring(index), pipeline.payload_limit, file)
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
