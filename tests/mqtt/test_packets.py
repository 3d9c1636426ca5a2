"""PUBLISH packets in pieces are the bytes that the library writes in one."""

from __future__ import annotations

import pytest

mqtt5 = pytest.importorskip("mqtt5")

from har_edge.mqtt.clients.packets import LARGE_BYTES, Publication, write_publish  # noqa: E402

# The head of a packet grows by a byte at 2 MiB of what follows it (MQTT 5, section 1.5.5), topic and properties too.
SIZES = [0, 1, LARGE_BYTES - 1, LARGE_BYTES, *range(2 * 2**20 - 20, 2 * 2**20 + 1)]


@pytest.mark.parametrize(
    ("topic", "alias", "retain", "duplicate"),
    [("har/v1/p/window/s/arm", 3, False, False), ("", 65535, False, True), ("t", None, True, False)],
)
def test_pieces_are_the_packet(topic: str, alias: int | None, *, retain: bool, duplicate: bool) -> None:
    for size in SIZES:
        payload = bytes(size)
        publication = Publication("har/v1/p/window/s/arm", payload, retain, None)
        whole = mqtt5.PublishPacket(
            topic,
            payload,
            qos=mqtt5.QoS.AT_LEAST_ONCE,
            retain=retain,
            packet_id=517,
            duplicate=duplicate,
            topic_alias=alias,
        ).write()
        pieces = write_publish(publication, 517, topic, alias, duplicate=duplicate)
        assert b"".join(pieces) == whole
        assert (pieces[-1] is payload) == (size >= LARGE_BYTES)  # it was not copied
