"""What every slice takes and gives, against the slices themselves."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner import slice_graph as room
from har_edge.planner.devices import SensorMessages
from har_edge.planner.slice_graph import HEAD_BYTES, RESULT_BYTES, SliceGraph, make_slice_graph, tensor_bytes
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model
from tests.tflite import models


def figures(slice_graph: SliceGraph, edges: list[int]) -> list[tuple[int, ...]]:
    columns = (slice_graph.received, slice_graph.received_bytes, slice_graph.sent, slice_graph.sent_bytes)
    return [tuple(int(column[edge]) for column in columns) for edge in edges]


def wanted(model: Model, cuts: list[int], sensors: SensorMessages) -> list[tuple[int, ...]]:
    """Return messages and bytes in and out of each slice, counted from what the slices take and give."""
    pieces, tensors = slice_model(model, cuts), {tensor.name: tensor for tensor in model.main.tensors}
    inputs = {model.main.tensors[i].name for i in model.main.inputs}
    outputs = {model.main.tensors[i].name for i in model.main.outputs}
    read = {spec.name for piece in pieces for spec in piece.inputs}
    bytes_of = {name: tensor.bytes for name, tensor in tensors.items()}
    sends = []
    for number, piece in enumerate(pieces):
        later = {spec.name for other in pieces[number + 1 :] for spec in other.inputs}
        sends.append([spec.name for spec in piece.outputs if spec.name in later])
    rows = []
    for number, piece in enumerate(pieces):
        takes = {spec.name for spec in piece.inputs}
        makers = [k for k in range(number) if takes.intersection(sends[k])]
        came = [sum(bytes_of[name] for name in sends[k]) for k in makers]
        sources = [bytes_of[name] for name in takes & inputs]
        if sources and sensors is SensorMessages.TOGETHER:
            sources = [sum(bytes_of[name] for name in inputs & read)]
        came += sources
        result = bool(outputs.intersection(spec.name for spec in piece.outputs))
        gives = sum(bytes_of[name] for name in sends[number])
        out = (gives + HEAD_BYTES if sends[number] else 0) + RESULT_BYTES * result
        rows.append((len(came), sum(came) + HEAD_BYTES * len(came), bool(sends[number]) + result, out))
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from(SensorMessages), st.data())
def test_messages_and_bytes_are_those_of_the_slices(
    seed: int, operators: int, sensors: SensorMessages, data: st.DataObject
) -> None:
    model = read_model(models.random_graph(seed, operators))
    bounds = segment_bounds(model)
    slice_graph = make_slice_graph(model, bounds, sensors)
    assert slice_graph.whole
    places = data.draw(st.lists(st.sampled_from(range(1, len(bounds) - 1)), unique=True)) if len(bounds) > 2 else []
    edges = slice_graph.walk(sorted(places))
    assert edges is not None
    assert figures(slice_graph, edges) == wanted(model, [bounds[place] for place in sorted(places)], sensors)


def test_every_way_to_cut_is_a_path() -> None:
    model = read_model(models.skip())
    bounds = segment_bounds(model)
    slice_graph = make_slice_graph(model, bounds)
    for count in range(len(bounds) - 1):
        for places in combinations(range(1, len(bounds) - 1), count):
            edges = slice_graph.walk(places)
            assert edges is not None
            assert [int(slice_graph.starts[edge]) for edge in edges] == [0, *places]
            assert figures(slice_graph, edges) == wanted(
                model, [bounds[place] for place in places], SensorMessages.APART
            )
    assert (np.diff(slice_graph.tails) >= 0).all() and (slice_graph.heads > slice_graph.tails).all()


def test_a_skip_that_a_stage_passes_over_comes_straight_from_its_maker() -> None:
    # first -> second -> third, and first again for the sum: cut before 1 and 3, the last slice hears both stages.
    slice_graph = make_slice_graph(read_model(models.skip()), [0, 1, 2, 3, 4, 5])
    edges = slice_graph.walk([1, 3])
    assert edges is not None
    assert [int(slice_graph.received[edge]) for edge in edges] == [1, 1, 2]


def test_weights_count_once_and_activations_while_they_live() -> None:
    model = read_model(models.shared_weights(64))
    sizes = tensor_bytes(model, segment_bounds(model))
    weights = {t.raw.buffer: t.bytes for t in model.main.tensors if t.constant}
    assert sum(weights.values()) < sizes[0, -1] < sum(weights.values()) + 4096
    parts = [sizes[place, place + 1] for place in range(len(sizes) - 1)]
    assert sizes[0, -1] < sum(parts)  # each part by itself needs the shared weights again


def test_too_many_ways_leave_some_out_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_EDGES", 1)
    model = read_model(models.random_graph(3, 30))
    bounds = segment_bounds(model)
    slice_graph = make_slice_graph(model, bounds)
    assert not slice_graph.whole
    assert slice_graph.walk(()) is not None
    chain = make_slice_graph(read_model(models.chain()), [0, 1, 2, 3, 4])
    assert chain.whole and chain.places == (0, 1, 2, 3, 4)
