"""The graph of a share: what the operators of a block have to compute for a range of what the block gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow, tensor_spec
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.split.arithmetic import macs_of_element
from har_edge.tflite.split.block import piece
from har_edge.tflite.split.carried_rules import CARRIED_RULES
from har_edge.tflite.split.linear_rules import LINEAR_RULES
from har_edge.tflite.split.ranges import AxisRange
from har_edge.tflite.split.shares import OperatorShare, OperatorView, Rule

RULES: dict[str, Rule] = {**LINEAR_RULES, **CARRIED_RULES}
# A tensor and the range of it, None for all of it.
Wanted: TypeAlias = tuple[int, AxisRange | None]


@dataclass(frozen=True, slots=True)
class SharedOperator:
    """An operator with the range of its output that is wanted, and the shares that make it, side by side."""

    operator: Operator
    wanted: AxisRange
    shares: tuple[OperatorShare, ...]


@dataclass(frozen=True, slots=True)
class ShareGraph:
    """The operators of a share in the order in which they run, and the tensors that enter and leave."""

    operators: tuple[SharedOperator, ...]
    inputs: tuple[Wanted, ...]
    outputs: tuple[Wanted, ...]


def share_operator(model: Model, operator: Operator, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """Return the shares of an operator that make a range of its output.

    Raises CutError, with the operator's index and name, where the range cannot be made alone.
    """
    rule = RULES.get(operator.name)
    try:
        if rule is None or operator.custom or len(operator.outputs) != 1:
            raise CutError("cannot be shared by channels or batches")
        output = model.main.tensors[operator.outputs[0]]
        scales = output.raw.quantization.scale if output.raw.quantization else None
        if scales is not None and len(scales) > 1:
            raise CutError("gives values with a scale per channel, which are cut as constants only")
        if output.unranked or not 0 <= wanted.axis < len(output.shape):
            raise CutError(f"gives {list(output.shape)}, which has no axis {wanted.axis}")
        if output.signature[wanted.axis] < 0:
            raise CutError(f"gives {list(output.signature)}, whose axis {wanted.axis} has no fixed size")
        if not 0 <= wanted.start < wanted.stop <= output.shape[wanted.axis]:
            raise CutError(f"has {output.shape[wanted.axis]} of axis {wanted.axis}, but a share {wanted} came")
        return rule(OperatorView(model, operator), wanted)
    except CutError as error:
        raise CutError(f"operator {operator.index} ({operator.name}) {error}") from None
    except (AttributeError, IndexError, TypeError, ValueError):  # fewer inputs, dimensions or options than it takes
        raise CutError(
            f"operator {operator.index} ({operator.name}) lacks inputs, dimensions or options that it should have; "
            "check the model"
        ) from None


def trace_share(model: Model, flow: Dataflow, operators: Iterable[int], outputs: Sequence[Wanted]) -> ShareGraph:
    """Return all that must run to make ranges of tensors, from these operators and those that unpack constants.

    Raises CutError where an operator cannot be shared so, or where one share needs all of what another one makes.
    """
    graph = model.main
    here = set(operators) | flow.folded
    wanted: dict[int, list[AxisRange | None]] = {}
    for index, part in outputs:
        wanted.setdefault(index, []).append(part)
    inputs: set[Wanted] = set()
    shared: list[SharedOperator] = []
    for operator in (graph.operators[i] for i in sorted(here, reverse=True)):
        ranges = dict.fromkeys(part for index in operator.outputs for part in wanted.get(index, ()))
        for part in ranges:
            if part is None:
                if operator.index not in flow.folded:
                    raise CutError(_whole_needed(operator))
                continue  # the writer copies it
            shares = share_operator(model, operator, part)
            shared.append(SharedOperator(operator, part, shares))
            for taken in (taken for share in shares for taken in share.inputs if taken.tensor >= 0):
                wanted.setdefault(taken.tensor, []).append(taken.range)
    for index, parts in wanted.items():
        if not graph.tensors[index].constant and flow.maker.get(index, -1) not in here:
            inputs.update(normal(model, (index, part)) for part in parts)
    ordered = sorted(inputs, key=lambda one: (one[0], one[1] is not None, one[1].start if one[1] else 0))
    return ShareGraph(tuple(reversed(shared)), tuple(ordered), tuple(outputs))


def _whole_needed(operator: Operator) -> str:
    return (
        f"operator {operator.index} ({operator.name}) makes what a later operator of the block needs all of; end the "
        f"block before operator {operator.index + 1}"
    )


def count_share(model: Model, flow: Dataflow, graph: ShareGraph) -> int:
    """Return the multiply-adds of a share for the planned shapes."""
    total = 0.0
    for shared in graph.operators:
        if shared.operator.index in flow.folded:
            continue
        output = model.main.tensors[shared.operator.outputs[0]]
        for share in shared.shares:
            elements = math.prod(share.gives.resized(output.shape))
            total += macs_of_element(model.main, shared.operator) * elements
    return round(total)


def normal(model: Model, wanted: Wanted) -> Wanted:
    """Return all of a tensor for a range that is all of it."""
    index, part = wanted
    whole = part is None or (part.start, part.stop) == (0, model.main.tensors[index].shape[part.axis])
    return (index, None) if whole else wanted


def name_of(model: Model, wanted: Wanted) -> str:
    """Return the name that a range of a tensor has in the file of a share."""
    (index, part) = normal(model, wanted)
    name = model.main.tensors[index].name
    return name if part is None else f"{name}[{part.axis}:{part.start}:{part.stop}]"


def spec_of(model: Model, wanted: Wanted) -> TensorSpec:
    """Return the entry of a range in a manifest, with the name that it has in the file of the share."""
    (index, part), name = normal(model, wanted), name_of(model, wanted)
    tensor = model.main.tensors[index]
    return tensor_spec(tensor) if part is None else piece(tensor, part.axis, part.start, part.stop, name)
