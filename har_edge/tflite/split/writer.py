"""Write the .tflite file of a share of some operators: the model's own ones with other constants, shapes and options,
and operators between them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import CutError
from har_edge.tflite import schema
from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.encode import pack_model
from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.operator_table import OperatorTable
from har_edge.tflite.schema import tflite

_TABLE_BYTES = 4096  # more than an operator or a tensor takes without its name and constants
_TYPES = {dtype: number for number, dtype in schema.DTYPES.items()}


class ShardWriter:
    """Collects the tensors and operators of one file.

    Methods that add a tensor return its number in the file. Operators run in the order in which they are added.
    """

    def __init__(self, model: Model, flow: Dataflow | None = None) -> None:
        self.model = model
        self.flow = flow or trace_dataflow(model)
        self._numbers: dict[int, int] = {}
        self._tensors: list[Any] = []
        self._table = OperatorTable()
        self._buffers: list[NDArray[np.uint8] | None] = [None]
        self._own: dict[int, int] = {}

    def take(self, index: int, shape: Sequence[int] | None = None, signature: Sequence[int] | None = None) -> int:
        """Return a tensor of the model, with its constant data and its scales; the same one each time.

        A constant that other operators unpack (fp16 weights) comes with these operators. `shape` and `signature` (-1
        for a dimension of any size) replace those of the model.
        """
        if index not in self._numbers:
            tensor = self.model.main.tensors[index]
            maker = self.flow.maker.get(index, -1)
            if maker in self.flow.folded:
                operator = self.model.main.operators[maker]
                inputs = [self.take(i) if i >= 0 else -1 for i in raw_inputs(operator)]
                self._numbers[index] = self._copied(tensor, tensor.name, None, None)
                self.copy(operator, inputs, [self.take(i) for i in operator.outputs])
            else:
                self._numbers[index] = self._copied(tensor, tensor.name, shape, signature)
        return self._numbers[index]

    def like(
        self, index: int, name: str, shape: Sequence[int], signature: Sequence[int] | None = None, dtype: str = ""
    ) -> int:
        """Return a new tensor without data, with the type and scales of a tensor of the model; `dtype` gives another
        type, without scales.
        """
        number = self._copied(self.model.main.tensors[index], name, shape, signature)
        raw = self._tensors[number]
        raw.buffer, raw.isVariable, raw.sparsity = 0, False, None
        if dtype:
            raw.type, raw.quantization = _TYPES[dtype], None
        return number

    def constant(self, name: str, data: NDArray[Any], quantization: Any = None) -> int:
        """Return a new constant; `quantization` is an object of the schema."""
        raw = tflite.TensorT()
        raw.name, raw.type, raw.hasRank = name, _TYPES[data.dtype.name], True
        raw.shape = np.array(data.shape, np.int32)
        raw.quantization = quantization
        raw.buffer = len(self._buffers)
        # The view of a constant of the model stays a view.
        self._buffers.append(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        self._tensors.append(raw)
        return len(self._tensors) - 1

    def copy(self, operator: Operator, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Add an operator of the model with these tensors of the file (-1: an absent one); `options` replace its own.

        Raises CutError for an operator with graphs or tensors of its own inside.
        """
        if operator.calls or operator.inner or operator.resource:
            raise CutError(f"operator {operator.index} ({operator.name}) holds graphs or state; it can only run whole")
        raw = copy.copy(operator.raw)
        old = self.model.raw.operatorCodes[operator.raw.opcodeIndex]
        builtin = max(old.deprecatedBuiltinCode, old.builtinCode)
        custom = old.customCode or b""
        raw.opcodeIndex = self._table.code(
            builtin, custom if isinstance(custom, bytes) else custom.encode(), old.version
        )
        raw.inputs, raw.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        raw.debugMetadataIndex = -1
        if options:
            raw.builtinOptions = copy.copy(raw.builtinOptions)
            for name, value in options.items():
                setattr(raw.builtinOptions, name, value)
        self._table.operators.append(raw)

    def add(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, version: int = 1
    ) -> None:
        """Add an operator by its name in the schema; `options` is an object of the schema."""
        self._table.add(name, inputs, outputs, options, version)

    def encode(self, inputs: Sequence[int], outputs: Sequence[int]) -> memoryview:
        """Return the file with these tensors as its inputs and outputs."""
        raw = tflite.ModelT()
        raw.version, raw.description = schema.VERSION, self.model.raw.description
        graph = tflite.SubGraphT()
        graph.name, graph.tensors, graph.operators = b"main", self._tensors, self._table.operators
        graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        graph.debugMetadataIndex = -1
        raw.subgraphs = [graph]
        raw.operatorCodes = self._table.codes
        raw.metadata = [self._metadata(item) for item in self.model.raw.metadata if _is_partial(item)] or None
        names = sum(len(tensor.name) for tensor in self._tensors)
        tables = len(self._tensors) + len(self._table.operators) + len(self._buffers) + 16
        scales = sum(_scale_bytes(tensor) for tensor in self._tensors)
        return pack_model(raw, self._buffers, tables * _TABLE_BYTES + 8 * names + scales)

    def _copied(self, tensor: Tensor, name: str, shape: Sequence[int] | None, signature: Sequence[int] | None) -> int:
        if tensor.variable or tensor.sparse or (tensor.raw.quantization and tensor.raw.quantization.details):
            raise CutError(
                f"tensor {tensor.name} is state, sparse or quantised in blocks; only whole operators take it"
            )
        raw = copy.copy(tensor.raw)
        raw.name, raw.hasRank = name, True
        shape = tensor.shape if shape is None else shape
        signature = (tensor.signature if shape is tensor.shape else shape) if signature is None else signature
        raw.shape, raw.shapeSignature = np.array(shape, np.int32), None
        if -1 in signature:
            raw.shapeSignature = np.array(signature, np.int32)
        raw.buffer = self._buffer(tensor.raw.buffer)
        self._tensors.append(raw)
        return len(self._tensors) - 1

    def _buffer(self, old: int) -> int:
        data = self.model.buffers[old] if old else None
        if data is None:
            return 0
        if old not in self._own:
            self._own[old] = len(self._buffers)
            self._buffers.append(data)
        return self._own[old]

    def _metadata(self, item: Any) -> Any:
        raw = copy.copy(item)
        raw.buffer = self._buffer(item.buffer)
        return raw


def raw_inputs(operator: Operator) -> list[int]:
    """Return the inputs of an operator with -1 for each absent one."""
    return [int(i) for i in operator.raw.inputs]


def constant_data(model: Model, tensor: Tensor) -> NDArray[Any]:
    """Return the data of a constant as an array of its shape, a view of the model's file.

    Raises CutError for a tensor without data, or of a type that NumPy lacks.
    """
    data = model.buffers[tensor.raw.buffer] if tensor.raw.buffer else None
    if data is None or tensor.dtype is None:
        raise CutError(f"tensor {tensor.name} ({tensor.type_name}) came; expected a constant of numbers")
    values: NDArray[Any] = data.view(tensor.dtype).reshape(tensor.shape)
    return values


def _is_partial(item: Any) -> bool:
    return bool(schema.PARTIAL_METADATA.fullmatch(schema.text(item.name)))


def _scale_bytes(tensor: Any) -> int:
    if tensor.quantization is None:
        return 0
    held = tensor.quantization
    return 16 * sum(0 if one is None else len(one) for one in (held.scale, held.zeroPoint, held.min, held.max))
