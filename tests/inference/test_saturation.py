"""What lies beyond the range of a quantised input is counted, and said once where it is much."""

import logging

import numpy as np
import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.packing import pack
from har_edge.inference.input_adapter import make_input_adapter
from har_edge.inference.interpreter import Port
from har_edge.inference.saturation import FIRST, NODE_EVERY, QuantizedRange, Saturation, range_of, range_taken, totals

PIXELS = QuantizedRange.of("uint8", 1 / 128, 128)


def counting(range_=PIXELS):
    return Saturation("photo", "input 'x'", range_)


def test_the_range_of_a_type():
    assert (PIXELS.low, PIXELS.high, PIXELS.step) == (-1.0, 127 / 128, 1 / 128)
    assert QuantizedRange.of("int8", 0.25, -3) == QuantizedRange("int8", -31.25, 32.5)
    assert (
        range_of("float32", 0.0, 0) is None and range_of("int8", 0.0, 0) is None and range_of("int32", 1.0, 0) is None
    )


def test_values_beyond_are_counted_and_half_a_step_is_not_beyond():
    one = counting()
    one.note(np.array([-1.0, 0.0, 127 / 128 + 0.49 / 128, 1.0, -1.1, 300.0], np.float32))
    assert (one.values, one.beyond, one.share) == (6, 3, 0.5)
    assert (one.least, one.largest) == (pytest.approx(-1.1), 300.0)
    assert totals([one, counting()]) == (6, 3)


def test_much_is_said_once_with_both_ranges_and_what_to_do(caplog):
    one = counting()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            one.note(np.arange(256, dtype=np.float32))
    assert [record.getMessage() for record in caplog.records] == [
        "100% of the values of source 'photo' saturate: 0 to 255 came, but input 'x' takes -1 to 0.9922 (uint8); "
        "answers are likely to be wrong; scale the recordings, or the device's values, to those that the model was "
        "trained on (docs/how-to/own-model.md#values)"
    ]
    assert one.values == 768 and one.beyond == 3 * 254 + 3


def test_a_node_looks_at_the_first_windows_and_then_at_some(caplog):
    one = Saturation("photo", "input 'x'", PIXELS, NODE_EVERY)
    for _ in range(FIRST + 3 * NODE_EVERY):
        one.note(np.zeros(2, np.float32))
    assert one.values == 2 * (FIRST + 3)
    for _ in range(NODE_EVERY):
        one.note(np.full(2, 9.0))
    assert (one.values, one.beyond) == (2 * (FIRST + 4), 2)


def test_a_few_values_beyond_are_usual(caplog):
    one = counting()
    with caplog.at_level(logging.WARNING):
        one.note(np.array([0.5] * 9 + [7.0]))
    assert one.share == 0.1 and not caplog.records


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", None),
        ("q8", None),
        ("q8:0.25:-3", QuantizedRange("int8", -31.25, 32.5)),
        ("q8:0.25:-3+zlib", QuantizedRange("int8", -31.25, 32.5)),
        ("paa:4+q8", None),
    ],
)
def test_what_a_reducer_takes(spec, expected):
    assert range_taken(make_reducer(spec, 20, 3)) == expected


@pytest.mark.parametrize("spec", ["none", "paa:4"])
def test_a_feed_counts_what_it_quantises_and_nothing_else(spec):
    reducer, window = make_reducer(spec, 20, 3), np.full((20, 3), 40.0, np.float32)
    codes = pack(reducer, [reducer.encode(window)])
    one = counting(QuantizedRange.of("int8", 0.25, -3))
    made = make_input_adapter("chest", reducer, Port("x", (-1, 20, 3), np.dtype("int8"), 0.25, -3), 20, 3, one)(codes)
    assert (made == 127).all() and (one.values, one.beyond) == (60, 60)
    other = counting()
    make_input_adapter("chest", reducer, Port("x", (-1, 20, 3), np.dtype("float32"), 0.0, 0), 20, 3, other)(codes)
    assert other.values == 0
