#!/usr/bin/env bash
# Guess: a message that comes live has no retain flag, with any client that
#   leaves the options of its subscription alone; the flag means "stored".
# What is so: mqtt5's TopicFilter asks for "retain as published" unless told
#   otherwise (MQTT 5, section 3.8.3.1), so a live message that was published
#   with the flag comes with it. With paho-mqtt the same message of the same
#   broker comes without. What is stored has it with both.
# Versions: mqtt5 0.8.0, paho-mqtt 2.2.0, Mosquitto 2.0.11 (Debian 12).
# Why it matters: "is this the last will of a node that just died, or an old one
#   that the broker kept?" is asked of that flag; a program that changes its
#   client gets the other answer without an error.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
PATH=$PATH:/usr/sbin
python3 -m venv v
v/bin/pip install -q mqtt5==0.8.0 paho-mqtt==2.2.0
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >conf
mosquitto -c conf >broker.log 2>&1 &
broker=$!
sleep 1
v/bin/python - "$port" <<'PY'
import socket
import sys
import time

import mqtt5
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5

PORT = int(sys.argv[1])


class Sans:
    """mqtt5 has packets only; the socket is ours."""

    def __init__(self, name: str, *filters: mqtt5.TopicFilter) -> None:
        self.socket, self.data = socket.create_connection(("127.0.0.1", PORT)), b""
        self.socket.settimeout(1.0)
        self.socket.sendall(mqtt5.ConnectPacket(name).write())
        self.packets(mqtt5.ConnAckPacket)
        self.socket.sendall(mqtt5.SubscribePacket(1, list(filters)).write())
        self.come = [packet.retain for packet in self.packets(mqtt5.PublishPacket)]

    def packets(self, kind: type) -> list:
        """Return the packets of a kind that come until a second is quiet."""
        found = []
        try:
            while part := self.socket.recv(4096):
                self.data += part
                while self.data:
                    packet, size = mqtt5.read(self.data)
                    self.data = self.data[size:]
                    found += [packet] if isinstance(packet, kind) else []
                if kind is mqtt5.ConnAckPacket:
                    break
        except TimeoutError:
            pass
        return found


flags: list[bool] = []
paho = Client(CallbackAPIVersion.VERSION2, client_id="paho", protocol=MQTTv5)
paho.on_message = lambda _client, _user, message: flags.append(message.retain)
paho.connect("127.0.0.1", PORT)
paho.subscribe("node/status")
paho.loop_start()
default = Sans("default", mqtt5.TopicFilter("node/status"))
asked = Sans("asked", mqtt5.TopicFilter("node/status", retain_as_published=False))
paho.publish("node/status", "lost", retain=True).wait_for_publish(5)
time.sleep(0.5)
live = {
    "paho": [bool(flag) for flag in flags],
    "mqtt5": [packet.retain for packet in default.packets(mqtt5.PublishPacket)],
    "mqtt5, retain_as_published=False": [packet.retain for packet in asked.packets(mqtt5.PublishPacket)],
}
stored = Sans("later", mqtt5.TopicFilter("node/status")).come
print("retain flag of a live message:", live, "of a stored one:", stored)
paho.disconnect()
assert live["paho"] == [False] and live["mqtt5, retain_as_published=False"] == [False]
assert live["mqtt5"] == [True], "mqtt5 no longer asks for the flag as published"
assert stored == [True]
PY
