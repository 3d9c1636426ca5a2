"""Which rows of its inputs a block of operators needs for some rows of its result, and the arithmetic that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.split.arithmetic import macs_of_element
from har_edge.tflite.split.row_rules import RowKind, RowRange, RowRule, find_rule, row_axis
from har_edge.tflite.split.writer import raw_inputs

_OUTPUT_OR_INPUT = "by output or input channels"
# The other ways to share an operator, for errors.
_ALTERNATIVES = {
    **dict.fromkeys(("CONV_2D", "CONV_3D", "FULLY_CONNECTED"), _OUTPUT_OR_INPUT),
    **dict.fromkeys(("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"), "by output channels"),
    "BATCH_MATMUL": "by heads",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) along an axis of a tensor; `axis` None is all of a tensor whose rows are not split."""

    axis: int | None
    start: int
    stop: int


_WHOLE = Rows(None, 0, 0)


@dataclass(frozen=True, slots=True)
class RowOperator:
    """An operator of a block, with the rows that it takes and makes; `rule` None: it is computed whole."""

    operator: Operator
    rule: RowRule | None
    made: RowRange | None


@dataclass(frozen=True, slots=True)
class BlockShare:
    """The rows that a share of a block takes and makes, by tensor index, its operators, and their multiply-adds."""

    inputs: Mapping[int, Rows]
    outputs: Mapping[int, Rows]
    rows: Mapping[int, Rows]
    operators: tuple[RowOperator, ...]
    macs: int


class RowGeometry:
    """The rows of all tensors of a block of operators [start, stop).

    Shares are counted in rows of `reference`, the result of the last operator. Other tensors that leave the block are
    shared in proportion. Raises CutError for a block whose operators cannot be split by rows.
    """

    def __init__(self, model: Model, start: int, stop: int, flow: Dataflow | None = None) -> None:
        self.model, self.start, self.stop = model, start, stop
        self.flow = flow or trace_dataflow(model)
        graph = model.main
        if not 0 <= start < stop <= len(graph.operators):
            raise CutError(f"operators [{start}, {stop}) came; expected some of 0 to {len(graph.operators) - 1}")
        self.operators = [one for one in graph.operators[start:stop] if one.index not in self.flow.folded]
        if not self.operators:
            raise CutError(f"operators [{start}, {stop}) only prepare constants; join them to the next block")
        leaving = [
            i
            for one in self.operators
            for i in one.outputs
            if i in graph.outputs or self.flow.last_reader.get(i, -1) >= stop
        ]
        if not leaving:
            raise CutError(f"operators [{start}, {stop}) make nothing that is needed later")
        self.reference = graph.tensors[leaving[-1]]
        self.leaving = tuple(dict.fromkeys(leaving))
        self._rules: dict[tuple[int, int], RowRule | str] = {}
        self._shares: dict[tuple[int, int], BlockShare] = {}
        self._axes: dict[int, int] = {}
        self._taken: dict[tuple[int, int], tuple[tuple[int, int | None], ...]] = {}
        self._refuse_dynamic()
        self._macs = {one.index: macs_of_element(graph, one) for one in self.operators}
        for index in self.leaving:
            self._axis(graph.tensors[index])
        self.share(0, self.size)

    @cached_property
    def size(self) -> int:
        """The rows of the reference tensor."""
        return self.reference.shape[self._axis(self.reference)]

    def owned(self, index: int, start: int, stop: int) -> Rows:
        """Return the rows of a tensor that leaves the block for the share [start, stop) of the reference's rows."""
        tensor = self.model.main.tensors[index]
        axis = self._axis(tensor)
        size = tensor.shape[axis]
        return Rows(axis, start * size // self.size, stop * size // self.size)

    def share(self, start: int, stop: int) -> BlockShare:
        """Return what the share [start, stop) of the reference's rows takes and makes."""
        found = self._shares.get((start, stop))
        if found is None:
            if not 0 <= start < stop <= self.size:
                raise CutError(
                    f"rows [{start}, {stop}) of {self.reference.name} came; expected some of its {self.size}"
                )
            found = self._shares[start, stop] = self.trace(self.operators, self.wanted(self.operators, start, stop))
        return found

    def wanted(self, operators: Sequence[Operator], start: int, stop: int) -> dict[int, Rows]:
        """Return the rows of what leaves the block, made by these operators, for a share of the reference's rows."""
        made = {index for operator in operators for index in operator.outputs}
        owned = {index: self.owned(index, start, stop) for index in self.leaving if index in made}
        return {index: rows for index, rows in owned.items() if rows.stop > rows.start}

    def trace(self, operators: Sequence[Operator], wanted: Mapping[int, Rows]) -> BlockShare:
        """Return what some consecutive operators of the block take to make these rows, and maybe more of them."""
        graph, rows = self.model.main, dict(wanted)
        done, total = list[RowOperator](), 0.0
        for operator in reversed(operators):
            results = [rows[i] for i in operator.outputs if i in rows]
            if not results:
                continue
            axis = results[0].axis
            if axis is None or (len(results) > 1 and any(one.axis != axis for one in results)):
                done.append(self._whole(operator, rows))
                elements: float = graph.tensors[operator.outputs[0]].elements
            else:
                rule = self._rule(operator, axis)
                low, high = min(one.start for one in results), max(one.stop for one in results)
                made = rule.taken(low, high)
                for index in operator.outputs:
                    rows[index] = Rows(axis, low, high)
                for index, own in self._takes(operator, rule):
                    add_rows(rows, graph.tensors[index], _WHOLE if own is None else Rows(own, made.start, made.stop))
                done.append(RowOperator(operator, rule, made))
                result = graph.tensors[operator.outputs[0]]
                elements = result.elements / result.shape[axis] * (made.made_stop - made.made_start)
            total += self._macs[operator.index] * elements
        inner = {i for one in done for i in one.operator.outputs}
        return BlockShare(
            inputs={i: one for i, one in sorted(rows.items()) if i not in inner},
            outputs={i: rows[i] for i in wanted},
            rows=rows,
            operators=tuple(reversed(done)),
            macs=round(total),
        )

    def _takes(self, operator: Operator, rule: RowRule) -> tuple[tuple[int, int | None], ...]:
        """Return the tensors that an operator takes, with the axis of their rows (None: it takes all of the tensor)."""
        found = self._taken.get((operator.index, rule.axis))
        if found is None:
            found = self._taken[operator.index, rule.axis] = tuple(
                (index, axis)
                for position, (index, axis) in enumerate(zip(raw_inputs(operator), rule.axes, strict=True))
                # The new shape of a RESHAPE is written as a constant.
                if not self._is_constant(index)
                and (axis is not None or rule.kind is not RowKind.RESHAPE or not position)
            )
        return found

    def _whole(self, operator: Operator, rows: dict[int, Rows]) -> RowOperator:
        """Return an operator whose result is wanted whole: every shard computes all of it."""
        for index in operator.outputs:
            rows[index] = _WHOLE
        for index in raw_inputs(operator):
            if not self._is_constant(index):
                add_rows(rows, self.model.main.tensors[index], _WHOLE)
        return RowOperator(operator, None, None)

    def _refuse_dynamic(self) -> None:
        """Raise CutError where the file does not say how many rows there are; a batch is taken as the planned one."""
        for operator in self.operators:
            for index in (*operator.inputs, *operator.outputs):
                tensor = self.model.main.tensors[index]
                if -1 in tensor.signature[1:] and not self._is_constant(index):
                    raise CutError(
                        _refusal(operator, f"{tensor.name} {list(tensor.signature)} has dimensions of any size")
                    )

    def _is_constant(self, index: int) -> bool:
        return (
            index < 0 or self.model.main.tensors[index].constant or self.flow.maker.get(index, -1) in self.flow.folded
        )

    def _rule(self, operator: Operator, axis: int) -> RowRule:
        rule = self._rules.get((operator.index, axis))
        if rule is None:
            rule = self._rules[operator.index, axis] = find_rule(self.model, operator, axis)
        if isinstance(rule, str):
            raise CutError(_refusal(operator, rule))
        return rule

    def _axis(self, tensor: Tensor) -> int:
        axis = self._axes.get(tensor.index)
        if axis is None:
            axis = row_axis(tensor)
            if axis is None:
                operator = self.model.main.operators[self.flow.maker[tensor.index]]
                raise CutError(_refusal(operator, f"its result {tensor.name} {list(tensor.shape)} has no rows"))
            self._axes[tensor.index] = axis
        return axis


def add_rows(rows: dict[int, Rows], tensor: Tensor, wanted: Rows) -> None:
    """Add rows of a tensor to those that are wanted. Raises CutError for rows along another axis."""
    known = rows.get(tensor.index)
    if known is None:
        rows[tensor.index] = wanted
    elif wanted.axis is None or known.axis is None:
        rows[tensor.index] = _WHOLE
    elif known.axis != wanted.axis:
        raise CutError(
            f"tensor {tensor.name} would be split along axes {known.axis} and {wanted.axis} in one block; end the "
            "block before the operators that read it"
        )
    else:
        rows[tensor.index] = Rows(known.axis, min(known.start, wanted.start), max(known.stop, wanted.stop))


def _refusal(operator: Operator, reason: str) -> str:
    other = _ALTERNATIVES.get(operator.name)
    return f"operator {operator.index} ({operator.name}) cannot be split by rows: {reason}; " + (
        f"split it {other}, or let one shard compute it whole" if other else "let one shard compute it whole"
    )
