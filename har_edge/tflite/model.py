"""A .tflite file as a graph: operators, the tensors between them, and views of the weights."""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ModelError
from har_edge.files import MAX_MODEL_BYTES, open_regular
from har_edge.tflite import schema
from har_edge.tflite.schema import tflite


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a graph.

    `name` is unique in its graph. `shape` is the shape that the file plans for, `signature` the same with -1 for a
    dynamic dimension. `dtype` is the NumPy name, or None where NumPy has none (string, resource, packed integers).
    `constant` tensors carry data, and `variable` tensors are recurrent state. `raw` is the object of the schema.
    Without `batched`, a dynamic first dimension is not the batch; only a run shows that
    (har_edge.inference.tensor_observation).
    """

    index: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    type_name: str
    dtype: str | None
    constant: bool
    variable: bool
    sparse: bool
    unranked: bool
    raw: Any = field(repr=False)
    batched: bool = True

    @property
    def elements(self) -> int:
        """Number of elements for the planned shape."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size for the planned shape; 0 where no fixed size exists."""
        return self.elements * np.dtype(self.dtype).itemsize if self.dtype else 0


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: the tensor indices that it reads and writes (absent optional ones left out), the graphs that it
    calls.
    """

    index: int
    name: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    inner: tuple[int, ...]
    calls: tuple[int, ...]
    resource: str | None
    raw: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Graph:
    """One subgraph; its operators stand in the order in which they run.

    `outputs` of the main graph are those that a message can carry. `unsent` are its other outputs, such as strings,
    which no slice gives. All outputs that are `gathered` leave together, with the last of them that is made.
    `sent_bytes` are the bytes of an input as sensors send it, where these are not those of the tensor.
    """

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    raw: Any = field(repr=False)
    unsent: tuple[int, ...] = ()
    gathered: tuple[int, ...] = ()
    sent_bytes: Mapping[int, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Model:
    """A whole model. `main` is the graph that runs; the others are bodies of loops and branches, or further signatures.

    `remarks` are notes for the person who cuts the model.
    """

    name: str
    data: memoryview = field(repr=False)
    graphs: tuple[Graph, ...] = field(repr=False)
    buffers: tuple[NDArray[np.uint8] | None, ...] = field(repr=False)
    raw: Any = field(repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def main(self) -> Graph:
        """The graph that is cut."""
        return self.graphs[0]

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, as hexadecimal text."""
        return hashlib.sha256(self.data).hexdigest()


def gather_outputs(model: Model, names: Collection[str]) -> Model:
    """Return the model with its outputs of these names gathered; those that are made early then cross later cuts."""
    main = model.main
    gathered = tuple(index for index in main.outputs if main.tensors[index].name in names)
    return replace(model, graphs=(replace(main, gathered=gathered), *model.graphs[1:]))


def with_sent_bytes(model: Model, sizes: Mapping[str, int]) -> Model:
    """Return the model with the bytes of the inputs of these names as sensors send them, for planners."""
    main = model.main
    found = {index: sizes[name] for index in main.inputs if (name := main.tensors[index].name) in sizes}
    return replace(model, graphs=(replace(main, sent_bytes=found), *model.graphs[1:]))


def read_model(source: Path | bytes) -> Model:
    """Read a model. The weights stay in the file (mapped, not copied), or in the given bytes.

    Raises ModelError when the file is no TFLite file, is broken, or uses a feature that slices cannot carry.
    """
    if isinstance(source, bytes):
        return _read("model", memoryview(source))
    try:
        with open_regular(source, MAX_MODEL_BYTES) as file:
            # An empty file cannot be mapped.
            size = file.seek(0, 2)
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    except OSError as error:
        raise ModelError(f"cannot read model {source}: {error.strerror}; give the path of a .tflite file") from error
    return _read(source.name, data)


def _read(name: str, data: memoryview) -> Model:
    if len(data) < 8 or bytes(data[4:8]) != schema.FILE_IDENTIFIER:
        raise ModelError(
            f"{name}: no TFLite model: {len(data)} bytes, bytes 4 to 8 are {bytes(data[4:8])!r}, "
            f"expected {schema.FILE_IDENTIFIER!r}; give a .tflite file"
        )
    with schema.parsing(name):
        return _Reader(name, data).model()


class _Reader:
    """Walks the flatbuffer once, and checks every index and vector before it uses them."""

    def __init__(self, name: str, data: memoryview) -> None:
        self.name, self.data = name, data
        (position,) = struct.unpack_from("<I", data, 0)
        self.root = tflite.Model()
        self.root.Init(data, position)
        # Every table takes at least four bytes of some vector: more of them means vectors that share memory.
        self.budget = len(data) // 4

    def model(self) -> Model:
        root = self.root
        if root.Version() != schema.VERSION:
            raise ModelError(f"{self.name}: TFLite schema version {root.Version()}, expected {schema.VERSION}")
        if getattr(root, "ExternalBuffersLength", int)():
            raise ModelError(
                f"{self.name}: the weights are in other files, which is not supported; "
                "convert the model with its weights inside"
            )
        raw = tflite.ModelT()
        raw.version, raw.description = root.Version(), root.Description()
        raw.operatorCodes = self.tables(root.OperatorCodes, root.OperatorCodesLength(), tflite.OperatorCodeT)
        raw.metadata = self.tables(root.Metadata, root.MetadataLength(), tflite.MetadataT)
        raw.signatureDefs = self.tables(root.SignatureDefs, root.SignatureDefsLength(), tflite.SignatureDefT)
        raw.metadataBuffer = None if root.MetadataBufferIsNone() else root.MetadataBufferAsNumpy()
        schema.refuse_unknown_fields(root._tab, raw, self.name)
        self.codes = raw.operatorCodes
        self.buffers = tuple(self.buffer(i) for i in range(self.count(root.BuffersLength())))
        if root.SubgraphsLength() < 1:
            raise ModelError(f"{self.name}: the model has no graph")
        self.n_graphs = root.SubgraphsLength()
        graphs = tuple(self.graph(i) for i in range(self.count(self.n_graphs)))
        self.check_main(graphs[0])
        return Model(self.name, self.data, graphs, self.buffers, raw, tuple(_remarks(graphs[0])))

    def count(self, length: int) -> int:
        self.budget -= length
        if self.budget < 0:
            raise ValueError(f"a vector of {length} entries does not fit into {len(self.data)} bytes")
        return length

    def tables(self, get: Any, length: int, kind: Any) -> list[Any]:
        return [kind.InitFromObj(get(i)) for i in range(self.count(length))]

    def buffer(self, index: int) -> NDArray[np.uint8] | None:
        table = self.root.Buffers(index)
        offset, size = table.Offset(), table.Size()
        if offset > 1:  # layout of models over 2 GB: the data follow the flatbuffer
            return self.view(offset, size)
        return None if table.DataIsNone() else np.asarray(table.DataAsNumpy())

    def view(self, offset: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.data, np.uint8, count=size, offset=offset)

    def graph(self, index: int) -> Graph:
        table = self.root.Subgraphs(index)
        raw = tflite.SubGraphT()
        raw.name, raw.debugMetadataIndex = table.Name(), getattr(table, "DebugMetadataIndex", lambda: -1)()
        schema.refuse_unknown_fields(table._tab, raw, f"{self.name}: graph {index}")
        taken: set[str] = set()
        tensors = tuple(self.tensor(table.Tensors(i), i, taken) for i in range(self.count(table.TensorsLength())))
        n = len(tensors)
        operators = tuple(self.operator(table.Operators(i), i, n) for i in range(self.count(table.OperatorsLength())))
        inputs = _indices(None if table.InputsIsNone() else table.InputsAsNumpy(), n)
        outputs = _once(_indices(None if table.OutputsIsNone() else table.OutputsAsNumpy(), n))
        unsent = tuple(i for i in outputs if tensors[i].dtype is None) if index == 0 else ()
        outputs = tuple(i for i in outputs if i not in unsent)
        return Graph(schema.text(raw.name), tensors, operators, _once(inputs), outputs, raw, unsent)

    def tensor(self, table: Any, index: int, taken: set[str]) -> Tensor:
        raw = tflite.TensorT.InitFromObj(table)
        what = f"{self.name}: tensor {index}"
        schema.refuse_unknown_fields(table._tab, raw, what)
        if getattr(raw, "externalBuffer", 0):
            raise ModelError(f"{what} has its data in another file, which is not supported")
        if not 0 <= raw.buffer < len(self.buffers):
            raise IndexError(f"tensor {index} uses buffer {raw.buffer} of {len(self.buffers)}")
        shape = () if raw.shape is None else tuple(int(n) for n in raw.shape)
        signature = () if raw.shapeSignature is None else tuple(int(n) for n in raw.shapeSignature)
        if min(shape, default=0) < 0:
            raise ValueError(f"tensor {index} has shape {list(shape)}")
        data = self.buffers[raw.buffer] if raw.buffer else None
        return Tensor(
            index=index,
            name=_unique(schema.text(raw.name), index, taken),
            shape=shape,
            signature=signature if len(signature) == len(shape) else shape,
            type_name=schema.TYPE_NAMES.get(raw.type, f"type {raw.type}"),
            dtype=schema.DTYPES.get(raw.type),
            constant=data is not None and (data.size > 0 or 0 in shape),
            variable=bool(raw.isVariable),
            sparse=raw.sparsity is not None,
            unranked=not shape and not raw.hasRank,
            raw=raw,
        )

    def operator(self, table: Any, index: int, n_tensors: int) -> Operator:
        raw = tflite.OperatorT.InitFromObj(table)
        what = f"{self.name}: operator {index}"
        schema.refuse_unknown_fields(table._tab, raw, what)
        for kind, known, value in (
            (raw.builtinOptionsType, raw.builtinOptions, table.BuiltinOptions()),
            (raw.builtinOptions2Type, raw.builtinOptions2, table.BuiltinOptions2()),
        ):
            if kind and value is not None:
                if known is None:
                    raise ModelError(f"{what} has options of unknown kind {kind}; install a newer ai-edge-litert")
                schema.refuse_unknown_fields(value, known, f"{what}: its options")
        if raw.largeCustomOptionsOffset > 1:
            raw.customOptions = self.view(raw.largeCustomOptionsOffset, raw.largeCustomOptionsSize)
        raw.largeCustomOptionsOffset = raw.largeCustomOptionsSize = 0
        code = self.codes[raw.opcodeIndex]
        # Files from before 2020 hold the operator in a byte of its own.
        builtin = max(code.deprecatedBuiltinCode, code.builtinCode)
        name = schema.text(code.customCode) if builtin == schema.CUSTOM else schema.OPERATOR_NAMES.get(builtin)
        if name is None:
            raise ModelError(f"{what} is of unknown kind {builtin}; install a newer ai-edge-litert")
        return Operator(
            index=index,
            name=name or "(unnamed custom operator)",
            custom=builtin == schema.CUSTOM,
            inputs=_indices(raw.inputs, n_tensors, optional=True),
            outputs=_indices(raw.outputs, n_tensors, optional=True),
            inner=_indices(raw.intermediates, n_tensors, optional=True),
            calls=self.calls(raw),
            resource=_resource(name, raw.builtinOptions),
            raw=raw,
        )

    def calls(self, raw: Any) -> tuple[int, ...]:
        found = tuple(int(i) for options in (raw.builtinOptions, raw.builtinOptions2) for i in called_graphs(options))
        if any(not 0 < i < self.n_graphs for i in found):
            raise IndexError(f"an operator calls graph {max(found)} (legal: 1 to {self.n_graphs - 1})")
        return found

    def check_main(self, graph: Graph) -> None:
        """Refuse a main graph whose operators do not stand in the order in which data flow."""
        if not graph.operators:
            raise ModelError(f"{self.name}: the model has no operators")
        made: dict[int, int] = {}
        for operator in graph.operators:
            for index in operator.outputs:
                made.setdefault(index, operator.index)
        for operator in graph.operators:
            for index in operator.inputs:
                if made.get(index, -1) >= operator.index and not graph.tensors[index].variable:
                    raise ModelError(
                        f"{self.name}: operator {operator.index} ({operator.name}) reads tensor "
                        f"{graph.tensors[index].name} before operator {made[index]} makes it"
                    )
        for index in (*graph.inputs, *made):
            if graph.tensors[index].constant:
                raise ModelError(f"{self.name}: tensor {graph.tensors[index].name} is both computed and constant")


def _remarks(main: Graph) -> Iterator[str]:
    for index in main.unsent if main.outputs else ():
        tensor = main.tensors[index]
        yield f"output {tensor.name} is left out: its type {tensor.type_name} cannot be sent between devices"


def graph_fields(options: Any) -> list[str]:
    """Return the attributes of an options object that name graphs."""
    return [
        name
        for name in vars(options or object)
        if name.endswith(("SubgraphIndex", "SubgraphIndices")) or name == "subgraph"
    ]


def called_graphs(options: Any) -> list[int]:
    """Return the graphs that an operator with these options calls."""
    if options is None:
        return []
    if isinstance(options, tflite.StableHLOCompositeOptionsT) and options.decompositionSubgraphIndex <= 0:
        return []
    values = [getattr(options, name) for name in graph_fields(options)]
    return [int(i) for value in values if value is not None for i in np.atleast_1d(value)]


def _resource(name: str, options: Any) -> str | None:
    if name not in schema.HANDLES or options is None:
        return None
    if name == "HASHTABLE":
        return f"hash table {options.tableId}"
    return f"variable {schema.text(options.container)}/{schema.text(options.sharedName)}"


def _indices(raw: Any, n: int, *, optional: bool = False) -> tuple[int, ...]:
    """Return checked tensor indices; -1 stands for an absent optional tensor."""
    values = [] if raw is None else [int(i) for i in raw]
    lowest = -1 if optional else 0
    if any(not lowest <= i < n for i in values):
        raise IndexError(f"tensor index outside 0 to {n - 1} in {values[:10]}")
    return tuple(i for i in values if i >= 0)


def _once(indices: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(indices))


def _unique(name: str, index: int, taken: set[str]) -> str:
    """Return `name`, or `name#index` where it is empty or another tensor has it."""
    unique = name or f"tensor#{index}"
    while unique in taken:
        unique = f"{unique}#{index}"
    taken.add(unique)
    return unique
