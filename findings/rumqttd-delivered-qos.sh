#!/usr/bin/env bash
# Guess: a broker delivers with the lesser of the publisher's and the
#   subscriber's QoS, and sends the retained message again when the same filter
#   is subscribed again (MQTT 3.1.1, 4.3 and 3.8.4), as Mosquitto does.
# What is so: iotcore's broker (rumqttd) delivers with the subscriber's QoS: what
#   was published with QoS 0 comes with 1, with 1 comes with 2. Subscribing again
#   gives no retained message, and a lower QoS asked for then is granted and not
#   used.
# Versions: iotcore 0.4.0 (rumqttd 0.20), paho-mqtt 2.2.0 as MQTT 3.1.1,
#   Python 3.11, x86-64.
# Why it matters: beats meant to be cheap (QoS 0) cost an acknowledgement each
#   and fill the in-flight window; a client that subscribes again to hear the
#   current plan hears nothing.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q iotcore==0.4.0 paho-mqtt==2.2.0
port=$((20000 + RANDOM % 10000))
v/bin/python - "$port" >broker.log 2>&1 <<'PY' &
import sys

from iotcore.iotcore import IotCoreBroker

IotCoreBroker(listen="127.0.0.1", port=int(sys.argv[1])).run_forever()
PY
broker=$!
sleep 3
v/bin/python - "$port" <<'PY'
import sys
import time

import paho.mqtt.client as paho


def connect(name, got):
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv311
    )
    client.on_message = lambda _c, _u, m: got.append((m.topic, m.qos, m.retain))
    client.connect("127.0.0.1", int(sys.argv[1]))
    client.loop_start()
    time.sleep(0.3)
    return client


heard = []
publisher, listener = connect("p", []), connect("s", heard)
granted = []
listener.on_subscribe = lambda *arguments: granted.append(arguments[3][0].value)
publisher.publish("plan", b"1", qos=1, retain=True).wait_for_publish(5)
for topic, qos in (("plan", 2), ("plan", 2), ("beat", 1), ("beat", 0)):
    listener.subscribe(topic, qos)
    time.sleep(0.5)
publisher.publish("beat", b"2", qos=0)
time.sleep(1)
for client in (publisher, listener):
    client.disconnect()
    client.loop_stop()
print("subscribed twice to plan with QoS 2; it is retained, published with QoS 1")
print("subscribed to beat with QoS 1, then 0; published with QoS 0")
print("granted:", granted)
print("heard (topic, QoS, retain):", heard)
assert granted == [2, 2, 1, 0], granted
assert heard == [("plan", 2, True), ("beat", 1, False)], heard
PY
