"""A model as the planner of splits sees it: which operators take which methods, rows that outputs need, bytes.

Blocks of a split begin and end at places where one tensor alone crosses. Geometry and legality are those of
`har_edge.tflite.split`, which writes the files.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from har_edge.errors import CutError
from har_edge.planner.regression import work_of
from har_edge.tflite.cuts import Dataflow, crossing_tensors, list_cuts, trace_dataflow
from har_edge.tflite.manifest import TensorRegion
from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.split.geometry import BlockShare, RowGeometry, Rows
from har_edge.tflite.split.output import OutputSplit
from har_edge.tflite.split.plan import Block, SplitMethod
from har_edge.tflite.split.row_file import recipe
from har_edge.tflite.split.row_rules import row_axis
from har_edge.tflite.split.rows import RowSplit

ALL_INPUTS = -2  # in place of a tensor's index: all inputs of a model together
# Operators whose output channels need all input channels.
_LINEAR = frozenset({"CONV_2D", "CONV_3D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"})
# Operators that move data only: each shard may run all of them.
_CARRIED = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
# Operators that compute each channel from the same channel of their inputs.
_PER_CHANNEL = frozenset(
    {
        *("DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D", "ADD", "SUB", "MUL", "RELU", "RELU6", "LOGISTIC"),
        *("TANH", "HARD_SWISH", "LEAKY_RELU", "ELU", "QUANTIZE", "DEQUANTIZE", "MAXIMUM", "MINIMUM"),
    }
)


@dataclass(frozen=True, slots=True)
class SplitTensor:
    """A tensor that operators make and read: its size along the two axes at which it is split, and its bytes."""

    rows: int
    channels: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SplitOperator:
    """One operator. `inputs` and `output` are indices of tensors; constants are left out.

    `linear` operators need all input channels for each output channel, `per_channel` ones the same channel alone;
    `carried` ones move data only. Other operators run whole, or by rows.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    weight_bytes: int
    linear: bool = False
    per_channel: bool = False
    carried: bool = False


@dataclass(frozen=True, slots=True)
class RowShare:
    """A run of a block's operators by rows: the rows of the block's result that it makes (none: (0, 0)), the rows of
    its input that it needs (None: all of it), the part of each operator that it computes, the largest tile in bytes,
    and a key that is equal where the file is.
    """

    made: tuple[int, int]
    needed: tuple[int, int] | None
    parts: tuple[float, ...]
    tile_bytes: int
    file: Hashable


class SplitGeometry(Protocol):
    """The geometry of the blocks of a model."""

    def rows(self, start: int, stop: int) -> int:
        """Return the rows that the shards of operators [start, stop) share, 0 where these cannot be split by rows."""

    def share(self, start: int, stop: int, low: int, high: int) -> RowShare:
        """Return what rows [low, high) of the result of operators [start, stop) take."""

    def apart(
        self, start: int, stop: int, low: int, high: int, urgent: Sequence[tuple[int, int]]
    ) -> tuple[RowShare, ...]:
        """Return the runs that make rows [low, high), the urgent ones first; empty where all rows stay together."""

    def can_output(self, start: int, stop: int) -> bool:
        """Return whether operators [start, stop) can be split by output channels."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitModel:
    """Operators in order, tensors by index, and the `places` where a block may begin: operator and crossing tensor.

    Several inputs of the model stand as one tensor, ALL_INPUTS, of which a first block takes all. `inputs` has the
    bytes of each, since each is a message.
    """

    operators: tuple[SplitOperator, ...]
    tensors: dict[int, SplitTensor]
    places: dict[int, int]
    geometry: SplitGeometry
    inputs: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        return len(self.operators)


@dataclass(slots=True, eq=False)
class ModelGeometry:
    """The geometry of a model's blocks, remembered."""

    model: Model
    flow: Dataflow
    _found: dict[tuple[int, int], RowGeometry | None] = field(default_factory=dict)
    _splits: dict[tuple[int, int], RowSplit] = field(default_factory=dict)

    def rows(self, start: int, stop: int) -> int:
        geometry = self._geometry(start, stop)
        return 0 if geometry is None else geometry.size

    def _geometry(self, start: int, stop: int) -> RowGeometry | None:
        if (start, stop) not in self._found:
            # A longer block is no better where its last operators cannot be split.
            shorter = stop - start > 1 and self._geometry(stop - 1, stop) is None
            self._found[start, stop] = None if shorter else self._try(start, stop)
        return self._found[start, stop]

    def _try(self, start: int, stop: int) -> RowGeometry | None:
        if all(operator.index in self.flow.folded for operator in self.model.main.operators[start:stop]):
            return None
        try:
            return RowGeometry(self.model, start, stop, self.flow)
        except CutError:
            return None

    def share(self, start: int, stop: int, low: int, high: int) -> RowShare:
        geometry = self._geometry(start, stop)
        assert geometry is not None
        return self._described(geometry, geometry.share(low, high), (low, high))

    def apart(
        self, start: int, stop: int, low: int, high: int, urgent: Sequence[tuple[int, int]]
    ) -> tuple[RowShare, ...]:
        geometry = self._geometry(start, stop)
        assert geometry is not None
        if (start, stop) not in self._splits:
            block = Block(start, stop, SplitMethod.ROWS, (0, geometry.size))
            self._splits[start, stop] = RowSplit(self.model, self.flow, block)
        index = geometry.reference.index
        axis = row_axis(geometry.reference) or 0
        regions = [TensorRegion(geometry.reference.name, axis, first, last) for first, last in urgent]
        shares = self._splits[start, stop].border_first(low, high, regions)
        made = [share.outputs.get(index) for share in shares]
        return tuple(
            self._described(geometry, share, (0, 0) if rows is None else (rows.start, rows.stop))
            for share, rows in zip(shares, made, strict=True)
        )

    def _described(self, geometry: RowGeometry, share: BlockShare, made: tuple[int, int]) -> RowShare:
        start, stop = geometry.start, geometry.stop
        parts, tile = [0.0] * (stop - start), 0
        for one in share.operators:
            output = self.model.main.tensors[one.operator.outputs[0]]
            axis = share.rows[output.index].axis
            part = 1.0
            if one.made is not None and axis is not None:
                part = (one.made.made_stop - one.made.made_start) / output.shape[axis]
            parts[one.operator.index - start] = part
            held = sum(self._bytes(index, share) for index in one.operator.inputs if index in share.rows)
            tile = max(tile, held + round(output.bytes * part))
        needs = list(share.inputs.values())
        alone = len(needs) == 1 and (start > 0 or len(self.model.main.inputs) == 1)
        needed = (needs[0].start, needs[0].stop) if alone and needs[0].axis is not None else None
        return RowShare(made, needed, tuple(parts), tile, recipe(geometry, share))

    def _bytes(self, index: int, share: BlockShare) -> int:
        tensor, rows = self.model.main.tensors[index], share.rows[index]
        return tensor.bytes if rows.axis is None else tensor.bytes * _length(rows) // tensor.shape[rows.axis]

    def can_output(self, start: int, stop: int) -> bool:
        try:
            size = OutputSplit.extent(self.model, self.flow, start, stop)
            if size < 2:
                return False
            OutputSplit(self.model, self.flow, Block(start, stop, SplitMethod.OUTPUT, (0, size // 2, size)))
        except CutError:
            return False
        return True


def _length(rows: Rows) -> int:
    return rows.stop - rows.start


def make_split_model(model: Model) -> SplitModel:
    """Describe a model for the planner. An operator on constants alone has no inputs, and its readers its weights."""
    graph, flow = model.main, trace_dataflow(model)
    sizes = {tensor.index: _size(tensor) for tensor in graph.tensors if not tensor.constant}
    operators = tuple(_operator(model, operator, flow) for operator in graph.operators)
    places = {0: graph.inputs[0] if len(graph.inputs) == 1 else ALL_INPUTS}
    inputs = tuple(graph.tensors[index].bytes for index in graph.inputs)
    if len(inputs) != 1:
        sizes[ALL_INPUTS] = SplitTensor(0, 0, sum(inputs))
    for cut in list_cuts(model):
        crossing = crossing_tensors(flow, cut.index)
        late = any(flow.last_reader.get(index, -1) >= cut.index for index in graph.inputs)
        if cut.refusal is None and len(crossing) == 1 and not late:
            places[cut.index] = crossing[0]
    return SplitModel(operators, sizes, places, ModelGeometry(model, flow), inputs)


def _size(tensor: Tensor) -> SplitTensor:
    axis = row_axis(tensor)
    return SplitTensor(0 if axis is None else tensor.shape[axis], tensor.shape[-1] if tensor.shape else 0, tensor.bytes)


def _operator(model: Model, operator: Operator, flow: Dataflow) -> SplitOperator:
    tensors = model.main.tensors
    fixed = [i for i in operator.inputs if tensors[i].constant or flow.maker.get(i, -1) in flow.folded]
    fed = tuple(i for i in operator.inputs if i not in fixed)
    folded = operator.index in flow.folded
    return SplitOperator(
        name=operator.name,
        inputs=() if folded else fed,
        output=operator.outputs[0] if operator.outputs else -1,
        weight_bytes=0 if folded else sum(_weight_bytes(model, i, flow) for i in fixed),
        linear=operator.name in _LINEAR,
        per_channel=operator.name in _PER_CHANNEL,
        carried=operator.name in _CARRIED,
    )


def _weight_bytes(model: Model, index: int, flow: Dataflow) -> int:
    """Return the bytes of a constant, with those of the constants that it is unpacked from."""
    tensor = model.main.tensors[index]
    if tensor.constant:
        return tensor.bytes
    source = model.main.operators[flow.maker[index]]
    return tensor.bytes + sum(_weight_bytes(model, i, flow) for i in source.inputs)


def operator_seconds(model: Model, bounds: Sequence[int], work_s: Sequence[float]) -> tuple[float, ...]:
    """Return the seconds of every operator from those of the segments between `bounds`.

    A segment of several operators is shared by their arithmetic operations.
    """
    found = [0.0] * len(model.main.operators)
    for start, stop, seconds in zip(bounds, bounds[1:], work_s, strict=False):
        operations = [sum(part.operations + 1 for part in work_of(model, i, i + 1)) for i in range(start, stop)]
        total = sum(operations) or 1
        for i, count in zip(range(start, stop), operations, strict=True):
            found[i] = seconds * count / total
    return tuple(found)
