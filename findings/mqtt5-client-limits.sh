#!/usr/bin/env bash
# Guess: a client library with MQTT 5 keeps to the limits in the broker's
#   CONNACK: paho to Receive Maximum, mqtt.js to all (it raises an error), gmqtt
#   to none.
# What is so: with Receive Maximum 2 paho 2.2 and mqtt.js 5.16 send ten QoS 1
#   messages at once, which a broker may answer with a disconnect. gmqtt 0.8
#   sends one (not two) and raises OverflowError for each of the others. All
#   three send what is larger than Maximum Packet Size, QoS 1 where Maximum QoS
#   is 0, and retained messages where Retain Available is 0.
# Versions: paho-mqtt 2.2.0, gmqtt 0.8.0, mqtt.js 5.16.0 on Node.js 20, against
#   a socket server below that answers CONNECT, counts, and acknowledges nothing.
# Why it matters: small brokers (rumqttd, cloud IoT services) have such limits,
#   and a large window or a burst after a gap meets them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q paho-mqtt==2.2.0 gmqtt==0.8.0
npm init -y >/dev/null
npm install --silent mqtt@5.16.0 >/dev/null
cat > client.js <<'JS'
const mqtt = require("mqtt");
const [port, count, size, qos, retain] = process.argv.slice(2).map(Number);
const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, { protocolVersion: 5 });
client.on("error", (error) => console.log("raised", error.message));
client.once("connect", () => {
  for (let i = 0; i < count; i++)
    client.publish("har/w", Buffer.alloc(size, 120), { qos, retain: !!retain },
      (error) => error && console.log("raised", error.message));
  setTimeout(() => process.exit(0), 1500);
});
JS
cat > client.py <<'PY'
import asyncio
import sys
import time

library = sys.argv[1]
port, count, size, qos, retain = map(int, sys.argv[2:])


def publish_all(client):
    for _ in range(count):
        try:
            client.publish("har/w", b"x" * size, qos=qos, retain=bool(retain))
        except (ValueError, OverflowError) as error:
            print("raised", type(error).__name__)


async def with_gmqtt():
    import gmqtt

    client = gmqtt.Client("g")
    await client.connect("127.0.0.1", port)
    publish_all(client)
    await asyncio.sleep(1.5)


if library == "gmqtt":
    asyncio.run(with_gmqtt())
else:
    import paho.mqtt.client as paho

    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, "p", protocol=paho.MQTTv5
    )
    client.on_connect = lambda *_: publish_all(client)
    client.connect("127.0.0.1", port)
    client.loop_start()
    time.sleep(1.5)
    client.disconnect()
    client.loop_stop()
PY
cat > server.py <<'PY'
import collections
import socket
import subprocess
import sys
import threading


def exactly(stream, count):
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def serve(listener, limits, sent):
    connection, _ = listener.accept()
    stream = connection.makefile("rb")
    try:
        while True:
            first = exactly(stream, 1)[0]
            length = shift = 0
            while True:
                byte = exactly(stream, 1)[0]
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            exactly(stream, length)
            if first >> 4 == 1:  # CONNECT: CONNACK with the limits
                body = bytes([0, 0, len(limits)]) + limits
                connection.sendall(bytes([0x20, len(body)]) + body)
            elif first >> 4 == 3:
                sent.append(length)
    except (EOFError, OSError):
        pass


CASES = {  # name: CONNACK properties, then count, size, QoS, retain
    "Receive Maximum 2": (b"\x21\x00\x02", (10, 10, 1, 0)),
    "Maximum Packet Size 1000": (b"\x27\x00\x00\x03\xe8", (1, 5000, 0, 0)),
    "Maximum QoS 0": (b"\x24\x00", (1, 10, 1, 0)),
    "Retain Available 0": (b"\x25\x00", (1, 10, 0, 1)),
}
seen = collections.defaultdict(list)
for library in ("paho", "gmqtt", "mqtt.js"):
    for name, (limits, arguments) in CASES.items():
        sent = []
        listener = socket.create_server(("127.0.0.1", 0))
        server = threading.Thread(
            target=serve, args=(listener, limits, sent), daemon=True
        )
        server.start()
        port = listener.getsockname()[1]
        command = ["node", "client.js"]
        if library != "mqtt.js":
            command = [sys.executable, "client.py", library]
        said = subprocess.run(
            [*command, *map(str, (port, *arguments))],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.split("\n")
        raised = sum(line.startswith("raised") for line in said)
        print(f"{library:8}{name:25} sent {len(sent):2}, raised {raised}")
        seen[library].append((len(sent), raised))
assert seen["paho"] == [(10, 0), (1, 0), (1, 0), (1, 0)], seen["paho"]
assert seen["mqtt.js"] == [(10, 0), (1, 0), (1, 0), (1, 0)], seen["mqtt.js"]
assert seen["gmqtt"] == [(1, 9), (1, 0), (1, 0), (1, 0)], seen["gmqtt"]
PY
v/bin/python server.py
