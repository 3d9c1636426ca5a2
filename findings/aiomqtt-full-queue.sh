#!/usr/bin/env bash
# Guess: with max_queued_incoming_messages=5, aiomqtt stops reading when its
#   queue is full, or leaves what it has no room for unacknowledged: at QoS 1 all
#   of 20 messages come in the end, at the latest after a reconnection.
# What is so: it acknowledges every message when it comes, and throws away those
#   that find the queue full, with one line in the log for each. The 15 are gone,
#   also for the next connection of the same session.
# Versions: aiomqtt 2.5.1 on paho-mqtt 2.2.0, Mosquitto 2.0.11.
# Why it matters: QoS 1 and a kept session look like "at least once" for a slow
#   consumer, and are not: what waits in the queue is lost with the process too.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
command -v mosquitto >/dev/null || PATH=$PATH:/usr/sbin
python3 -m venv v
v/bin/pip install -q aiomqtt==2.5.1 paho-mqtt==2.2.0
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >conf
mosquitto -c conf >broker.log 2>&1 &
broker=$!
sleep 1
v/bin/python - "$port" <<'PY'
import asyncio
import logging
import sys

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

logging.getLogger("mqtt").setLevel(logging.ERROR)  # "Message queue is full. Discarding message."
PORT = int(sys.argv[1])


def consumer() -> aiomqtt.Client:
    """Return a client whose session the broker keeps."""
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 3600
    return aiomqtt.Client(
        "127.0.0.1",
        PORT,
        identifier="slow",
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=False,
        properties=kept,
        max_queued_incoming_messages=5,
    )


async def read(client: aiomqtt.Client) -> list[int]:
    """Return what comes until a second is quiet."""
    got = []
    while True:
        try:
            got.append(int((await asyncio.wait_for(anext(client.messages), 1.0)).payload))
        except asyncio.TimeoutError:
            return got


async def main() -> None:
    async with consumer() as client:
        await client.subscribe("samples", qos=1)
        async with aiomqtt.Client("127.0.0.1", PORT) as sender:
            for number in range(20):
                await sender.publish("samples", str(number), qos=1)
        await asyncio.sleep(1.0)  # the consumer is busy
        first = await read(client)
    async with consumer() as client:
        again = await read(client)
    print("came:", first, "after a reconnection:", again)
    assert first == [0, 1, 2, 3, 4], "a full queue holds the sender back now"
    assert again == [], "what was thrown away comes again now"


asyncio.run(main())
PY
