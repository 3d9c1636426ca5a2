#!/usr/bin/env bash
# Guess: a bridge carries a retained message once, when it is published, and
#   once more at most for a far broker that has lost it.
# What is so: each time the bridge connects again it subscribes again on its own
#   side, gets all retained messages of its topics, and publishes them anew on
#   the far side. Clients connected there get each as a new message (RETAIN 0,
#   no DUP) after every cut, though nobody published anything.
# Versions: Mosquitto 2.0.11-1.2+deb12u2 (Debian 12) on both sides,
#   paho-mqtt 2.2.0 as MQTT 3.1.1, Python 3.11, x86-64.
# Why it matters: a retained plan or command is carried out again after each cut
#   of the link, unless its receiver knows it by its content.
set -euo pipefail
work=$(mktemp -d)
brokers=()
trap 'kill "${brokers[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
python3 -m venv v
v/bin/pip install -q paho-mqtt==2.2.0
version=2.0.11-1.2+deb12u2
apt-get download -q mosquitto=$version libmosquitto1=$version libcjson1 libdlt2 \
  libwrap0 >download.log 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries="$(find "$work/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)"
far=$((20000 + RANDOM % 10000))
near=$((far + 1))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' $far >far.conf
cat > near.conf <<CONF
listener $near 127.0.0.1
allow_anonymous true
connection link
remote_clientid link
address 127.0.0.1:$far
topic har/# out 1
restart_timeout 1
CONF
for side in far near; do
  LD_LIBRARY_PATH="$libraries" root/usr/sbin/mosquitto -c $side.conf \
    >$side.log 2>&1 &
  brokers+=($!)
  sleep 2
done
v/bin/python - $near $far <<'PY'
import sys
import time

import paho.mqtt.client as paho

near, far = map(int, sys.argv[1:])


def connect(port, name, got):
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv311
    )
    client.on_message = lambda _c, _u, m: got.append((m.topic, m.retain, m.dup))
    client.connect("127.0.0.1", port)
    client.loop_start()
    time.sleep(0.5)
    return client


heard = []
publisher = connect(near, "publisher", [])
publisher.publish("har/plan", b"1", qos=1, retain=True).wait_for_publish(5)
publisher.publish("har/live", b"2", qos=1).wait_for_publish(5)
time.sleep(1)
subscriber = connect(far, "subscriber", heard)
subscriber.subscribe("har/#", 1)
time.sleep(1)
print("at the subscription (topic, retain, DUP):", heard)
assert heard == [("har/plan", True, False)], heard
del heard[:]
for cut in (1, 2):
    other = connect(far, "link", [])  # takes the bridge's place: a cut of the link
    other.disconnect()
    other.loop_stop()
    deadline = time.monotonic() + 20
    while len(heard) < cut and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    print(f"after cut {cut}, nothing published:", heard)
for client in (publisher, subscriber):
    client.disconnect()
    client.loop_stop()
assert len(heard) >= 2, "retained messages are not sent again now"
assert set(heard) == {("har/plan", False, False)}, heard
PY
