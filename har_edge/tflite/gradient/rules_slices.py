"""Slices and paddings: the gradient of one is the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from har_edge.tflite.gradient import views
from har_edge.tflite.gradient.rules import Forward, Rule, RuleContext
from har_edge.tflite.schema import tflite


@dataclass(frozen=True, slots=True)
class _Span:
    """The entries that a slice takes of one axis: `count` of them from `start` in steps of `step`."""

    start: int
    step: int
    count: int


def _pad(context: RuleContext) -> Sequence[int | None]:
    begin = [int(before) for before, _ in context.constant(1)]
    dx = views.crop(context.builder, context.gradient(), begin, context.input_shape(0))
    return [dx, *_refused_value(context)]


def _refused_value(context: RuleContext) -> list[None]:
    if len(context.inputs) > 2 and context.needs[2]:
        raise context.refusal("the value that it pads with is computed or trained; expected a constant")
    return [None] * (len(context.inputs) - 1)


def _slice(context: RuleContext) -> Sequence[int | None]:
    begin = [int(n) for n in context.constant(1).reshape(-1)]
    shapes = zip(begin, context.output_shape(), context.input_shape(0), strict=True)
    amounts = [(start, whole - start - count) for start, count, whole in shapes]
    return [views.pad(context.builder, context.gradient(), amounts), None, None]


def _slice_forward(context: RuleContext) -> Sequence[int]:
    """Write the size for the batch of this file."""
    builder, shape = context.builder, context.output_shape()
    inputs = [context.inputs[0], context.inputs[1], builder.ints(shape)]
    return [builder.add("SLICE", inputs, shape, tflite.SliceOptionsT(), dtype=builder.dtype(context.inputs[0]))]


def _strided_slice(context: RuleContext) -> Sequence[int | None]:
    """Put zeros between the entries of the gradient, and around them."""
    builder, shape = context.builder, context.input_shape(0)
    spans = _spans(context)
    dx = builder.reshape(context.gradient(), [span.count for span in spans])
    amounts = []
    for axis, (span, whole) in enumerate(zip(spans, shape, strict=True)):
        if span.step != 1 and span.count > 1:
            dx = views.part(builder, views.spread(builder, dx, axis, span.step), axis, 0, _extent(span))
        first = span.start if span.step > 0 else span.start + span.step * (span.count - 1)
        amounts.append((first, whole - first - _extent(span)))
    return [views.pad(builder, dx, amounts), None, None, None]


def _strided_slice_forward(context: RuleContext) -> Sequence[int]:
    """Write the slice for the batch of this file, one entry for each axis, without masks."""
    builder, x = context.builder, context.inputs[0]
    spans = _spans(context)
    ends = [span.start + span.step * span.count for span in spans]
    options = tflite.StridedSliceOptionsT()
    # An end before the first entry would count from the back.
    options.endMask = sum(1 << axis for axis, end in enumerate(ends) if end < 0)
    numbers = ([span.start for span in spans], ends, [span.step for span in spans])
    inputs = [x, *(builder.ints(values) for values in numbers)]
    shape = [span.count for span in spans]
    found = builder.add("STRIDED_SLICE", inputs, shape, options, dtype=builder.dtype(x))
    return [builder.reshape(found, context.output_shape())]


def _extent(span: _Span) -> int:
    return abs(span.step) * (span.count - 1) + 1


def _spans(context: RuleContext) -> list[_Span]:
    """Return what the operator takes of each axis of its input.

    An axis of which the model takes all samples for its own batch is taken whole for the batch of this file.
    """
    shape, options, result = context.input_shape(0), context.options, iter(context.output_shape())
    entries = len(context.constant(1).reshape(-1))
    added = bin(options.newAxisMask & ~options.ellipsisMask & ((1 << entries) - 1)).count("1")
    hidden = len(shape) - (entries - added - (1 if options.ellipsisMask else 0))
    spans: list[_Span] = []
    for entry in range(entries):
        bit = 1 << entry
        if options.ellipsisMask & bit:
            for _ in range(hidden):
                spans.append(_Span(0, 1, next(result)))
        elif options.newAxisMask & bit:
            next(result)
        elif options.shrinkAxisMask & bit:
            spans.append(_Span(int(context.constant(1).reshape(-1)[entry]) % shape[len(spans)], 1, 1))
        else:
            spans.append(_span(context, entry, len(spans), next(result)))
    return spans + [_Span(0, 1, next(result)) for _ in range(len(shape) - len(spans))]


def _span(context: RuleContext, entry: int, axis: int, kept: int) -> _Span:
    """Return what an entry of the operator takes of an axis, which keeps so many."""
    size, options = context.input_shape(0)[axis], context.options
    begin, end, step = (int(context.constant(position).reshape(-1)[entry]) for position in (1, 2, 3))
    first = None if options.beginMask >> entry & 1 else begin
    last = None if options.endMask >> entry & 1 else end
    taken = range(size)[slice(first, last, step)]
    if len(taken) == kept and kept:
        return _Span(taken[0], step, kept)
    if kept != size:
        raise context.refusal(
            f"it keeps {kept} of {size} entries of dimension {axis}; expected {len(taken)}, at least 1"
        )
    return _Span(0, 1, size)


RULES: dict[str, Rule] = {"PAD": _pad, "PADV2": _pad, "SLICE": _slice, "STRIDED_SLICE": _strided_slice}
FORWARDS: dict[str, Forward] = {"SLICE": _slice_forward, "STRIDED_SLICE": _strided_slice_forward}
