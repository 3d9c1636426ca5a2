#!/usr/bin/env bash
# Guess (held, not written down before the run; seen while testing something
#   else): what a broker kept for an absent subscriber comes with RETAIN 0: the
#   flag is 1 only for what a new subscription finds (MQTT 3.1.1, 3.3.1.3), as
#   with Mosquitto.
# What is so: aedes hands out its queue with RETAIN as it was published: three
#   plans published with RETAIN while the subscriber was away all come with
#   RETAIN 1, the outdated ones too. While it is connected they come with 0.
# Versions: aedes 1.2.0 on Node.js 20, paho-mqtt 2.2.0 as MQTT 3.1.1.
# Why it matters: clients tell the present state from a change by this flag, or
#   leave out retained messages at a start.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q paho-mqtt==2.2.0
npm init -y >/dev/null
npm install --silent aedes@1.2.0 >/dev/null
port=$((20000 + RANDOM % 10000))
cat > broker.mjs <<'JS'
import net from "node:net";
import { Aedes } from "aedes";
const broker = await Aedes.createBroker();
net.createServer(broker.handle).listen(Number(process.argv[2]), "127.0.0.1");
JS
node broker.mjs "$port" &
broker=$!
sleep 2
v/bin/python - "$port" <<'PY'
import sys
import time

import paho.mqtt.client as paho


def connect(name, got):
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2,
        name,
        protocol=paho.MQTTv311,
        clean_session=False,
    )
    client.on_message = lambda _c, _u, m: got.append((m.payload.decode(), m.retain))
    client.connect("127.0.0.1", int(sys.argv[1]))
    client.loop_start()
    time.sleep(0.5)
    return client


def leave(client):
    client.disconnect()
    client.loop_stop()


present, queued = [], []
publisher, listener = connect("p", []), connect("s", present)
listener.subscribe("plan", 1)
time.sleep(0.5)
publisher.publish("plan", b"0", qos=1, retain=True).wait_for_publish(5)
time.sleep(0.5)
leave(listener)
for number in (b"1", b"2", b"3"):
    publisher.publish("plan", number, qos=1, retain=True).wait_for_publish(5)
listener = connect("s", queued)
time.sleep(1)
leave(listener)
leave(publisher)
print("connected (payload, retain):", present)
print("queued (payload, retain):   ", queued)
assert present == [("0", False)], present
assert queued == [("1", True), ("2", True), ("3", True)], queued
PY
