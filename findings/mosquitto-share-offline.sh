#!/usr/bin/env bash
# Guess: of two members of a shared subscription one is offline, with a session
#   that is kept: the member that is online gets all messages.
# What is so: Mosquitto gives the offline member its turn. Of 10 messages the
#   online one gets 5; the others wait for the one that is away, until it comes
#   back or its session expires, which may be never.
# Versions: Mosquitto 2.0.11 (Debian 12), paho-mqtt 2.2.0. MQTT 5, section
#   4.8.2, leaves it to the broker.
# Why it matters: a shared subscription spreads work over replicas. One replica
#   that dies, or was tried once under another client id, takes its part of the
#   work with it as long as its session is kept.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
PATH=$PATH:/usr/sbin
python3 -m venv v
v/bin/pip install -q paho-mqtt==2.2.0
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >conf
mosquitto -c conf >broker.log 2>&1 &
broker=$!
sleep 1
v/bin/python - "$port" <<'PY'
import sys
import time

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def connect(name: str, got: list[str]) -> Client:
    """Connect a client whose session is kept for an hour; `got` takes what comes."""
    client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTv5)
    client.on_message = lambda _client, _user, message: got.append(message.payload.decode())
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 3600
    client.connect("127.0.0.1", int(sys.argv[1]), clean_start=False, properties=kept)
    client.loop_start()
    time.sleep(0.5)
    return client


def leave(client: Client) -> None:
    """Disconnect; the session stays."""
    client.disconnect()
    client.loop_stop()
    time.sleep(0.5)


online: list[str] = []
away: list[str] = []
first, second = connect("first", online), connect("second", away)
for member in (first, second):
    member.subscribe("$share/stage/window", 1)
time.sleep(0.5)
leave(second)
sender = connect("sender", [])
for number in range(10):
    sender.publish("window", str(number), 1).wait_for_publish(5)
time.sleep(1.0)
print("while one was away, the other got", online)
assert away == [] and len(online) == 5, "a member that is offline is passed over now"
second = connect("second", away)
time.sleep(1.0)
print("when it came back, it got       ", away)
assert sorted(online + away, key=int) == [str(number) for number in range(10)]
for client in (first, second, sender):
    leave(client)
PY
