"""A sensor: windows in, messages out; what it counts."""

import numpy as np
import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.data.recording import Window
from har_edge.errors import ConfigError
from har_edge.protocol import wire
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from tests.runtime.rig import CHANNELS, LENGTH, TOPICS, samples


def sensor(*, combine=False, sources=("chest", "arm"), reducer="none", **options):
    reducers = {source: make_reducer(reducer, LENGTH, CHANNELS[source]) for source in sources}
    return Sensor(SensorSetup(TOPICS, 1, reducers, frozenset({1, 4}), combine, **options))


def window(seq, *, stream="s", hop=2, label=1, offset=0):
    values = {source: samples(source, seq)[0] for source in CHANNELS}
    return Window(stream, seq, offset + seq * hop, values, label)


def test_separate_sources_have_topics_of_their_own():
    one = sensor()
    outgoing = one.handle([window(7)], [3.5])
    assert [out.topic for out in outgoing] == ["har/v1/test/window/s/chest", "har/v1/test/window/s/arm"]
    for source, out in zip(("chest", "arm"), outgoing, strict=True):
        message = wire.decode(out.payload)
        assert (message.seq, message.epoch, message.captured, message.truth) == (7, 1, (3.5,), (1,))
        assert list(message.tensors) == [source] and out.needs_subscriber and not out.retain
        assert message.tensors[source].tobytes() == samples(source, 7).tobytes()
    assert (one.counters.windows, one.counters.messages) == (1, 2)


def test_combined_sources_share_a_message():
    one = sensor(combine=True)
    (out,) = one.handle([window(0), window(1), window(2)], [1.0, 2.0, 3.0])
    message = wire.decode(out.payload)
    assert out.topic == "har/v1/test/window/s/all" and list(message.tensors) == ["chest", "arm"]
    assert message.tensors["arm"].shape == (3, LENGTH, 3) and message.captured == (1.0, 2.0, 3.0)
    assert (one.counters.windows, one.counters.messages) == (3, 1)


def test_truth_is_only_what_the_model_can_answer():
    one = sensor(sources=("chest",))
    (out,) = one.handle([window(0, label=1), window(1, label=0), window(2, label=None), window(3, label=4)], [0.0] * 4)
    assert wire.decode(out.payload).truth == (1, None, None, 4)
    (out,) = one.handle([window(4, label=0), window(5, label=9)], [0.0] * 2)
    assert wire.decode(out.payload).truth is None


@pytest.mark.parametrize(("hop", "rows"), [(2, 2 * 9 + LENGTH), (LENGTH, 10 * LENGTH), (7, 10 * LENGTH)])
def test_raw_values_count_once_although_windows_overlap(hop, rows):
    one = sensor()
    for seq in range(10):
        one.handle([window(seq, hop=hop)], [0.0])
    assert one.raw_values == rows * (2 + 3)
    one.handle([window(0, hop=hop, stream="other")], [0.0])
    assert one.raw_values == (rows + LENGTH) * (2 + 3)


def test_a_message_above_the_limit_says_what_to_do():
    one = sensor(max_payload_bytes=100)
    with pytest.raises(ConfigError, match=r"a message of 4 windows takes \d+ bytes; expected at most 100; lower --bat"):
        one.handle([window(seq) for seq in range(4)], [0.0] * 4)


def test_a_source_called_all_is_the_only_one():
    reducers = {"all": make_reducer("none", LENGTH, 5), "arm": make_reducer("none", LENGTH, 3)}
    with pytest.raises(ConfigError, match="one of several sources is called 'all', which stands for all of them"):
        Sensor(SensorSetup(TOPICS, 1, reducers, frozenset()))
    one = Sensor(SensorSetup(TOPICS, 1, {"all": reducers["all"]}, frozenset()))
    values = np.concatenate([samples(source)[0] for source in CHANNELS], axis=1)
    (out,) = one.handle([Window("s", 0, 0, {"all": values}, None)], [0.0])
    assert out.topic == "har/v1/test/window/s/all" and list(wire.decode(out.payload).tensors) == ["all"]


def test_codes_are_those_of_the_reducer():
    one = sensor(sources=("arm",), reducer="paa:2")
    (out,) = one.handle([window(3)], [0.0])
    expected = samples("arm", 3)[0].reshape(2, 2, 3).mean(axis=1, dtype=np.float64).astype(np.float32)
    np.testing.assert_allclose(wire.decode(out.payload).tensors["arm"][0], expected, rtol=1e-6)
