"""The metadata of a TensorFlow Lite model, and the files behind its flatbuffer.

TFLITE_METADATA is a flatbuffer of its own (metadata_schema.fbs, version 1.5.0: ModelMetadata -> SubGraphMetadata ->
TensorMetadata, in the order of the model's inputs and outputs). A zip archive behind the model holds the files that it
names, such as labels. This module needs few fields, so it reads both without that schema, which no package of the core
has.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from har_edge.files import read_member
from har_edge.tflite import schema
from har_edge.tflite.model import Model

NAME = "TFLITE_METADATA"
MAX_FILES, MAX_FILES_BYTES, MAX_LABELS = 64, 16 * 2**20, 100_000
_END = b"PK\x05\x06"  # of a zip archive; at most a comment of 64 KiB follows
_TAIL = 2**16 + 22
# Fields by their place in the schema.
_SUBGRAPHS, _MODEL_FILES = 3, 6
_INPUTS, _OUTPUTS, _GRAPH_FILES, _INPUT_UNITS, _OUTPUT_UNITS, _INPUT_GROUPS, _OUTPUT_GROUPS, _CUSTOM = range(2, 10)
_TENSOR_FILES, _FILE_NAME, _FILE_TYPE = 6, 0, 2
# A unit of processing of a tensor: the kind of its options, and those; NormalizationOptions are of kind 1.
_TENSOR_UNITS, _UNIT_KIND, _UNIT_OPTIONS, _NORMALIZATION = 4, 0, 1, 1
_MEAN, _STD, _MAX_CHANNELS = 0, 1, 64
_OF_INPUTS, _OF_OUTPUTS = (_INPUTS, _INPUT_UNITS, _INPUT_GROUPS), (_OUTPUTS, _OUTPUT_UNITS, _OUTPUT_GROUPS, _CUSTOM)
_LABELS = (2, 3)  # TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS
_DAMAGED = (struct.error, IndexError, ValueError, UnicodeError)
_NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError)


@dataclass(frozen=True, slots=True)
class Annotations:
    """The metadata of a model and the files behind it; `problem` says which of them could not be read."""

    metadata: bytes | None
    files: Mapping[str, bytes]
    problem: str = ""


@lru_cache(maxsize=1)
def read_annotations(model: Model) -> Annotations:
    """Return the metadata and files of a model. A model runs without them, so damage is no error."""
    data, problem = None, ""
    for item in model.raw.metadata or ():
        buffer = model.buffers[item.buffer] if 0 < item.buffer < len(model.buffers) else None
        if schema.text(item.name) == NAME and buffer is not None:
            data = buffer.tobytes()
    if data is not None:
        try:
            list(_files_of(data, inputs=True, outputs=True))
        except _DAMAGED:
            data, problem = None, "its metadata is damaged and left out"
    files, broken = _read_files(model)
    return Annotations(data, files, "; ".join(filter(None, (problem, broken))))


def read_labels(model: Model) -> dict[str, tuple[str, ...]]:
    """Return the names of classes, by index, for each output of the model that has a file of them.

    An output has one value for each class, or one value, the index of a class. A file of another length is not its own.
    """
    notes, found = read_annotations(model), dict[str, tuple[str, ...]]()
    graph = model.main
    if notes.metadata is None or graph.unsent:
        return found
    for index, names in zip(graph.outputs, _output_labels(notes.metadata), strict=False):
        content = next((notes.files[name] for name in names if name in notes.files), None)
        lines = [] if content is None else content.decode("utf-8-sig", "replace").splitlines()
        tensor = graph.tensors[index]
        is_index = tensor.elements == 1 and tensor.dtype in ("int32", "int64")
        if 0 < len(lines) <= MAX_LABELS and (is_index or tensor.elements == len(lines)):
            found[tensor.name] = _distinct(lines)
    return found


def read_normalizations(model: Model) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return mean and standard deviation, one figure or one a channel, for each input whose metadata have them.

    The input takes (value - mean) / std. Figures that are no such constants are left out.
    """
    notes, graph = read_annotations(model), model.main
    found = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]()
    tables = [] if notes.metadata is None else list(_subgraphs(notes.metadata))
    if notes.metadata is None or not tables:
        return found
    try:
        for index, table in zip(graph.inputs, _vector(notes.metadata, tables[0], _INPUTS), strict=False):
            for mean, std in _normalizations(notes.metadata, table):
                if len(mean) == len(std) > 0 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0:
                    found[graph.tensors[index].name] = mean, std
    except _DAMAGED:
        return {}
    return found


def _normalizations(data: bytes, tensor: int) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    for unit in _vector(data, tensor, _TENSOR_UNITS):
        kind, options = _field(data, unit, _UNIT_KIND), _field(data, unit, _UNIT_OPTIONS)
        if kind is not None and data[kind] == _NORMALIZATION and options is not None:
            place = _follow(data, options)
            yield _floats(data, place, _MEAN), _floats(data, place, _STD)


def _floats(data: bytes, table: int, field: int) -> tuple[float, ...]:
    place = _field(data, table, field)
    if place is None:
        return ()
    start = _follow(data, place)
    (length,) = struct.unpack_from("<I", data, start)
    if length > _MAX_CHANNELS:
        raise ValueError(f"{length} figures of a normalization, expected at most {_MAX_CHANNELS}")
    # The text of a NumPy scalar has the fewest digits that give it back.
    return tuple(float(str(np.float32(value))) for value in struct.unpack_from(f"<{length}f", data, start + 4))


def keep_part(data: bytes, *, inputs: bool, outputs: bool) -> bytes:
    """Return metadata without the parts about inputs, or about outputs, that a slice does not have.

    Tables that lose a field get a vtable of their own at the end, since others may share the one that they had.
    """
    kept = bytearray(data)
    dropped = (() if inputs else _OF_INPUTS) + (() if outputs else _OF_OUTPUTS)
    for table in _subgraphs(data):
        start = table - struct.unpack_from("<i", data, table)[0]
        (size,) = struct.unpack_from("<H", data, start)
        layout = bytearray(data[start : start + size])
        for field in dropped:
            if 4 + 2 * field < size:
                struct.pack_into("<H", layout, 4 + 2 * field, 0)
        kept += bytes(-len(kept) % 4)
        struct.pack_into("<i", kept, table, table - len(kept))
        kept += layout
    return bytes(kept)


def keep_files(notes: Annotations, *, inputs: bool, outputs: bool) -> dict[str, bytes]:
    """Return the files that belong to a slice: those of the inputs, and with the outputs all others."""
    if notes.metadata is None:
        return dict(notes.files) if outputs else {}
    of_inputs = set(_files_of(notes.metadata, inputs=True, outputs=False))
    of_outputs = set(_files_of(notes.metadata, inputs=False, outputs=True))
    return {
        name: content
        for name, content in notes.files.items()
        if (inputs and name in of_inputs) or (outputs and (name in of_outputs or name not in of_inputs))
    }


def append_files(content: memoryview, files: Mapping[str, bytes]) -> memoryview:
    """Return a model with files behind it, as TensorFlow Lite's tools write them; the bytes are the same each time."""
    if not files:
        return content
    whole = io.BytesIO(content)
    with zipfile.ZipFile(whole, "a") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3  # else it is that of the machine
            archive.writestr(entry, data)
    return whole.getbuffer()


def _read_files(model: Model) -> tuple[dict[str, bytes], str]:
    if model.data[-_TAIL:].tobytes().rfind(_END) < 0:
        return {}, ""
    files, total = dict[str, bytes](), 0
    try:
        with zipfile.ZipFile(io.BytesIO(model.data)) as archive:
            for entry in archive.infolist():
                total += entry.file_size
                if len(files) >= MAX_FILES or total > MAX_FILES_BYTES:
                    return {}, f"the files behind it are more than {MAX_FILES} or {MAX_FILES_BYTES} bytes, and left out"
                if not entry.is_dir():
                    files[entry.filename] = read_member(archive, entry, MAX_FILES_BYTES)
    except _NO_ARCHIVE as error:
        return {}, f"the files behind it cannot be read and are left out ({error})"
    return files, ""


def _distinct(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines; a line that is empty or not unique gets the number of its class."""
    names = [line.strip() for line in lines]
    twice = {name for name in names if not name or names.count(name) > 1}
    return tuple(f"{name or 'class'} {index}" if name in twice else name for index, name in enumerate(names))


def _output_labels(data: bytes) -> list[list[str]]:
    """Return the names of label files for each output."""
    tables = list(_subgraphs(data))
    if not tables:
        return []
    return [
        [name for name, kind in _file_entries(data, tensor, _TENSOR_FILES) if kind in _LABELS]
        for tensor in _vector(data, tables[0], _OUTPUTS)
    ]


def _files_of(data: bytes, *, inputs: bool, outputs: bool) -> Iterator[str]:
    """Yield the files that metadata names for inputs or outputs; the files of model and graph count as outputs."""
    (root,) = struct.unpack_from("<I", data, 0)
    tables = [(root, _MODEL_FILES)] if outputs else []
    for graph in _subgraphs(data):
        tables += [(graph, _GRAPH_FILES)] if outputs else []
        sides = [side for side, wanted in ((_INPUTS, inputs), (_OUTPUTS, outputs)) if wanted]
        tables += [(tensor, _TENSOR_FILES) for side in sides for tensor in _vector(data, graph, side)]
    for table, field in tables:
        yield from (name for name, _ in _file_entries(data, table, field))


def _file_entries(data: bytes, table: int, field: int) -> Iterator[tuple[str, int]]:
    for entry in _vector(data, table, field):
        name, kind = _field(data, entry, _FILE_NAME), _field(data, entry, _FILE_TYPE)
        if name is not None:
            start = _follow(data, name)
            (length,) = struct.unpack_from("<I", data, start)
            yield data[start + 4 : start + 4 + length].decode(), 0 if kind is None else data[kind]


def _subgraphs(data: bytes) -> Iterator[int]:
    (root,) = struct.unpack_from("<I", data, 0)
    return _vector(data, root, _SUBGRAPHS)


def _vector(data: bytes, table: int, field: int) -> Iterator[int]:
    """Yield the positions of the tables in a vector."""
    place = _field(data, table, field)
    if place is None:
        return
    start = _follow(data, place)
    (length,) = struct.unpack_from("<I", data, start)
    if length > len(data) // 4:
        raise ValueError(f"a vector of {length} entries does not fit into {len(data)} bytes")
    for index in range(length):
        yield _follow(data, start + 4 + 4 * index)


def _field(data: bytes, table: int, field: int) -> int | None:
    """Return the position of a field of a table, None where it is left out."""
    layout = table - struct.unpack_from("<i", data, table)[0]
    if layout < 0:
        raise ValueError("a table without a layout")
    (size,) = struct.unpack_from("<H", data, layout)
    if layout + size > len(data):
        raise ValueError(f"a layout of {size} bytes does not fit into {len(data)} bytes")
    if 4 + 2 * field >= size:
        return None
    (offset,) = struct.unpack_from("<H", data, layout + 4 + 2 * field)
    return table + offset if offset else None


def _follow(data: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", data, place)[0])
