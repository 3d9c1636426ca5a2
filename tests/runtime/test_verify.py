"""Slices, run one after the other, against the whole model."""

from __future__ import annotations

import os
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.errors import ModelError
from har_edge.inference.tensor_observation import open_model
from har_edge.runtime import verify
from har_edge.runtime.verify import check_cuts
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import Model, read_model
from tests.tflite import models

RUNNABLE = {
    "chain": models.chain(),
    "dynamic": models.chain(dynamic=True),
    "skip": models.skip(),
    "many_ports": models.many_ports(),
    "quantised": models.quantised(),
    "half_weights": models.half_weights(),
    "old_file": models.old_file(),
    "recurrent": models.recurrent(),
    "loop": models.loop(),
    "reshaped": models.reshaped(),
    "initialised": models.initialised(),
    "branch": models.branch(),
    "odd_outputs": models.odd_outputs(),
    "variable": models.variable(apart=True),
    "badly_named": models.badly_named(),
    "described": models.described(),
    "no_text": models.named(b"in\xff", b"mid\xfe\0dle", b"out\xc3"),
    "shared_weights": models.shared_weights(),
    "layer_norm": models.layer_norm(),
    "long_names": models.long_names(1063, dynamic=True),
    "fan": models.fan(70, dynamic=True),
}


ODD = {
    "dilated": models.dilated(),
    "dense_each_step": models.dense_each_step(),
    "positive_places": models.positive_places(),
    "chosen_class": models.chosen_class(),
    "unread_input": models.unread_input(),
    "unsigned": models.unsigned(),
    "mixes_windows": models.mixes_windows(),
    "one_at_a_time": models.one_at_a_time(),
}


@pytest.mark.parametrize("dimensions", [8, 9, 12])
def test_more_dimensions_than_messages_carry_are_refused_where_they_cross(dimensions: int) -> None:
    model = open_model(models.ranked(dimensions))
    said = f"tensor wide would cross, and it has {dimensions} dimensions, of which messages carry 8"
    assert [cut.refusal for cut in list_cuts(model)] == [None, said if dimensions > 8 else None, None]
    ways = [(index,) for index in _legal(model)]
    assert [check.difference for check in check_cuts(model, ways)] == [None] * len(ways)


@pytest.mark.parametrize("first", [True, False])
def test_a_model_that_gives_nan_is_compared_all_the_same(first: bool) -> None:
    model = open_model(models.undefined(first=first))
    ways = [(index,) for index in _legal(model)]
    assert [check.difference for check in check_cuts(model, ways)] == [None] * len(ways) and len(ways) > 2


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        ([np.nan], [-np.nan], True),
        ([np.nan], [1.0], False),
        ([0.0], [-0.0], False),
        ([1.0, np.nan], [1.0, np.nan], True),
        ([np.inf], [np.inf], True),
        ([np.inf], [-np.inf], False),
    ],
)
def test_bits_count_and_every_nan_is_one(wanted: list[float], got: list[float], same: bool) -> None:
    assert verify._same(np.array(wanted, np.float32), np.array(got, np.float32)) is same


def _legal(model: Model) -> list[int]:
    return [cut.index for cut in list_cuts(model) if cut.refusal is None]


def _unequal(model: Model, ways: list[tuple[int, ...]], runs: int = 2) -> list[object]:
    return [check for check in check_cuts(model, ways, runs=runs) if check.difference is not None]


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_way_to_cut_gives_the_bits_of_the_whole(name: str) -> None:
    model = read_model(RUNNABLE[name])
    legal = _legal(model)
    ways = [way for count in range(len(legal) + 1) for way in combinations(legal, count)]
    if name == "half_weights":
        assert legal == [4, 5]
    assert len(ways) > 1
    assert _unequal(model, ways) == []


@pytest.mark.parametrize("name", ODD)
def test_every_way_to_cut_models_without_a_batch_throughout(name: str) -> None:
    model = open_model(ODD[name])
    legal = _legal(model)
    assert len(legal) == len(model.main.operators) - 1
    assert _unequal(model, [way for count in range(4) for way in combinations(legal, count)]) == []


@pytest.mark.parametrize("version", [1, 3])
def test_messages_are_checked_as_a_stage_checks_them(version: int) -> None:
    """A model of which nobody found out what carries the batch: its slices are right, and no stage takes them."""
    ways = [(1,), (2,), (4,)]
    checks = list(check_cuts(read_model(models.dilated()), ways, wire_version=version))
    text = r"slice 1: har/v1/check/act/1/0/check: input '.*' came as float32 \[2, 4, 5\] for 1 windows; expected"
    assert [bool(re.match(text, check.difference or "")) for check in checks] == [True, True, False]


def test_what_no_message_of_that_version_carries_is_no_cut() -> None:
    (check,) = check_cuts(open_model(models.named(b"in", b"m" * 1063, b"out")), [(1,)], wire_version=1)
    assert check.difference is not None and check.difference.startswith(
        "wire version 1 came, but the name of tensor mmm"
    )
    (check,) = check_cuts(open_model(models.named(b"in", b"m" * 1063, b"out")), [(1,)])
    assert check.difference is None


def test_batches_go_through_where_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    real = verify.wire.decode

    def decode(*args: object) -> object:
        message = real(*args)
        counts.append(message.count)
        return message

    monkeypatch.setattr("har_edge.protocol.wire.decode", decode)
    model = open_model(models.dilated())
    assert _unequal(model, [(1,)], runs=1) == [] and counts == [1, 1]
    counts.clear()
    assert _unequal(model, [(3,)], runs=1) == [] and counts == [1, 3, 1, 3]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), operators=st.integers(2, 14), data=st.data())
def test_random_graphs_cut_anywhere_give_the_bits_of_the_whole(seed: int, operators: int, data: st.DataObject) -> None:
    model = read_model(models.random_graph(seed, operators))
    # A branch that feeds nothing cannot be a slice of its own, so cuts are drawn one way at a time.
    legal = _legal(model)
    ways = [(cut,) for cut in legal]
    assert _unequal(model, ways, runs=1) == []
    if legal:
        some = tuple(sorted(data.draw(st.sets(st.sampled_from(legal), max_size=4))))
        try:
            assert _unequal(model, [some], runs=1) == []
        except ModelError as error:
            assert "make nothing that is needed later" in str(error)


def test_a_slice_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = verify.write_slice

    def damaged(model: Model, piece: object) -> bytes:
        content = bytearray(real(model, piece))
        weights = read_model(bytes(content)).buffers[1]
        assert weights is not None
        position = bytes(content).find(weights.tobytes())
        content[position + 2] ^= 0x40  # the highest bit of the fraction of one weight
        return bytes(content)

    monkeypatch.setattr(verify, "write_slice", damaged)
    (check,) = check_cuts(read_model(models.chain()), [(2,)])
    assert check.cuts == (2,)
    assert check.difference is not None and check.difference.startswith("output t12: ")


def test_a_slice_that_cannot_run_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "write_slice", lambda model, piece: b"broken")
    (check,) = check_cuts(read_model(models.chain()), [(2,)])
    assert check.difference is not None and check.difference.startswith("slice 0: these 6 bytes: no TFLite model")


def test_nan_equals_itself_and_minus_zero_differs() -> None:
    nan, zero = np.array([np.nan], np.float32), np.array([0.0], np.float32)
    assert verify._same(nan, nan.copy())
    assert not verify._same(zero, -zero)
    assert not verify._same(zero, zero.reshape(1, 1))


def test_what_cannot_be_compared_says_why() -> None:
    text = (
        "the runtime cannot run the whole model here, so nothing can be compared: .*Mystery.*; cut it without --check"
    )
    with pytest.raises(ModelError, match=text):
        list(check_cuts(read_model(models.custom()), [(1,)]))
    draft = models.Draft()
    graph = draft.graph()
    x = graph.input([1, 4], "x")
    noise = graph.tensor([1, 4], "noise")
    shape = graph.const(np.array([1, 4], np.int32))
    graph.op("RANDOM_UNIFORM", [shape], [noise], models.tflite.RandomOptionsT())
    graph.output(graph.add(graph.add(x, noise), x))
    with pytest.raises(ModelError, match="gives another result for the same input each time"):
        list(check_cuts(read_model(draft.build()), [(2,)]))


@pytest.mark.slow
@pytest.mark.dataset
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant.tflite", "mobilenet_v2_1.0_224_quant.tflite"])
def test_every_cut_of_models_that_others_made(name: str) -> None:
    default = Path(os.environ.get("HAR_EDGE_DATA", ".")).parent / "models"
    path = Path(os.environ.get("HAR_EDGE_MODELS", default)) / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs {path}: set HAR_EDGE_MODELS to the folder with the models that others made")
        pytest.skip(f"needs {name}: set HAR_EDGE_MODELS")
    model = read_model(path)
    ways = [(cut,) for cut in _legal(model)]
    assert len(ways) == len(model.main.operators) - 1
    assert _unequal(model, [*ways, tuple(range(1, len(ways) + 1))], runs=1) == []
