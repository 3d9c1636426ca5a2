"""Count the multiply-adds of operators, in full or for a share of what they give."""

from __future__ import annotations

from collections.abc import Iterable

from har_edge.tflite.model import Graph, Operator

_MOVES = frozenset(
    {
        *("RESHAPE", "TRANSPOSE", "CONCATENATION", "PAD", "PADV2", "MIRROR_PAD", "SLICE", "STRIDED_SLICE", "SPLIT"),
        *("SPLIT_V", "GATHER", "SQUEEZE", "EXPAND_DIMS", "PACK", "UNPACK", "TILE", "SHAPE", "BROADCAST_TO", "CAST"),
        *("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "FILL"),
    }
)


def macs_of_element(graph: Graph, operator: Operator) -> float:
    """Return the multiply-adds for one element of an operator's first result.

    An element of a kind of operator without weights counts 1, one that is only moved 0.
    """
    options, shapes = operator.raw.builtinOptions, [graph.tensors[i].shape for i in operator.inputs]
    result = graph.tensors[operator.outputs[0]] if operator.outputs else None
    if operator.name in _MOVES or result is None or not shapes:
        return 0
    if operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D") and len(shapes) > 1:
        weights = graph.tensors[operator.inputs[1]]
        if operator.name == "TRANSPOSE_CONV":  # each element of the values meets each weight
            taken = graph.tensors[operator.inputs[2]].elements if len(shapes) > 2 else 0
            return taken * weights.elements / max(1, weights.shape[-1] * result.elements)
        # The last dimension of depthwise and 3-D weights, and the first of 2-D ones, is the filter's.
        filters = weights.shape[0] if operator.name == "CONV_2D" else weights.shape[-1]
        return weights.elements / max(1, filters)
    if operator.name == "FULLY_CONNECTED" and len(shapes) > 1 and shapes[1]:
        return shapes[1][-1]
    if operator.name == "BATCH_MATMUL" and shapes[0]:
        return shapes[0][-2 if getattr(options, "adjX", False) else -1]
    if operator.name in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        return int(options.filterHeight) * int(options.filterWidth)
    if operator.name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        return graph.tensors[operator.inputs[0]].elements / max(1, result.elements)
    return 1


def count_macs(graph: Graph, operators: Iterable[int]) -> int:
    """Return the multiply-adds of these operators for the planned shapes."""
    total = 0.0
    for operator in (graph.operators[i] for i in operators):
        if operator.outputs:
            total += macs_of_element(graph, operator) * graph.tensors[operator.outputs[0]].elements
    return round(total)
