"""The methods by which operators can be split, which of them a block allows, and how many shares it has."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.model import Model
from har_edge.tflite.split.block import BlockSplit, WholeSplit
from har_edge.tflite.split.coded import FloatParitySplit, ParitySplit, with_parity
from har_edge.tflite.split.geometry import RowGeometry
from har_edge.tflite.split.input import InputSplit
from har_edge.tflite.split.output import HeadsSplit, OutputSplit
from har_edge.tflite.split.plan import PARITIES, Block, SplitMethod
from har_edge.tflite.split.rows import RowSplit

METHODS: dict[SplitMethod, type[BlockSplit]] = {
    SplitMethod.WHOLE: WholeSplit,
    SplitMethod.ROWS: RowSplit,
    SplitMethod.OUTPUT: OutputSplit,
    SplitMethod.INPUT: InputSplit,
    SplitMethod.HEADS: HeadsSplit,
    SplitMethod.PARITY: ParitySplit,
    SplitMethod.FLOAT_PARITY: FloatParitySplit,
}
# Ways to share; a parity shard comes on top of one of them.
PLAIN = tuple(method for method in SplitMethod if method not in PARITIES)
UNITS = {
    SplitMethod.WHOLE: "share",
    SplitMethod.ROWS: "rows",
    SplitMethod.OUTPUT: "output channels",
    SplitMethod.INPUT: "input channels",
    SplitMethod.HEADS: "batches",
    SplitMethod.PARITY: "output channels",
    SplitMethod.FLOAT_PARITY: "output channels",
}


def share_extent(model: Model, flow: Dataflow, start: int, stop: int, method: SplitMethod) -> int:
    """Return how many rows, channels or batches of operators [start, stop) the shards share.

    Raises CutError where the method does not apply to them.
    """
    if method is SplitMethod.WHOLE:
        return 1
    if method is SplitMethod.ROWS:
        return RowGeometry(model, start, stop, flow).size
    kinds: dict[SplitMethod, type[OutputSplit] | type[InputSplit] | type[ParitySplit]] = {
        SplitMethod.OUTPUT: OutputSplit,
        SplitMethod.INPUT: InputSplit,
        SplitMethod.HEADS: HeadsSplit,
        SplitMethod.PARITY: ParitySplit,
        SplitMethod.FLOAT_PARITY: FloatParitySplit,
    }
    return kinds[method].extent(model, flow, start, stop)


def share_bounds(
    model: Model, flow: Dataflow, start: int, stop: int, method: SplitMethod, weights: Sequence[float]
) -> tuple[int, ...]:
    """Return the bounds of shares in proportion to the weights of the shards, each with one element or more.

    Raises CutError for more shards than elements, and for weights that are not positive.
    """
    extent = share_extent(model, flow, start, stop, method)
    what = f"operators [{start}, {stop}), {_named(model, start, stop)},"
    if not weights or any(not weight > 0 for weight in weights):
        raise CutError(f"weights {list(weights)} of shards came for {what} expected one positive number for each shard")
    if len(weights) > extent:
        raise CutError(
            f"{len(weights)} shards came for {what} which have {extent} {UNITS[method]}; expected at most {extent} "
            f"shards, or another method ({_alternatives(model, flow, start, stop, method)})"
        )
    bounds, total, at = [0], sum(weights), 0.0
    for number, weight in enumerate(weights, 1):
        at += weight
        left = len(weights) - number
        bounds.append(min(max(round(extent * at / total), bounds[-1] + 1), extent - left))
    return tuple(bounds)


def legal_methods(model: Model, index: int, flow: Dataflow | None = None) -> dict[SplitMethod, str | None]:
    """Return for each method why it cannot split an operator, None where it can."""
    return block_methods(model, flow or trace_dataflow(model), index, index + 1)


def block_methods(model: Model, flow: Dataflow, start: int, stop: int) -> dict[SplitMethod, str | None]:
    """Return for each method without parity why it cannot split operators [start, stop), None where it can."""
    return {method: find_refusal(model, flow, start, stop, method) for method in PLAIN}


def find_refusal(model: Model, flow: Dataflow, start: int, stop: int, method: SplitMethod) -> str | None:
    """Return why a method cannot split operators [start, stop) between two shards, None where it can."""
    try:
        extent = share_extent(model, flow, start, stop, method)
        if method is not SplitMethod.WHOLE and extent < 2:
            raise CutError(f"operators [{start}, {stop}) have {extent} {UNITS[method]}, too few for two shards")
        block = Block(start, stop, method, _halves(extent))
        METHODS[method](model, flow, with_parity(block) if method in PARITIES else block)
    except CutError as error:
        return str(error)
    return None


def split_block(model: Model, flow: Dataflow, block: Block) -> BlockSplit:
    """Return how the shards compute a block.

    Raises CutError where its method cannot take it; the text names the methods that can.
    """
    try:
        return METHODS[block.method](model, flow, block)
    except CutError as error:
        other = _alternatives(model, flow, block.start, block.stop, block.method)
        raise CutError(f"{error}; methods for operators [{block.start}, {block.stop}): {other}") from None


def _halves(extent: int) -> tuple[int, ...]:
    return (0, extent // 2, extent) if extent > 1 else (0, extent)


def _alternatives(model: Model, flow: Dataflow, start: int, stop: int, method: SplitMethod) -> str:
    """Return the methods that can split these operators, as text; the one that was asked for with its limit."""
    found = []
    for one, reason in block_methods(model, flow, start, stop).items():
        if reason is None:
            size = share_extent(model, flow, start, stop, one)
            found.append(one.value if one is SplitMethod.WHOLE else f"{one.value} ({size} {UNITS[one]})")
    return ", ".join(found)


def _named(model: Model, start: int, stop: int) -> str:
    names = [f"{operator.index} ({operator.name})" for operator in model.main.operators[start:stop]]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
