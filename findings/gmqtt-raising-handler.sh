#!/usr/bin/env bash
# Guess: with gmqtt and a kept session a QoS 1 message whose async on_message
#   raises is not acknowledged and comes again, as with paho.
# What is so: gmqtt 0.8 acknowledges it; the exception ends up in asyncio's
#   "Task exception was never retrieved", and the message is gone. With paho 2.2
#   the message comes again with DUP.
# Versions: gmqtt 0.8.0, paho-mqtt 2.2.0, Mosquitto 2.0.11-1.2+deb12u2
#   (Debian 12), Python 3.11, x86-64.
# Why it matters: a stage that fails once on a window loses it for good, though
#   all that was configured says at least once.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
python3 -m venv v
v/bin/pip install -q gmqtt==0.8.0 paho-mqtt==2.2.0
version=2.0.11-1.2+deb12u2
apt-get download -q mosquitto=$version libmosquitto1=$version libcjson1 libdlt2 \
  libwrap0 >download.log 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries="$(find "$work/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)"
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >conf
LD_LIBRARY_PATH="$libraries" root/usr/sbin/mosquitto -c conf >broker.log 2>&1 &
broker=$!
sleep 1
v/bin/python - "$port" 2>err.log <<'PY' || { tail -20 err.log; exit 1; }
import asyncio
import sys
import threading
import time

import gmqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

port = int(sys.argv[1])
threading.excepthook = lambda _: None  # paho's thread ends with the exception
session = Properties(PacketTypes.CONNECT)
session.SessionExpiryInterval = 100


def publish(topic):
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.publish(topic, b"window", qos=1).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()


async def with_gmqtt(raises):
    calls = []
    client = gmqtt.Client("g", clean_session=False, session_expiry_interval=100)

    async def handle(_client, _topic, payload, _qos, _properties):
        calls.append(payload)
        if raises:
            raise ValueError
        return 0

    client.on_message = handle
    await client.connect("127.0.0.1", port)
    client.subscribe("gmqtt/w", qos=1)
    await asyncio.sleep(1)
    await client.disconnect()
    return len(calls)


def with_paho(raises):
    calls = []
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, "p", protocol=paho.MQTTv5
    )

    def handle(_client, _userdata, message):
        calls.append(message.payload)
        if raises:
            raise ValueError

    client.on_message = handle
    client.connect("127.0.0.1", port, clean_start=False, properties=session)
    client.subscribe("paho/w", qos=1)
    client.loop_start()
    time.sleep(1)
    if raises:
        client.socket().close()
    else:
        client.disconnect()
    client.loop_stop()
    return len(calls)


seen = {}
asyncio.run(with_gmqtt(False))
publish("gmqtt/w")
seen["gmqtt"] = (asyncio.run(with_gmqtt(True)), asyncio.run(with_gmqtt(False)))
with_paho(False)
publish("paho/w")
seen["paho"] = (with_paho(True), with_paho(False))
for library, (first, second) in seen.items():
    print(f"{library:6} calls that raised: {first}, calls after reconnect: {second}")
assert seen == {"gmqtt": (1, 0), "paho": (1, 1)}, seen
PY
