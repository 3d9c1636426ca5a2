"""A source that is not there enters as real zero."""

import numpy as np
import pytest

from har_edge.errors import MessageError, ModelError
from har_edge.inference.interpreter import Port
from har_edge.inference.missing_input import missing_input


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [("float32", 0.0, 0), ("int8", 0.17, -3), ("int8", 0.5, -128), ("uint8", 0.1, 127), ("int16", 0.001, 0)],
)
@pytest.mark.parametrize("first", [-1, 1])
def test_it_is_real_zero_in_the_shape_and_dtype_of_the_port(dtype, scale, zero_point, first):
    port = Port("arm", (first, 250, 9), np.dtype(dtype), scale, zero_point)
    value = missing_input(port, 1)
    assert value.shape == (1, 250, 9) and value.dtype == dtype
    assert not port.real(value).any()
    assert missing_input(Port("code", (-1, 32), np.dtype(dtype), scale, zero_point), 5).shape == (5, 32)


def test_an_input_without_a_batch_takes_one_window():
    port = Port("arm", (250, 9), np.dtype("float32"), 0.0, 0)
    assert missing_input(port, 1).shape == (250, 9)
    with pytest.raises(MessageError, match=r"a batch of 3 windows came, but input 'arm' \[250, 9\] takes one"):
        missing_input(port, 3)


@pytest.mark.parametrize("shape", [(), (1, -1, 9), (-1, 250, -1)])
def test_an_input_of_unknown_size_cannot_be_filled(shape):
    with pytest.raises(ModelError, match=r"input 'arm' is \[.*\]; expected \[windows, ...\] with fixed sizes"):
        missing_input(Port("arm", shape, np.dtype("float32"), 0.0, 0), 1)
