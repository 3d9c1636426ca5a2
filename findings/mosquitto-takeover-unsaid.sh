#!/usr/bin/env bash
# Guess: when a second MQTT 5 client connects with a client id that is in use,
#   Mosquitto tells the first one why it closes: DISCONNECT with reason 0x8E,
#   session taken over (MQTT 5.0, 3.1.4: "the Server sends a DISCONNECT packet
#   to the existing Client").
# What is so: 2.0.11 closes the connection without a packet, with a session
#   that ends and with one that is kept; so does it with MQTT 3.1.1. The client
#   sees a lost connection, as after a broken cable.
# Versions: mosquitto 2.0.11-1.2+deb12u2 (Debian 12), paho-mqtt 2.1.0, Python
#   3.11, x86-64.
# Why it matters: a client that connects again by itself throws the other off,
#   and both go on for ever. Two nodes that were given one name look like a
#   bad network, and code that waits for 0x8E never runs.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check paho-mqtt==2.1.0
apt-get download -q mosquitto=2.0.11-1.2+deb12u2 libmosquitto1=2.0.11-1.2+deb12u2 \
  libcjson1 libdlt2 libwrap0 >download.log 2>&1
for package in *.deb; do dpkg -x "$package" root; done
LD_LIBRARY_PATH="$(find "$work/root" -name '*.so.*' -printf '%h\n' | sort -u |
  paste -sd:)"
export LD_LIBRARY_PATH
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >conf
root/usr/sbin/mosquitto -c conf >broker.log 2>&1 &
broker=$!
sleep 1

cat >two.py <<'PY'
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def client(version, kept):
    old = {} if version == mqtt.MQTTv5 else {"clean_session": not kept}
    made = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, client_id="pi-1", protocol=version, **old
    )
    made.reconnect_delay_set(60, 60)
    made.seen = queue.Queue()
    made.on_connect = lambda *said: made.seen.put("connected")
    made.on_disconnect = lambda c, u, flags, reason, p: made.seen.put(
        f"a packet from the broker: {flags.is_disconnect_packet_from_server}, paho says: {reason}"
    )
    options = {}
    if version == mqtt.MQTTv5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600 if kept else 0
        options = {"clean_start": not kept, "properties": properties}
    made.connect("127.0.0.1", int(sys.argv[1]), **options)
    made.loop_start()
    assert made.seen.get(timeout=10) == "connected"
    return made


for version, name in ((mqtt.MQTTv5, "MQTT 5"), (mqtt.MQTTv311, "MQTT 3.1.1")):
    for kept in (False, True):
        first = client(version, kept)
        second = client(version, kept)
        print(f"{name}, session {'kept' if kept else 'not kept'}: {first.seen.get(timeout=10)}")
        second.disconnect()
        first.loop_stop()
        second.loop_stop()
PY
env/bin/python two.py "$port" | tee seen
diff seen - <<'WANT'
MQTT 5, session not kept: a packet from the broker: False, paho says: Unspecified error
MQTT 5, session kept: a packet from the broker: False, paho says: Unspecified error
MQTT 3.1.1, session not kept: a packet from the broker: False, paho says: Unspecified error
MQTT 3.1.1, session kept: a packet from the broker: False, paho says: Unspecified error
WANT
