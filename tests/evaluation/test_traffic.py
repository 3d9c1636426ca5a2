"""Computed bytes are the bytes of real packets."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.data.recording import Recording
from har_edge.data.windows import windows
from har_edge.evaluation.traffic import EPOCH, TOPICS, Traffic, code_bytes, encode_window, measure_traffic
from har_edge.mqtt.clients.aliases import TopicAliases
from har_edge.mqtt.clients.transport import publish_bytes
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup

SPECS = ("none", "paa:5", "paa:5+q8", "q16")


@pytest.mark.parametrize("size", [0, 1, 110, 111, 112, 16_000, 16_400, 2_097_200, 2_100_000])
def test_a_packet_is_as_long_as_the_mqtt5_library_makes_it(size: int) -> None:
    mqtt5 = pytest.importorskip("mqtt5")
    topic, payload = TOPICS.window("subject1", "chest"), bytes(size)
    for named, alias in ((topic, None), (topic, 3), ("", 3)):
        packet = mqtt5.PublishPacket(
            named, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7, topic_alias=alias
        ).write()
        assert publish_bytes(named, payload, aliased=alias is not None) == len(packet)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("spec", SPECS)
def test_bytes_are_those_that_a_sensor_publishes(recordings: list[Recording], spec: str, batch: int) -> None:
    """The oracle is the node itself, given the same windows."""
    labels = [1, 2, 3]
    reducers = {name: make_reducer(spec, 250, values.shape[1]) for name, values in recordings[0].samples.items()}
    cut = [list(windows(recording, 250, 125, within_activity=False))[:20] for recording in recordings]
    sent = messages = named = 0
    for name, reducer in reducers.items():
        sensor = Sensor(SensorSetup(TOPICS, EPOCH, {name: reducer}, frozenset(labels)))
        aliases = TopicAliases(10)  # what the native client keeps for a connection to Mosquitto
        for stream in cut:
            for start in range(0, len(stream), batch):
                group = stream[start : start + batch]
                out = sensor.handle(group, [1.7e9 + index / 3 for index in range(len(group))])
                messages += len(out)
                for message in out:
                    topic, alias = aliases.name(message.topic)
                    aliases.remember(message.topic)
                    sent += publish_bytes(topic, message.payload, aliased=alias is not None)
                    named += publish_bytes(message.topic, message.payload)
    encoded = [encode_window(window, reducers, labels) for stream in cut for window in stream]
    traffic = measure_traffic(encoded, reducers, batch)
    assert traffic == Traffic(batch, 40, messages, sent, named)
    assert code_bytes(encoded) < sent
    if spec == "none":
        assert code_bytes(encoded) == 40 * 250 * 23 * 4


def test_nothing_sends_nothing() -> None:
    assert measure_traffic([], {"chest": make_reducer("none", 4, 1)}, 2).wire_bytes == 0
    assert code_bytes([]) == 0


def test_only_labels_that_the_model_knows_travel(recordings: list[Recording]) -> None:
    window = next(windows(recordings[0], 250, 125, within_activity=False))
    assert window.label == 1
    reducers = {"chest": make_reducer("none", 250, 5)}
    assert encode_window(window, reducers, [1]).truth == 1
    assert encode_window(window, reducers, [2]).truth is None
    assert np.array_equal(encode_window(window, reducers, [2]).codes["chest"], window.samples["chest"])
