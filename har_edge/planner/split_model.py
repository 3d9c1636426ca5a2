"""A model as the planner of splits sees it: which operators take which methods, rows that outputs need, bytes.

Blocks of a split begin and end at places where one tensor alone crosses. An operator that the planner does not know
has no method but WHOLE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from har_edge.planner.regression import work_of
from har_edge.tflite.cuts import crossing_tensors, list_cuts, trace_dataflow
from har_edge.tflite.model import Model, Operator, Tensor

ROWS_AXIS = 1
# Operators that compute each element of the output from the same element of their inputs.
_ELEMENTWISE = frozenset(
    {
        *("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "NEG", "ABS", "SQUARE", "SQRT", "RSQRT", "EXP", "LOG"),
        *("RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "TANH", "LOGISTIC", "HARD_SWISH", "QUANTIZE"),
        *("DEQUANTIZE", "GELU", "ROUND", "FLOOR", "CEIL", "PRELU"),
    }
)
_POOLS = frozenset({"AVERAGE_POOL_2D", "MAX_POOL_2D"})
_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})


@dataclass(frozen=True, slots=True)
class RowWindow:
    """The rows that an operator reads: for row r of its output, [r * stride - pad, r * stride - pad + reach)."""

    stride: int = 1
    reach: int = 1
    pad: int = 0

    def needed(self, start: int, stop: int, rows: int) -> tuple[int, int]:
        """Return the input rows, of so many, that output rows [start, stop) need."""
        return max(0, start * self.stride - self.pad), min(rows, (stop - 1) * self.stride - self.pad + self.reach)


@dataclass(frozen=True, slots=True)
class SplitTensor:
    """A tensor that operators make and read: its size along the two axes at which it is split, and its bytes."""

    rows: int
    channels: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SplitOperator:
    """One operator. `inputs` and `output` are indices of tensors; constants are left out.

    `windows` are those of its inputs, None where it cannot be split by rows, and `padded` says that a border of the
    picture needs a file of its own. `units` is the number of output channels, 0 where it cannot be split by these;
    with `per_channel` they need the same input channels alone. `input_units` counts the input channels in the same way.
    `carried` operators move data only, so that each shard may run all of it.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    weight_bytes: int
    windows: tuple[RowWindow, ...] | None = None
    padded: bool = False
    units: int = 0
    per_channel: bool = False
    input_units: int = 0
    carried: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SplitModel:
    """Operators in order, tensors by index, and the `places` where a block may begin: operator and crossing tensor."""

    operators: tuple[SplitOperator, ...]
    tensors: dict[int, SplitTensor]
    places: dict[int, int]

    @property
    def n(self) -> int:
        return len(self.operators)


def make_split_model(model: Model) -> SplitModel:
    """Describe a model for the planner. An operator on constants alone has no inputs, and its readers its weights."""
    graph, flow = model.main, trace_dataflow(model)
    sizes = {tensor.index: _size(tensor) for tensor in graph.tensors if not tensor.constant}
    operators = tuple(_operator(model, operator, flow.folded, flow.maker) for operator in graph.operators)
    places = {}
    if len(graph.inputs) == 1:
        places[0] = graph.inputs[0]
    entry = set(graph.inputs)
    for cut in list_cuts(model):
        crossing = crossing_tensors(flow, cut.index)
        late = any(flow.last_reader.get(index, -1) >= cut.index for index in entry)
        if cut.refusal is None and len(crossing) == 1 and not late:
            places[cut.index] = crossing[0]
    return SplitModel(operators, sizes, places)


def _size(tensor: Tensor) -> SplitTensor:
    shape = tensor.shape
    rows = shape[ROWS_AXIS] if len(shape) in (4, 5) else 0
    return SplitTensor(rows, shape[-1] if shape else 0, tensor.elements, tensor.bytes)


def _operator(model: Model, operator: Operator, folded: frozenset[int], maker: dict[int, int]) -> SplitOperator:
    tensors = model.main.tensors
    fixed = [i for i in operator.inputs if tensors[i].constant or maker.get(i, -1) in folded]
    fed = tuple(i for i in operator.inputs if i not in fixed)
    output = operator.outputs[0] if operator.outputs else -1
    weights = 0 if operator.index in folded else sum(_weight_bytes(model, i, maker, folded) for i in fixed)
    plain = SplitOperator(operator.name, fed, output, weights, carried=operator.name in ("RESHAPE", "SQUEEZE"))
    special = operator.custom or operator.calls or operator.inner or operator.resource or len(operator.outputs) != 1
    if special or operator.index in folded or not fed or any(tensors[i].shape[:1] not in ((), (1,)) for i in fed):
        return plain
    return _methods(plain, operator, [tensors[i] for i in operator.inputs], [tensors[i] for i in fed], tensors[output])


def _weight_bytes(model: Model, index: int, maker: dict[int, int], folded: frozenset[int]) -> int:
    """Return the bytes of a constant, with those of the constants that it is unpacked from."""
    tensor = model.main.tensors[index]
    if tensor.constant:
        return tensor.bytes
    source = model.main.operators[maker[index]]
    return tensor.bytes + sum(_weight_bytes(model, i, maker, folded) for i in source.inputs)


def _methods(
    plain: SplitOperator, operator: Operator, inputs: Sequence[Tensor], fed: Sequence[Tensor], output: Tensor
) -> SplitOperator:
    """Return the operator with the methods that it can take."""
    name, options = operator.name, operator.raw.builtinOptions
    change: dict[str, Any] = {}
    picture = len(output.shape) == 4 and all(len(tensor.shape) == 4 for tensor in fed)
    if name in _CONVOLUTIONS and picture and len(fed) == 1:
        window = _window(options, inputs[1].shape[1], int(options.dilationHFactor), inputs[0].shape[1], output.shape[1])
        grouped = name == "CONV_2D" and inputs[1].shape[-1] != inputs[0].shape[-1]
        per_channel = name == "DEPTHWISE_CONV_2D"
        sound = per_channel is (inputs[0].shape[-1] == output.shape[-1]) or not per_channel
        change = {
            "windows": (window,),
            "units": 0 if grouped or not sound else output.shape[-1],
            "per_channel": per_channel,
        }
        change["padded"] = window.pad > 0 or _overhang(window, inputs[0].shape[1], output.shape[1])
    elif name in _POOLS and picture:
        window = _window(options, int(options.filterHeight), 1, inputs[0].shape[1], output.shape[1])
        padded = window.pad > 0 or _overhang(window, inputs[0].shape[1], output.shape[1])
        change = {"windows": (window,), "units": output.shape[-1], "per_channel": True, "padded": padded}
    elif name == "FULLY_CONNECTED" and len(fed) == 1 and len(inputs[1].shape) == 2:
        change = {"units": inputs[1].shape[0]}
    elif name in _ELEMENTWISE and all(tensor.shape == output.shape for tensor in fed):
        rows = picture and all(len(t.shape) < 4 or t.shape[1] == 1 for t in inputs if t not in fed)
        change = {
            "windows": tuple(RowWindow() for _ in fed) if rows else None,
            "units": output.shape[-1] if picture else 0,
            "per_channel": True,
        }
    elif name == "CONCATENATION" and picture and _axis(options, output) == 3 and len(fed) == len(inputs):
        change = {"windows": tuple(RowWindow() for _ in fed)}
    return replace(plain, **change)


def _axis(options: Any, output: Tensor) -> int:
    return int(getattr(options, "axis", 0)) % len(output.shape)


def _window(options: Any, kernel: int, dilation: int, rows: int, made: int) -> RowWindow:
    """Return the window of a kernel along the rows, with the padding that TensorFlow puts above (the smaller half)."""
    stride, reach = int(options.strideH), (kernel - 1) * dilation + 1
    same = int(options.padding) == 0
    total = max(0, (made - 1) * stride + reach - rows) if same else 0
    return RowWindow(stride, reach, total // 2)


def _overhang(window: RowWindow, rows: int, made: int) -> bool:
    return (made - 1) * window.stride - window.pad + window.reach > rows


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
