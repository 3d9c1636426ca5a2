"""The output of `har-edge slice --methods`: how many shards can share each operator, by method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from har_edge.cli.console import say
from har_edge.protocol.text import escape
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import Model
from har_edge.tflite.split.methods import PLAIN, legal_methods, share_extent
from har_edge.tflite.split.plan import SplitMethod

_METHODS = tuple(method for method in PLAIN if method is not SplitMethod.WHOLE)
# A line has 80 columns, of which names and shapes share so many; a name has at least what DEPTHWISE_CONV_2D takes.
_BOTH_WIDTH, _NAME_WIDTHS = 40, (17, 20)


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
    print_operators(operators)
    shared = sum(bool(one.shares) for one in operators)
    say(f"{shared} of {len(operators)} operators can be shared; --json says why a method (-) is refused")


def print_operators(operators: Sequence[OperatorMethods]) -> None:
    """Print the table of operators in 80 columns."""
    low, high = _NAME_WIDTHS
    shapes = [_shape(one.shape, _BOTH_WIDTH - low) for one in operators]
    longest = max((len(shape) for shape in shapes if len(shape) <= _BOTH_WIDTH - low), default=0)
    width = max(_BOTH_WIDTH - high - 4, longest)
    names = min(high, _BOTH_WIDTH - width)
    heads = "  ".join(f"{method.value:>6}" for method in _METHODS)
    print(f"{'#':>4}  {'operator':{names}}  {'result':{width}}  {heads}")
    for one, shape in zip(operators, shapes, strict=True):
        shares = "  ".join(f"{one.shares.get(method.value, '-'):>6}" for method in _METHODS)
        row = f"{one.index:4}  {one.name[:names]:{names}}  {shape:{width}}"
        # A shape that is wider than its column has a line of its own: a part of it would be another shape.
        print(f"{row}  {shares}" if len(shape) <= width else f"{row}\n{'':{8 + names + width}}  {shares}")


def _shape(shape: tuple[int, ...], width: int) -> str:
    """Return a shape in words, without spaces where it is wider than so many columns."""
    spaced = " x ".join(map(str, shape))
    return spaced if len(spaced) <= width else "x".join(map(str, shape))
