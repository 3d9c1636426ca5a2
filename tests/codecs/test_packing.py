"""Codes of several windows in one array, and every array that must be refused."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.packing import pack, unpack
from har_edge.errors import MessageError


@dataclass(frozen=True)
class Ragged:
    """What packing asks of a reducer whose codes vary in length."""

    spec: str = "ragged"
    code_shape: tuple = (None,)
    code_dtype: str = "uint8"


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_ragged_codes_survive_a_round_trip(texts):
    codes = [np.frombuffer(text, np.uint8) for text in texts]
    array = pack(Ragged(), codes)
    assert array.dtype == np.uint8 and len(array) == sum(map(len, texts)) + 4 * len(texts)
    again = unpack(Ragged(), array, len(codes))
    assert [code.tobytes() for code in again] == texts
    assert all(np.shares_memory(code, array) for code in again if len(code))


def test_layout():
    codes = [np.array([7, 8], np.uint8), np.array([], np.uint8), np.array([9], np.uint8)]
    assert pack(Ragged(), codes).tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7, 8, 9]


def test_fixed_codes_are_stacked():
    reducer = make_reducer("paa:5", 250, 9)
    codes = [np.full((50, 9), at, np.float32) for at in range(3)]
    array = pack(reducer, codes)
    np.testing.assert_array_equal(array, np.stack(codes))
    np.testing.assert_array_equal(unpack(reducer, array, 3), codes)
    with pytest.raises(MessageError, match=r"code is float32 \[3, 50, 9\], expected float32 \[2, 50, 9\]"):
        unpack(reducer, array, 2)


def test_every_truncation_and_another_count_is_refused():
    array = pack(Ragged(), [np.arange(5, dtype=np.uint8), np.arange(3, dtype=np.uint8)])
    for size in range(len(array)):
        with pytest.raises(MessageError, match=r"expected 2 codes with their lengths|2 codes end at byte"):
            unpack(Ragged(), array[:size], 2)
    for count in (0, 1, 3):
        with pytest.raises(MessageError, match="expected"):
            unpack(Ragged(), array, count)


@pytest.mark.parametrize("lengths", [(2**32 - 1, 0), (2**32 - 1, 2**32 - 1), (0, 9), (9, 0)])
def test_a_forged_length_is_refused(lengths):
    array = np.concatenate([np.array(lengths, "<u4").view(np.uint8), np.zeros(8, np.uint8)])
    with pytest.raises(MessageError, match=r"2 codes end at byte \d+, expected at 16, the end"):
        unpack(Ragged(), array, 2)


def test_another_dtype_is_refused():
    with pytest.raises(MessageError, match=r"code is int8 \[9\], expected uint8 \[any\]"):
        unpack(Ragged(), np.zeros(9, np.int8), 1)
    with pytest.raises(MessageError, match=r"code is uint8 \[3, 3\], expected uint8 \[any\]"):
        unpack(Ragged(), np.zeros((3, 3), np.uint8), 1)
