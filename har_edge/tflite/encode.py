"""Write part of a model as a .tflite file."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ModelError
from har_edge.tflite import metadata, schema
from har_edge.tflite.model import Graph, Model, Operator, Tensor, called_graphs, graph_fields
from har_edge.tflite.schema import flatbuffers, tflite

ALIGNMENT = 16
# A flatbuffer ends at 2 GB. Larger weights stand behind it, as TFLite's own converter does; the margin is for the rest.
LARGE_BYTES = (1 << 31) - (1 << 26)
_PLACEHOLDER = 2  # offsets 0 and 1 mean "inside the flatbuffer"
_SLACK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ModelPart:
    """The operators, inputs and outputs of the main graph to write, by index; `whole` says that this is all of the
    model.
    """

    whole: bool
    operators: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def encode(model: Model, part: ModelPart, *, large_bytes: int = LARGE_BYTES) -> memoryview:
    """Return the part as a TFLite flatbuffer.

    Buffers that tensors share stay shared, unused buffers are left out, and each is aligned to 16 bytes. Weights of
    `large_bytes` bytes or more go behind the flatbuffer.
    """
    with schema.parsing(model.name):
        return _encode(model, part, large_bytes)


def _encode(model: Model, part: ModelPart, large_bytes: int) -> memoryview:
    raw, buffers = _Selection(model, part).build()
    rest = len(model.data) - sum(data.size for data in model.buffers if data is not None)
    rest = max(0, rest) + 2 * sum(len(tensor.name) for tensor in model.main.tensors) + _SLACK_BYTES
    return pack_model(raw, buffers, rest, large_bytes=large_bytes)


def pack_model(
    raw: Any, buffers: list[NDArray[np.uint8] | None], rest: int, *, large_bytes: int = LARGE_BYTES
) -> memoryview:
    """Return the flatbuffer of a model of the schema, whose buffers hold this data; all else takes at most `rest`
    bytes.
    """
    if sum(data.size for data in buffers if data is not None) < large_bytes:
        return _pack(raw, [_Stored(data) for data in buffers], rest)
    return _pack_large(raw, buffers, rest)


class _Selection:
    """Collects the tables that the part uses, and numbers them anew."""

    def __init__(self, model: Model, part: ModelPart) -> None:
        self.model, self.part = model, part
        self.codes: dict[int, int] = {}
        self.buffers: dict[int, int] = {0: 0}
        self.own: dict[int, NDArray[np.uint8]] = {}  # buffers that are not the model's, under negative numbers
        graph = model.main
        self.has_inputs = part.inputs == graph.inputs
        self.has_outputs = part.outputs == graph.outputs and not graph.unsent
        self.graphs = self.reachable()

    def reachable(self) -> dict[int, int]:
        """Map the graphs that the part runs to their new numbers; the main one stays first."""
        if self.part.whole:
            return {i: i for i in range(len(self.model.graphs))}
        found = {0}
        todo = [self.model.main.operators[i] for i in self.part.operators]
        while todo:
            for index in set(todo.pop().calls) - found:
                found.add(index)
                todo.extend(self.model.graphs[index].operators)
        return {old: new for new, old in enumerate(sorted(found))}

    def build(self) -> tuple[Any, list[NDArray[np.uint8] | None]]:
        model, part = self.model, self.part
        raw = tflite.ModelT()
        raw.version, raw.description = schema.VERSION, model.raw.description
        numbers = self.tensor_numbers()
        raw.subgraphs = [
            self.main(numbers) if old == 0 else self.other(model.graphs[old]) for old in sorted(self.graphs)
        ]
        raw.operatorCodes = [model.raw.operatorCodes[old] for old in self.codes]
        raw.signatureDefs = self.signatures(numbers) or None
        raw.metadata = [self.metadata(item) for item in model.raw.metadata if self.keeps(item)] or None
        if part.whole and model.raw.metadataBuffer is not None:
            raw.metadataBuffer = np.array([self.buffer(int(i)) for i in model.raw.metadataBuffer], np.int32)
        data = [self.own[old] if old in self.own else model.buffers[old] if old else None for old in self.buffers]
        return raw, data

    def tensor_numbers(self) -> dict[int, int]:
        """Map the tensors of the main graph that the part uses to their new numbers."""
        graph = self.model.main
        if self.part.whole:
            return {i: i for i in range(len(graph.tensors))}
        used = {*self.part.inputs, *self.part.outputs}
        for operator in (graph.operators[i] for i in self.part.operators):
            used.update(operator.inputs, operator.outputs, operator.inner)
        for index in list(used):
            used.update(_scale_tensors(graph.tensors[index].raw))
        return {old: new for new, old in enumerate(sorted(used))}

    def main(self, numbers: dict[int, int]) -> Any:
        graph = self.model.main
        raw = copy.copy(graph.raw)
        ports = {*self.part.inputs, *self.part.outputs}
        raw.tensors = [self.main_tensor(graph.tensors[i], i in ports, numbers) for i in numbers]
        raw.operators = [self.operator(graph.operators[i], numbers) for i in self.part.operators]
        raw.inputs = _renumber(self.part.inputs, numbers)
        raw.outputs = _renumber(self.part.outputs, numbers)
        if not self.part.whole:
            raw.debugMetadataIndex = -1
        return raw

    def other(self, graph: Graph) -> Any:
        raw = copy.copy(graph.raw)
        same = {i: i for i in range(len(graph.tensors))}
        raw.tensors = [self.tensor(tensor.raw, None, same) for tensor in graph.tensors]
        raw.operators = [self.operator(operator, same) for operator in graph.operators]
        raw.inputs, raw.outputs = _renumber(graph.inputs, same), _renumber(graph.outputs, same)
        if not self.part.whole:
            raw.debugMetadataIndex = -1
        return raw

    def main_tensor(self, tensor: Tensor, port: bool, numbers: dict[int, int]) -> Any:
        """Return a tensor of the main graph; an input or output gets the sizes that were observed in a run."""
        raw = self.tensor(tensor.raw, tensor.name, numbers)
        old = () if raw.shape is None else tuple(int(n) for n in raw.shape)
        signed = old if raw.shapeSignature is None else tuple(int(n) for n in raw.shapeSignature)
        if port and (old, signed) != (tensor.shape, tensor.signature) and (old == tensor.shape or not self.part.whole):
            raw.shape, raw.shapeSignature = np.array(tensor.shape, np.int32), np.array(tensor.signature, np.int32)
            raw.hasRank = True
        return raw

    def tensor(self, old: Any, name: str | None, numbers: dict[int, int]) -> Any:
        raw = copy.copy(old)
        raw.buffer = self.buffer(old.buffer)
        if name is not None:
            raw.name = name
        if _scale_tensors(old):
            raw.quantization = copy.copy(old.quantization)
            details = raw.quantization.details = copy.copy(old.quantization.details)
            details.scales = numbers.get(details.scales, details.scales)
            details.zeroPoints = numbers.get(details.zeroPoints, details.zeroPoints)
        return raw

    def operator(self, operator: Operator, numbers: dict[int, int]) -> Any:
        raw = copy.copy(operator.raw)
        raw.opcodeIndex = self.codes.setdefault(raw.opcodeIndex, len(self.codes))
        for name in ("inputs", "outputs", "intermediates"):
            indices = getattr(raw, name)
            if indices is not None:
                setattr(raw, name, _renumber(indices, numbers))
        raw.builtinOptions = self.options(raw.builtinOptions)
        raw.builtinOptions2 = self.options(raw.builtinOptions2)
        if not self.part.whole:
            raw.debugMetadataIndex = -1
        return raw

    def options(self, old: Any) -> Any:
        if not called_graphs(old):
            return old
        options = copy.copy(old)
        for name in graph_fields(old):
            value = getattr(old, name)
            if np.ndim(value):
                setattr(options, name, np.array([self.graphs[int(i)] for i in value], np.int32))
            else:
                setattr(options, name, self.graphs[int(value)])
        return options

    def buffer(self, old: int) -> int:
        # A buffer without data is the same as none, and buffer 0 is none.
        if self.model.buffers[old] is None:
            return 0
        return self.buffers.setdefault(old, len(self.buffers))

    def keeps(self, item: Any) -> bool:
        name = schema.text(item.name)
        if name == metadata.NAME and not (self.has_inputs and self.has_outputs):
            return (self.has_inputs or self.has_outputs) and metadata.read_annotations(self.model).metadata is not None
        return self.part.whole or bool(schema.PARTIAL_METADATA.fullmatch(name))

    def metadata(self, item: Any) -> Any:
        raw = copy.copy(item)
        data = metadata.read_annotations(self.model).metadata
        if schema.text(item.name) == metadata.NAME and data is not None and self.has_inputs != self.has_outputs:
            kept = metadata.keep_part(data, inputs=self.has_inputs, outputs=self.has_outputs)
            number = -1 - len(self.own)
            self.own[number] = np.frombuffer(kept, np.uint8)
            raw.buffer = self.buffers.setdefault(number, len(self.buffers))
        else:
            raw.buffer = self.buffer(item.buffer)
        return raw

    def signatures(self, numbers: dict[int, int]) -> list[Any]:
        """Return the signatures of the graphs kept: own names where they name a port, tensor names elsewhere."""
        kept = []
        for old in self.model.raw.signatureDefs:
            if old.subgraphIndex == 0:
                raw = copy.copy(old)
                raw.inputs = self.tensor_maps(old.inputs, self.part.inputs, numbers)
                raw.outputs = self.tensor_maps(old.outputs, self.part.outputs, numbers)
                kept.append(raw)
            elif self.part.whole:
                kept.append(old)
        return kept

    def tensor_maps(self, old: Iterable[Any] | None, ports: tuple[int, ...], numbers: dict[int, int]) -> list[Any]:
        maps, taken, named = [], set(), set()
        for item in old or ():
            if item.tensorIndex in ports:
                named.add(item.tensorIndex)
                taken.add(schema.text(item.name))
                maps.append(_tensor_map(item.name, numbers[item.tensorIndex]))
        for index in (i for i in ports if i not in named and not self.part.whole):
            name = self.model.main.tensors[index].name
            while name in taken:
                name = f"{name}#{index}"
            taken.add(name)
            maps.append(_tensor_map(name, numbers[index]))
        return maps


@dataclass(frozen=True, slots=True)
class _Stored:
    """One buffer of the file: its data inside the flatbuffer, or `size` bytes behind it at `offset`."""

    data: NDArray[np.uint8] | None
    offset: int = 0
    size: int = 0

    def Pack(self, builder: Any) -> int:  # noqa: N802  the schema's objects call it so
        vector = None
        if self.data is not None:
            # The schema asks for this alignment, but the generated Python code does not keep to it.
            builder.StartVector(1, self.data.size, ALIGNMENT)
            builder.head -= self.data.size
            builder.Bytes[builder.head : builder.head + self.data.size] = self.data.data
            vector = builder.EndVector()
        tflite.BufferStart(builder)
        if vector is not None:
            tflite.BufferAddData(builder, vector)
        tflite.BufferAddOffset(builder, self.offset)
        tflite.BufferAddSize(builder, self.size)
        return int(tflite.BufferEnd(builder))


def _tensor_map(name: str | bytes, index: int) -> Any:
    raw = tflite.TensorMapT()
    raw.name, raw.tensorIndex = name, index
    return raw


def _scale_tensors(raw: Any) -> tuple[int, ...]:
    """Return the tensors that hold the scales of a blockwise quantised one."""
    details: Any = None if raw.quantization is None else raw.quantization.details
    # The class is missing from the schema of older releases.
    if details is None or type(details).__name__ != "BlockwiseQuantizationT":
        return ()
    return tuple(index for index in (details.scales, details.zeroPoints) if index > 0)


def _renumber(indices: Iterable[int], numbers: dict[int, int]) -> NDArray[np.int32]:
    return np.array([numbers[int(i)] if i >= 0 else -1 for i in indices], np.int32)


def _pack_large(raw: Any, buffers: list[NDArray[np.uint8] | None], rest: int) -> memoryview:
    """Put the weights behind the flatbuffer; its length does not depend on the offsets, so it is built twice."""
    outside = [data is not None and data.size > 0 for data in buffers]
    draft = [
        _Stored(None, _PLACEHOLDER, 1) if out else _Stored(data) for data, out in zip(buffers, outside, strict=True)
    ]
    position = _aligned(len(_pack(raw, draft, rest)))
    stored = []
    for data, out in zip(buffers, outside, strict=True):
        if data is None or not out:
            stored.append(_Stored(data))
            continue
        stored.append(_Stored(None, position, data.size))
        position = _aligned(position + data.size)
    result = bytearray(position)
    head = _pack(raw, stored, rest)
    result[: len(head)] = head
    for item, data in zip(stored, buffers, strict=True):
        if item.offset and data is not None:
            result[item.offset : item.offset + item.size] = data.data
    return memoryview(result)


def _pack(raw: Any, buffers: list[_Stored], rest: int) -> memoryview:
    """Return the flatbuffer; its content besides these buffers is at most `rest` bytes."""
    size = rest + sum(ALIGNMENT + 32 + (0 if item.data is None else item.data.size) for item in buffers)
    raw.buffers = buffers
    try:
        # Room for everything at once: a builder that grows copies its weights and needs three times their size.
        builder = flatbuffers.Builder(min(size, flatbuffers.Builder.MAX_BUFFER_SIZE))
        builder.Finish(raw.Pack(builder), file_identifier=schema.FILE_IDENTIFIER)
    except flatbuffers.builder.BuilderSizeError as error:
        raise ModelError("a slice would need more than 2 GB besides its weights; cut at more places") from error
    return memoryview(builder.Bytes)[builder.Head() :]


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
