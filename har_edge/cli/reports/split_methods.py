"""The output of `har-edge slice --methods`: how many shards can share each operator, by method."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from har_edge.cli.console import say
from har_edge.protocol.text import escape
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import Model
from har_edge.tflite.split.methods import legal_methods, share_extent
from har_edge.tflite.split.plan import SplitMethod

_METHODS = tuple(method for method in SplitMethod if method is not SplitMethod.WHOLE)
_SHAPE_WIDTH = 16


class OperatorMethods(msgspec.Struct, frozen=True):
    """An operator, its result's shape, how many elements each legal method shares, and why others are refused."""

    index: int
    name: str
    shape: tuple[int, ...]
    shares: dict[str, int]
    refused: dict[str, str]


def list_methods(model: Model) -> Iterator[OperatorMethods]:
    """Yield the methods of each operator that does not only unpack constants."""
    flow = trace_dataflow(model)
    for operator in model.main.operators:
        if operator.index in flow.folded:
            continue
        reasons = legal_methods(model, operator.index, flow)
        yield OperatorMethods(
            operator.index,
            operator.name,
            model.main.tensors[operator.outputs[0]].shape if operator.outputs else (),
            {
                method.value: share_extent(model, flow, operator.index, operator.index + 1, method)
                for method in _METHODS
                if reasons[method] is None
            },
            {method.value: reason for method in _METHODS if (reason := reasons[method]) is not None},
        )


def print_methods(model: Model, *, as_json: bool) -> None:
    """Print the table, or one JSON object with the reasons of all refusals."""
    operators = list(list_methods(model))
    if as_json:
        print(msgspec.json.encode({"model": model.name, "sha256": model.sha256, "operators": operators}).decode())
        return
    say(f"{escape(model.name)}: rows, channels or batches that devices can share")
    heads = "  ".join(f"{method.value:>6}" for method in _METHODS)
    print(f"{'#':>4}  {'operator':20}  {'result':{_SHAPE_WIDTH}}  {heads}")
    for one in operators:
        shape = " x ".join(map(str, one.shape))
        shares = "  ".join(f"{one.shares.get(method.value, '-'):>6}" for method in _METHODS)
        print(f"{one.index:4}  {one.name[:20]:20}  {shape[:_SHAPE_WIDTH]:{_SHAPE_WIDTH}}  {shares}")
    shared = sum(bool(one.shares) for one in operators)
    say(f"{shared} of {len(operators)} operators can be shared; --json says why a method (-) is refused")
