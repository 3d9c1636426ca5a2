"""A paho client that survives a PUBACK with a reason code that MQTT 5 does not list for it.

Mosquitto answers a message above its message_size_limit with 0x95, which MQTT 5 (section 2.4) lists for CONNACK and
DISCONNECT only. paho raises inside its reader, the connection ends, and the client sends the message again for ever.
"""

from __future__ import annotations

from typing import Any

import paho.mqtt.client as mqtt

TOO_LARGE = 0x95
_KNOWN = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})  # section 3.4.2.1
_UNSPECIFIED = 0x80


class TolerantClient(mqtt.Client):
    """Reads an unlisted code of PUBACK as an unspecified error; `odd` maps packet identifiers to such codes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.odd: dict[int, int] = {}

    def _handle_pubackcomp(self, cmd: Any) -> Any:
        packet = self._in_packet["packet"]
        if cmd == "PUBACK" and self._protocol == mqtt.MQTTv5 and len(packet) > 2 and packet[2] not in _KNOWN:
            self.odd[int.from_bytes(packet[:2], "big")] = packet[2]
            packet = bytearray(packet)
            packet[2] = _UNSPECIFIED
            self._in_packet["packet"] = packet
        return super()._handle_pubackcomp(cmd)
