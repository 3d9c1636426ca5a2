"""The task of a model that no manifest lists, from options, the model's file and its stream."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from har_edge.config.model_outputs import find_meaning
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.data.description import MAX_LABELS, StreamDescription
from har_edge.errors import ConfigError
from har_edge.files import read_member, read_regular
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import Model, Tensor
from har_edge.tflite.slices import slice_model

MAX_LABEL_BYTES = 4 * 1024 * 1024
_ASK = "give --{} (docs/how-to/own-model.md)"


def derive_task(
    model: Model,
    described: StreamDescription,
    name: str,
    *,
    inputs: Mapping[str, str],
    labels: Sequence[str] | None = None,
    hop: int | None = None,
    arrays: bool = False,
    asked: bool = False,
) -> Task:
    """Return the task of a model for the windows of the stream `name`.

    `inputs` maps input tensors to sources. An input that nothing reads needs none. Inputs that are left out are matched
    by equal names, or by the only shape that fits. Windows have the length that the inputs take, and one begins every
    `hop` samples, half a window by default. Without `labels`, the classes are the labels of the stream, if there are as
    many. Results of a model with several outputs, and where `arrays` asks for it, carry the outputs as arrays; for
    `asked` see `find_meaning`.

    Raises ConfigError, with the option to give, for everything that cannot be derived.
    """
    tensors = _inputs(model, inputs)
    sources = _assign(tensors, described, inputs)
    lengths = {source: _length(tensors[tensor], _channels(described, source)) for source, tensor in sources.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"inputs want windows of {lengths} samples; expected one length; " + _ASK.format("input"))
    length = next(iter(lengths.values()))
    stream = StreamTask(name, described.rate_hz, length, hop or max(1, length // 2))
    enters = {source: SourceInput(tensor) for source, tensor in sources.items()}
    if arrays or len(model.main.outputs) != 1:
        meaning = find_meaning(model, labels, arrays=arrays, asked=asked)
        names, ids = _classes(described, meaning.labels, None) if meaning.labels else ([], [])
        return Task(stream, enters, meaning.output, names, ids, arrays=meaning.arrays)
    output, classes = _output(model)
    names, ids = _classes(described, labels, classes)
    return Task(stream, enters, output, names, ids)


def _inputs(model: Model, named: Mapping[str, str]) -> dict[str, TensorSpec]:
    """Return the inputs that need a source: all but those that nothing reads."""
    graph = model.main
    (whole,) = slice_model(model, [])
    read = {spec.name for spec in whole.inputs}
    unread = [graph.tensors[index].name for index in graph.inputs if graph.tensors[index].name not in read]
    for name in named:
        if name in unread:
            raise ConfigError(f"--input names {name!r}, which nothing reads; expected no source for it: leave it out")
    if not read:
        raise ConfigError(
            "nothing in the model reads any of its inputs; expected a model whose answer depends on windows"
        )
    return {spec.name: spec for spec in (_spec(graph.tensors[index]) for index in graph.inputs) if spec.name in read}


def read_labels(path: Path) -> list[str]:
    """Read a file with one label a line, as TFLite models have it. Raises ConfigError for another file."""
    try:
        content = read_regular(path, MAX_LABEL_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the labels {path}: {error.strerror}; expected one label a line") from None
    return _parse_labels(content, str(path))


def packed_labels(path: Path) -> list[str] | None:
    """Return the labels in a .tflite file (TFLite metadata: a zip behind the flatbuffer), None without.

    The labels are in the first file whose name contains "label" and ends in .txt.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if "label" in one.filename.lower()]
            texts = [one for one in members if one.filename.endswith(".txt") and one.file_size <= MAX_LABEL_BYTES]
            if not texts:
                return None
            return _parse_labels(read_member(archive, texts[0], MAX_LABEL_BYTES), f"{texts[0].filename} in {path}")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError):
        return None


def _parse_labels(content: bytes, where: str) -> list[str]:
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is no UTF-8 text: {error}; expected one label a line") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or len(lines) >= MAX_LABELS or len(content) > MAX_LABEL_BYTES or not all(lines):
        raise ConfigError(
            f"{where}: {len(lines)} labels, some may be empty; expected 1 to {MAX_LABELS - 1}, one a line"
        )
    return _distinct(lines)


def _distinct(lines: Sequence[str]) -> list[str]:
    """Return labels of which none comes twice (ImageNet has two cranes): the later one gets its line's number."""
    seen: set[str] = set()
    made = []
    for number, line in enumerate(lines):
        label = line if line not in seen else f"{line} ({number})"
        seen.add(label)
        made.append(label)
    return made


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.signature, tensor.dtype or tensor.type_name)


def _channels(described: StreamDescription, source: str) -> int:
    return len(described.source(source).channels)


def _values(spec: TensorSpec) -> int | None:
    """Return the number of values of a window in an input, None where only a run would show it."""
    shape = spec.shape[1:] if spec.shape[:1] in ((-1,), (1,)) else spec.shape
    return math.prod(shape) if shape and min(shape) > 0 else None


def _fits(spec: TensorSpec, channels: int) -> bool:
    """Return whether one dimension is the number of channels: [length, channels], [channels, length], an image."""
    values = _values(spec)
    return values is not None and values % channels == 0 and channels in spec.shape[1:]


def _length(spec: TensorSpec, channels: int) -> int:
    values = _values(spec)
    if values is None or values % channels:
        raise ConfigError(
            f"input {spec.name!r} is {spec.dtype} {list(spec.shape)}, which holds no whole number of samples of "
            f"{channels} channels; name the source that enters it: " + _ASK.format("input NAME=SOURCE")
        )
    return values // channels


def _plain(name: str) -> str:
    """Return the name of an input in Keras: TensorFlow's converter writes serving_default_NAME:0."""
    return re.sub(r"^serving_default_(.+):\d+$", r"\1", name)


def _assign(
    tensors: Mapping[str, TensorSpec], described: StreamDescription, inputs: Mapping[str, str]
) -> dict[str, str]:
    """Return the input of each source that the model takes."""
    for tensor in inputs:
        if tensor not in tensors:
            raise ConfigError(f"--input names {tensor!r}; expected an input of the model: {_listed(tensors.values())}")
    sources = {source.name: len(source.channels) for source in described.sources}
    found = {described.source(source).name: tensor for tensor, source in inputs.items()}
    if len(found) < len(inputs):
        raise ConfigError("--input names one source for two inputs; expected each once")
    left = {name: spec for name, spec in tensors.items() if name not in inputs}
    for name, plain in [(name, _plain(name)) for name in left]:
        source = name if name in sources else plain
        if source in sources and source not in found:
            found[source] = name
            del left[name]
    for name, spec in left.items():
        fitting = [source for source, channels in sources.items() if source not in found and _fits(spec, channels)]
        rivals = [other for other in left if other != name and fitting and _fits(left[other], sources[fitting[0]])]
        only = len(sources) == len(tensors) == 1 and not found
        if only and not fitting:
            fitting = list(sources)
        if len(fitting) != 1 or (rivals and not only):
            raise ConfigError(
                f"nothing says which source enters input {name!r} {list(spec.shape)}; expected one of "
                f"{', '.join(f'{source} ({count} channels)' for source, count in sources.items())}: "
                + _ASK.format(f"input {name}=SOURCE")
            )
        found[fitting[0]] = name
    return {source: found[source] for source in sources if source in found}


def _output(model: Model) -> tuple[str, int | None]:
    """Return the one output, and its number of classes, None where it names a class."""
    (spec,) = (_spec(model.main.tensors[index]) for index in model.main.outputs)
    values = _values(spec)
    return spec.name, None if values == 1 and spec.dtype in ("int32", "int64") else values


def _classes(
    described: StreamDescription, labels: Sequence[str] | None, count: int | None
) -> tuple[list[str], list[int]]:
    """Return the names of the classes, and the labels that the recordings use for them."""
    known = list(described.labels)
    if labels is None:
        ids = [number for number in range(len(known)) if number != described.null_label]
        if count == len(known):
            ids = list(range(len(known)))
        elif count is None or count != len(ids) or not known:
            if count is None:
                raise ConfigError(
                    "the model answers with the number of a class, and nothing says which classes there are; expected "
                    "their names, the class of number 0 first: " + _ASK.format("labels FILE, one name a line")
                )
            answers = f"{count} scores"
            raise ConfigError(
                f"the model answers with {answers}, stream {described.name} has {len(known)} labels, and the file of "
                "the model has none; give --labels FILE, one label a line, or --arrays where these are no scores of "
                "classes (docs/how-to/own-model.md)"
            )
        return [known[number] for number in ids], ids
    if count is not None and count != len(labels):
        raise ConfigError(
            f"{len(labels)} labels came for {count} scores; expected one a score; " + _ASK.format("labels FILE")
        )
    if not known:
        return list(labels), list(range(len(labels)))
    strange = [label for label in labels if label not in known]
    if strange:
        raise ConfigError(
            f"the classes {', '.join(strange[:4])}{' and others' if len(strange) > 4 else ''} are no labels of stream "
            f"{described.name}, which has {', '.join(known[:20])}; expected the same names in both, or a stream "
            "without labels: " + _ASK.format("labels FILE")
        )
    return list(labels), [known.index(label) for label in labels]


def _listed(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
