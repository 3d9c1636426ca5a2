"""Write the file that computes some rows of a block.

Rows at the real border of a tensor need padding and rows inside do not, so the recipe of a share says how much padding
each operator adds, and how many rows of its inputs it leaves out. Shares with the same recipe have the same file,
whose row dimensions are of any size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.geometry import BlockShare, RowGeometry, RowOperator, Rows
from har_edge.tflite.split.row_rules import RowKind, RowRange, RowRule, find_rule, same_padding
from har_edge.tflite.split.writer import ShardWriter, constant_data, raw_inputs

# Kinds whose constants hold the number of rows.
_FIXED = (RowKind.SIZED, RowKind.TRANSPOSED)


def recipe(geometry: RowGeometry, share: BlockShare) -> Hashable:
    """Return what tells the file of one share of a block from that of another."""
    parts: list[Hashable] = [tuple(sorted(share.outputs)), tuple(sorted(share.inputs))]
    for one in share.operators:
        rule, made = one.rule, one.made
        if rule is None or made is None:
            parts.append(one.operator.index)
            continue
        wanted = share.rows[one.operator.outputs[0]]
        offsets = tuple(
            _offsets(share.rows[index], axis, made, geometry.model.main.tensors[index])
            for index, axis in zip(raw_inputs(one.operator), rule.axes, strict=True)
            if axis is not None and index in share.rows
        )
        fixed: tuple[int, ...] = (made.made_stop - made.made_start,) if rule.kind in _FIXED else ()
        if rule.sliced:
            fixed = (made.made_start, made.made_stop)
        cropped = (wanted.start - made.made_start, made.made_stop - wanted.stop)
        parts.append((one.operator.index, offsets, made.before, made.after, cropped, fixed))
    return tuple(parts)


def write_rows(geometry: RowGeometry, share: BlockShare) -> memoryview:
    """Return the file of a share; its inputs and outputs are those of the share, in order, by the model's names."""
    return _RowFile(geometry, share).write()


def _offsets(there: Rows, axis: int, made: RowRange, tensor: Tensor) -> tuple[int, int]:
    """Return how many rows of a tensor's part an operator leaves out, at the start and at the end."""
    start, stop = (0, tensor.shape[axis]) if there.axis is None else (there.start, there.stop)
    return made.start - start, stop - made.stop


class _RowFile:
    def __init__(self, geometry: RowGeometry, share: BlockShare) -> None:
        self.model: Model = geometry.model
        self.share = share
        self.writer = ShardWriter(geometry.model, geometry.flow)
        self._cropped: dict[tuple[int, int, int, int], int] = {}

    def write(self) -> memoryview:
        inputs = [self.tensor(index) for index in self.share.inputs]
        for one in self.share.operators:
            if one.rule is None or one.made is None:
                taken = [self.tensor(i) if i >= 0 else -1 for i in raw_inputs(one.operator)]
                self.writer.copy(one.operator, taken, [self.tensor(i) for i in one.operator.outputs])
            else:
                self.add(one, one.rule, one.made)
        return self.writer.encode(inputs, [self.tensor(index) for index in self.share.outputs])

    def tensor(self, index: int) -> int:
        """Return the part of a tensor of the model that the share has."""
        rows, tensor = self.share.rows.get(index), self.model.main.tensors[index]
        if rows is None or rows.axis is None:
            return self.writer.take(index, tensor.shape if rows else None)
        return self.writer.take(index, *_sizes(tensor.shape, rows.axis, rows.stop - rows.start))

    def add(self, one: RowOperator, rule: RowRule, made: RowRange) -> None:
        operator, graph = one.operator, self.model.main
        inputs = [self.input(index, at, rule, made) for at, index in enumerate(raw_inputs(operator))]
        wanted = self.share.rows[operator.outputs[0]]
        start, stop = wanted.start - made.made_start, made.made_stop - wanted.stop
        outputs = [self.tensor(index) for index in operator.outputs]
        rows, results = made.made_stop - made.made_start, outputs
        options, crops = self.prepare(operator, rule, made, inputs), [(rule.axis, start, stop)]
        if rule.kind is RowKind.TRANSPOSED:
            results, crops = self.transposed(operator, rule, rows, results, (start, stop), inputs)
        elif start or stop:
            results = [
                self.writer.like(i, f"{graph.tensors[i].name}/all", *_sizes(graph.tensors[i].shape, rule.axis, rows))
                for i in operator.outputs
            ]
        if operator.name in ("SQUEEZE", "EXPAND_DIMS"):
            self.writer.add("RESHAPE", inputs, results, tflite.ReshapeOptionsT())
        else:
            self.writer.copy(operator, inputs, results, **options)
        if results != outputs:
            for made_one, output in zip(results, outputs, strict=True):
                self.crop_into(made_one, output, crops, len(graph.tensors[operator.outputs[0]].shape))

    def input(self, index: int, position: int, rule: RowRule, made: RowRange) -> int:
        """Return an input of an operator: the rows of it that the operator takes."""
        if index < 0:
            return -1
        axis = rule.axes[position]
        if position in rule.sliced and axis is not None:
            return self.sliced(index, axis, made)
        if rule.kind is RowKind.RESHAPE and position:
            return -1  # replaced
        number = self.tensor(index)
        if axis is None or index not in self.share.rows:
            return number
        tensor = self.model.main.tensors[index]
        start, stop = _offsets(self.share.rows[index], axis, made, tensor)
        if not (start or stop):
            return number
        key = (index, axis, start, stop)
        if key not in self._cropped:
            name = f"{tensor.name}/{start}/{stop}"
            self._cropped[key] = self.writer.like(index, name, *_sizes(tensor.shape, axis, made.stop - made.start))
            self.crop_into(number, self._cropped[key], [(axis, start, stop)], len(tensor.shape))
        return self._cropped[key]

    def sliced(self, index: int, axis: int, made: RowRange) -> int:
        """Return the rows of a constant."""
        tensor = self.model.main.tensors[index]
        data = constant_data(self.model, tensor)
        rows = data[(slice(None),) * axis + (slice(made.start, made.stop),)]
        name = f"{tensor.name}/{made.start}"
        return self.writer.constant(name, np.ascontiguousarray(rows), tensor.raw.quantization)

    def crop_into(self, number: int, result: int, crops: Sequence[tuple[int, int, int]], rank: int) -> None:
        """Add an operator that leaves out so many rows at the start and the end of each axis, whatever the size."""
        begin, end, options = [0] * rank, [0] * rank, tflite.StridedSliceOptionsT()
        options.beginMask = options.endMask = (1 << rank) - 1
        for axis, start, stop in crops:
            begin[axis], end[axis] = start, -stop
            options.beginMask &= ~(1 << axis) if start else ~0
            options.endMask &= ~(1 << axis) if stop else ~0
        places = [self.numbers(f"{kind}/{result}", value) for kind, value in (("begin", begin), ("end", end))]
        self.writer.add("STRIDED_SLICE", [number, *places, self.numbers("ones", [1] * rank)], [result], options, 2)

    def numbers(self, name: str, values: Sequence[Any]) -> int:
        return self.writer.constant(name, np.array(values, np.int32))

    def prepare(self, operator: Operator, rule: RowRule, made: RowRange, inputs: list[int]) -> dict[str, Any]:
        """Replace the inputs of an operator that hold sizes, and pad the one with rows; return its new options."""
        if rule.kind is RowKind.WINDOW and hasattr(operator.raw.builtinOptions, "padding"):
            return self.window(operator, rule, made, inputs)
        constants = operator.inputs[1:]
        if rule.kind is RowKind.PAD:
            padding = constant_data(self.model, self.model.main.tensors[constants[0]]).copy()
            padding[rule.axis] = made.before, made.after
            inputs[1] = self.writer.constant(f"padding/{operator.index}", padding)
        elif rule.kind is RowKind.SIZED and operator.name.startswith("RESIZE"):
            sizes = constant_data(self.model, self.model.main.tensors[constants[0]]).copy()
            sizes[rule.axis - 1] = made.made_stop - made.made_start
            inputs[1] = self.writer.constant(f"size/{operator.index}", sizes)
        elif rule.kind is RowKind.RESHAPE:
            shape = list(self.model.main.tensors[operator.outputs[0]].shape)
            shape[rule.axis] = -1
            inputs[:] = [inputs[0], self.numbers(f"shape/{operator.index}", shape)]
            return {} if operator.name != "RESHAPE" or operator.raw.builtinOptions is None else {"newShape": None}
        elif rule.kind is RowKind.TRANSPOSED:
            return {"padding": tflite.Padding.VALID}
        elif rule.kind is RowKind.SLICE and operator.name == "SLICE":
            sizes = constant_data(self.model, self.model.main.tensors[constants[1]]).copy()
            sizes[rule.axis] = -1
            inputs[2] = self.writer.constant(f"size/{operator.index}", sizes)
        elif rule.kind is RowKind.SLICE:
            options, bit = operator.raw.builtinOptions, 1 << rule.axis
            return {"beginMask": options.beginMask | bit, "endMask": options.endMask | bit}
        return {}

    def window(self, operator: Operator, rule: RowRule, made: RowRange, inputs: list[int]) -> dict[str, Any]:
        """Write the padding of a convolution or a maximum as an operator of its own."""
        options, tensor = operator.raw.builtinOptions, self.model.main.tensors[operator.inputs[0]]
        rank, padding = len(tensor.shape), [(0, 0)] * len(tensor.shape)
        if options.padding == tflite.Padding.SAME:
            for axis in range(1, rank - 1):
                stride, kernel = _window_of(self.model, operator, axis)
                padding[axis] = same_padding(tensor.shape[axis], kernel, stride)
        own = rule.axes[0] or 0
        padding[own] = (made.before, made.after)
        if not any(map(any, padding)):
            return {"padding": tflite.Padding.VALID}
        rows = made.stop - made.start + made.before + made.after
        shape = [size + sum(pad) for size, pad in zip(tensor.shape, padding, strict=True)]
        name = f"{tensor.name}/padded/{operator.index}"
        padded = self.writer.like(tensor.index, name, *_sizes(shape, own, rows))
        pads = self.writer.constant(f"padding/{operator.index}", np.array(padding, np.int32))
        if operator.name == "MAX_POOL_2D":
            low = _lowest(str(tensor.dtype))
            filler = self.writer.constant(f"lowest/{operator.index}", low, tensor.raw.quantization)
            self.writer.add("PADV2", [inputs[0], pads, filler], [padded], tflite.PadV2OptionsT(), 2)
        else:
            self.writer.add("PAD", [inputs[0], pads], [padded], tflite.PadOptionsT(), 2)
        inputs[0] = padded
        return {"padding": tflite.Padding.VALID}

    def transposed(
        self,
        operator: Operator,
        rule: RowRule,
        rows: int,
        results: list[int],
        crop: tuple[int, int],
        inputs: list[int],
    ) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Return the result of a transposed convolution without padding, and what is to be left out of it."""
        tensor = self.model.main.tensors[operator.outputs[0]]
        options, weights = operator.raw.builtinOptions, self.model.main.tensors[operator.inputs[1]].shape
        taken, across = self.model.main.tensors[operator.inputs[2]].shape, 3 - rule.axis
        stride = int(options.strideW if across == 2 else options.strideH)
        size = (taken[across] - 1) * stride + weights[across]
        before = 0
        if options.padding == tflite.Padding.SAME:
            before = same_padding(tensor.shape[across], weights[across], stride)[0]
        shape = list(tensor.shape)
        shape[rule.axis], shape[across] = rows, size
        inputs[0] = self.numbers(f"shape/{operator.index}", shape)
        crops = [(rule.axis, *crop), (across, before, size - before - tensor.shape[across])]
        crops = [one for one in crops if one[1] or one[2]]
        if not crops:
            return results, []
        return [self.writer.like(tensor.index, f"{tensor.name}/all", *_sizes(shape, rule.axis, rows))], crops


def _sizes(shape: Sequence[int], axis: int, rows: int) -> tuple[list[int], list[int]]:
    """Return the shape with so many rows, and the signature with any number of them."""
    return [*shape[:axis], rows, *shape[axis + 1 :]], [*shape[:axis], -1, *shape[axis + 1 :]]


def _window_of(model: Model, operator: Operator, axis: int) -> tuple[int, int]:
    """Return the stride and the spread kernel along an axis."""
    rule = find_rule(model, operator, axis)
    if isinstance(rule, str):
        raise AssertionError(rule)
    return rule.stride, rule.kernel


def _lowest(dtype: str) -> Any:
    if np.dtype(dtype).kind == "f":
        return np.array(-np.inf, dtype)
    return np.array(np.iinfo(dtype).min, dtype)
