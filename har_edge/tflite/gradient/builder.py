"""Build one .tflite file out of builtin operators with fixed shapes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite import schema
from har_edge.tflite.encode import pack_model
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.operator_table import OperatorTable
from har_edge.tflite.schema import tflite

_TYPES = {dtype: number for number, dtype in schema.DTYPES.items()}
_TABLE_BYTES = 4096  # more than an operator or a tensor takes without its constants

# On tflite-runtime 2.14 without XNNPACK, MUL and others that broadcast more dimensions end the process.
_BROADCAST_RANK = 4

Shape = tuple[int, ...]


class GraphBuilder:
    """Grows the tensors and operators of one file; each method that adds a tensor returns its number.

    All shapes are fixed. Operators run in the order in which they are added; `encode` leaves out those that no output
    needs. Equal constants are stored once.
    """

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._shapes: list[Shape] = []
        self._dtypes: list[str] = []
        self._table = OperatorTable()
        self._buffers: list[NDArray[np.uint8] | None] = [None]
        self._constants: dict[tuple[str, Shape, bytes], int] = {}
        self._values: dict[int, NDArray[Any]] = {}

    @property
    def operators(self) -> int:
        """How many operators were added."""
        return len(self._table.operators)

    def shape(self, tensor: int) -> Shape:
        """Return the shape of a tensor."""
        return self._shapes[tensor]

    def dtype(self, tensor: int) -> str:
        """Return the NumPy name of the type of a tensor."""
        return self._dtypes[tensor]

    def value(self, tensor: int) -> NDArray[Any] | None:
        """Return the data of a constant, None for a tensor that is computed."""
        return self._values.get(tensor)

    def empty(self, shape: Sequence[int], dtype: str = "float32", name: str = "") -> int:
        """Add a tensor without data: an input of the file, or what an operator will give."""
        raw = tflite.TensorT()
        raw.name, raw.type, raw.hasRank = name or f"t{len(self._tensors)}", _TYPES[dtype], True
        raw.shape = np.array(shape, np.int32)
        self._tensors.append(raw)
        self._shapes.append(tuple(int(n) for n in shape))
        self._dtypes.append(dtype)
        return len(self._tensors) - 1

    def constant(self, values: Any) -> int:
        """Return the constant with these values, made of a NumPy array of its type; numbers become float32."""
        array = values if isinstance(values, np.ndarray) else np.asarray(values, np.float32)
        array = np.ascontiguousarray(array).reshape(array.shape)
        # Constants as large as weights are not looked up: that would copy them.
        small = array.tobytes() if array.nbytes <= 1 << 16 else None
        key = (array.dtype.name, array.shape, small or b"")
        if small is not None and key in self._constants:
            return self._constants[key]
        number = self.empty(array.shape, array.dtype.name)
        self._tensors[number].buffer = len(self._buffers)
        self._buffers.append(array.reshape(-1).view(np.uint8))
        self._values[number] = array
        if small is not None:
            self._constants[key] = number
        return number

    def ints(self, values: Sequence[int]) -> int:
        """Return an int32 constant of one dimension."""
        return self.constant(np.array(values, np.int32).reshape(-1))

    def add(
        self,
        operator: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: Any = None,
        *,
        dtype: str = "float32",
        version: int = 1,
    ) -> int:
        """Add an operator by its name in the schema, and return what it gives; -1 stands for an absent input."""
        output = self.empty(shape, dtype)
        self.add_several(operator, inputs, [output], options, version=version)
        return output

    def add_several(
        self, operator: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, *, version: int = 1
    ) -> None:
        """Add an operator that gives these tensors, which `empty` made."""
        self._table.add(operator, inputs, outputs, options, version)

    def copy(self, model: Model, operator: Operator, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Add an operator of the model with these tensors of the file.

        Raises GradientError for an operator with graphs, variables or scales of its own inside.
        """
        if operator.calls or operator.inner or operator.resource:
            raise GradientError(
                f"operator {operator.index} ({operator.name}) holds graphs or state; a training graph cannot carry it"
            )
        raw = copy.copy(operator.raw)
        code = model.raw.operatorCodes[operator.raw.opcodeIndex]
        custom = code.customCode or b""
        custom = custom if isinstance(custom, bytes) else custom.encode()
        raw.opcodeIndex = self._table.code(max(code.deprecatedBuiltinCode, code.builtinCode), custom, code.version)
        raw.inputs, raw.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        raw.debugMetadataIndex = -1
        self._table.operators.append(raw)

    def rename(self, tensor: int, name: str, quantization: Any = None) -> None:
        """Give a tensor a name of its own, and the scales of a quantised one."""
        self._tensors[tensor].name = name
        if quantization is not None:
            self._tensors[tensor].quantization = quantization

    def open_batch(self) -> None:
        """Let the first dimension of all tensors that are computed, or are inputs, vary; it must be the batch."""
        for tensor, raw in enumerate(self._tensors):
            if self.value(tensor) is None:
                raw.shapeSignature = np.array([-1, *self.shape(tensor)[1:]], np.int32)

    def crossing(self, place: int, inputs: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """Return the tensors, not constant, that operators from number `place` on read and do not make.

        Only operators that the outputs need count; `inputs` are those of the whole file.
        """
        later = self._needed([*inputs], outputs, place)[0]
        made = {int(i) for operator in later for i in operator.outputs}
        read = dict.fromkeys(int(i) for operator in later for i in operator.inputs if i >= 0)
        read |= dict.fromkeys(outputs)
        return [number for number in read if number not in made and number not in self._values]

    def encode(self, inputs: Sequence[int], outputs: Sequence[int]) -> memoryview:
        """Return the file with these inputs and outputs, without what the outputs do not need.

        An input may be a tensor that an operator makes: the file begins behind it.
        """
        operators, used = self._needed(inputs, outputs)
        numbers = {old: new for new, old in enumerate(sorted(used))}
        buffers: list[NDArray[np.uint8] | None] = [None]
        graph = tflite.SubGraphT()
        graph.name, graph.debugMetadataIndex = b"main", -1
        graph.tensors = []
        for old in numbers:
            raw = copy.copy(self._tensors[old])
            if raw.buffer:
                buffers.append(self._buffers[raw.buffer])
                raw.buffer = len(buffers) - 1
            graph.tensors.append(raw)
        graph.operators = []
        for operator in operators:
            raw = copy.copy(operator)
            raw.inputs, raw.outputs = _renumber(operator.inputs, numbers), _renumber(operator.outputs, numbers)
            graph.operators.append(raw)
        graph.inputs, graph.outputs = _renumber(inputs, numbers), _renumber(outputs, numbers)
        model = tflite.ModelT()
        model.version, model.description = schema.VERSION, b"har_edge training graph"
        model.subgraphs, model.operatorCodes = [graph], self._table.codes
        return pack_model(model, buffers, (len(numbers) + len(operators) + len(buffers) + 16) * _TABLE_BYTES)

    def _needed(self, inputs: Sequence[int], outputs: Sequence[int], place: int = 0) -> tuple[list[Any], set[int]]:
        used, kept = {*inputs, *outputs}, []
        needed, given = set(outputs), set(inputs)
        for operator in reversed(self._table.operators[place:]):
            made = {int(i) for i in operator.outputs}
            if made & needed - given:
                read = {int(i) for i in operator.inputs if i >= 0}
                needed |= read
                used |= read | made
                kept.append(operator)
        return kept[::-1], used

    # Elementwise operators, with NumPy's rules for shapes.

    def binary(self, operator: str, a: int, b: int, *, dtype: str = "float32") -> int:
        """Add an elementwise operator of two tensors, such as MUL, or GREATER with dtype bool.

        Tensors of more dimensions than the kernels broadcast are repeated first, and flat.
        """
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        if len(shape) > _BROADCAST_RANK and self.shape(a) != self.shape(b):
            a, b = self._repeated(a, shape), self._repeated(b, shape)
            return self.reshape(self.binary(operator, a, b, dtype=dtype), shape)
        return self.add(operator, [a, b], shape, _options(operator), dtype=dtype)

    def _repeated(self, a: int, shape: Shape) -> int:
        """Return a as a vector of the elements of this shape, or of the one element that it has."""
        size = math.prod(shape)
        if self.shape(a) == shape or math.prod(self.shape(a)) == 1:
            return self.reshape(a, (math.prod(self.shape(a)),))
        options = tflite.BroadcastToOptionsT()
        wide = self.add("BROADCAST_TO", [a, self.ints(shape)], shape, options, dtype=self.dtype(a), version=2)
        return self.reshape(wide, (size,))

    def unary(self, operator: str, a: int, options: Any = None) -> int:
        """Add an elementwise operator of one tensor, such as TANH."""
        return self.add(operator, [a], self.shape(a), options or _options(operator))

    def plus(self, a: int, b: int) -> int:
        """Return a + b."""
        return self.binary("ADD", a, b)

    def minus(self, a: int, b: int) -> int:
        """Return a - b."""
        return self.binary("SUB", a, b)

    def times(self, a: int, b: int) -> int:
        """Return a * b, elementwise."""
        return self.binary("MUL", a, b)

    def over(self, a: int, b: int) -> int:
        """Return a / b, elementwise."""
        return self.binary("DIV", a, b)

    def scaled(self, a: int, factor: float) -> int:
        """Return a times a number."""
        return a if factor == 1 else self.times(a, self.constant(factor))

    def cast(self, a: int, dtype: str) -> int:
        """Return a as another type."""
        options = tflite.CastOptionsT()
        options.inDataType, options.outDataType = _TYPES[self.dtype(a)], _TYPES[dtype]
        return self.add("CAST", [a], self.shape(a), options, dtype=dtype)

    # Operators that move values.

    def reshape(self, a: int, shape: Sequence[int]) -> int:
        """Return a in another shape; the same tensor where it has that shape."""
        if self.shape(a) == tuple(shape):
            return a
        return self.identity(a, shape)

    def identity(self, a: int, shape: Sequence[int] | None = None) -> int:
        """Return a new tensor with the values of a, in this shape."""
        options = tflite.ReshapeOptionsT()
        wanted = self.shape(a) if shape is None else tuple(shape)
        value = self._values.get(a)
        if shape is not None and value is not None:
            return self.constant(value.reshape(wanted))
        if math.prod(wanted) != math.prod(self.shape(a)):
            raise GradientError(f"shape {list(wanted)} came for values of {list(self.shape(a))}; this is a defect")
        options.newShape = np.array(wanted, np.int32)
        return self.add("RESHAPE", [a, self.ints(wanted)], wanted, options, dtype=self.dtype(a))

    def transpose(self, a: int, order: Sequence[int]) -> int:
        """Return a with its dimensions in this order; the same tensor where that is its own."""
        if tuple(order) == tuple(range(len(order))):
            return a
        shape = [self.shape(a)[axis] for axis in order]
        value = self._values.get(a)
        if value is not None:
            return self.constant(value.transpose(order))
        return self.add("TRANSPOSE", [a, self.ints(order)], shape, tflite.TransposeOptionsT(), dtype=self.dtype(a))

    def pad(self, a: int, amounts: Sequence[tuple[int, int]]) -> int:
        """Return a with so many zeros before and after it in each dimension."""
        if not any(before or after for before, after in amounts):
            return a
        shape = [n + before + after for n, (before, after) in zip(self.shape(a), amounts, strict=True)]
        table = self.constant(np.array(amounts, np.int32))
        return self.add("PAD", [a, table], shape, tflite.PadOptionsT(), dtype=self.dtype(a))

    def slice(self, a: int, begin: Sequence[int], size: Sequence[int]) -> int:
        """Return a block of a; the same tensor where the block is all of it."""
        if tuple(size) == self.shape(a):
            return a
        value = self._values.get(a)
        if value is not None:
            ends = [start + n for start, n in zip(begin, size, strict=True)]
            return self.constant(value[tuple(slice(start, end) for start, end in zip(begin, ends, strict=True))])
        inputs = [a, self.ints(begin), self.ints(size)]
        return self.add("SLICE", inputs, size, tflite.SliceOptionsT(), dtype=self.dtype(a))

    def strided(self, a: int, begin: Sequence[int], end: Sequence[int], steps: Sequence[int]) -> int:
        """Return each `steps`-th element of a from `begin` up to `end`, all of them positive, in each dimension."""
        if all(step == 1 for step in steps):
            return self.slice(a, begin, [stop - start for start, stop in zip(begin, end, strict=True)])
        shape = [-(-(stop - start) // step) for start, stop, step in zip(begin, end, steps, strict=True)]
        inputs = [a, self.ints(begin), self.ints(end), self.ints(steps)]
        return self.add("STRIDED_SLICE", inputs, shape, tflite.StridedSliceOptionsT(), dtype=self.dtype(a))

    def concat(self, parts: Sequence[int], axis: int) -> int:
        """Return the tensors behind one another along an axis."""
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        axis %= len(shape)
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        options = tflite.ConcatenationOptionsT()
        options.axis = axis
        return self.add("CONCATENATION", list(parts), shape, options, dtype=self.dtype(parts[0]))

    # Operators that add up.

    def sum_over(self, a: int, axes: Sequence[int], *, keep: bool = False) -> int:
        """Return the sums over these axes, which stay as dimensions of 1 with `keep`."""
        if not axes:
            return a
        shape = self.shape(a)
        axes = sorted(axis % len(shape) for axis in axes)
        options = tflite.ReducerOptionsT()
        options.keepDims = keep
        left = [1 if axis in axes else n for axis, n in enumerate(shape) if keep or axis not in axes]
        return self.add("SUM", [a, self.ints(axes)], left, options)

    def unbroadcast(self, dy: int, shape: Sequence[int]) -> int:
        """Return the gradient of an operand of this shape from that of a result it was broadcast to."""
        extra = len(self.shape(dy)) - len(shape)
        wide = [axis for axis, n in enumerate(self.shape(dy)) if axis < extra or (shape[axis - extra] == 1 and n != 1)]
        return self.reshape(self.sum_over(dy, wide), shape)

    def matmul(self, a: int, b: int, *, adj_a: bool = False, adj_b: bool = False) -> int:
        """Return the matrix product over the last two dimensions, transposed first as asked; others broadcast.

        tflite-runtime 2.14 is silently wrong where it transposes a and repeats b, so a is transposed before.
        """
        batches = self.shape(b)[:-2]
        if adj_a and batches and batches != self.shape(a)[:-2]:
            rank = len(self.shape(a))
            a, adj_a = self.transpose(a, [*range(rank - 2), rank - 1, rank - 2]), False
        options = tflite.BatchMatMulOptionsT()
        options.adjX, options.adjY = adj_a, adj_b
        rows = self.shape(a)[-1 if adj_a else -2]
        columns = self.shape(b)[-2 if adj_b else -1]
        shape = (*np.broadcast_shapes(self.shape(a)[:-2], self.shape(b)[:-2]), rows, columns)
        return self.add("BATCH_MATMUL", [a, b], shape, options)


def _renumber(indices: Sequence[int], numbers: dict[int, int]) -> NDArray[np.int32]:
    return np.array([numbers[int(i)] if i >= 0 else -1 for i in indices], np.int32)


def _options(operator: str) -> Any:
    """Return the options of an elementwise operator, all zero; None where the schema has none for it."""
    name = "".join(part.capitalize() for part in operator.split("_")) + "OptionsT"
    kind = getattr(tflite, name, None)
    return kind() if kind is not None and hasattr(tflite.BuiltinOptions, name[:-1]) else None
