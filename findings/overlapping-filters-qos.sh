#!/usr/bin/env bash
# Guess: for a message that two filters of one client match, a broker that sends
#   one copy sends it with the greater of the two QoS (MQTT 3.1.1, 3.3.5: "MUST
#   deliver the message respecting the maximum QoS of all the matching
#   subscriptions").
# What is so: neither Mosquitto nor aedes does. Mosquitto takes the QoS of the
#   filter without wildcards, even if that is 0; aedes sends with 0 whichever of
#   the two has it. The order in which they were subscribed does not matter. So
#   a filter with QoS 0 takes the guarantee from the other one.
# Versions: Mosquitto 2.0.11-1.2+deb12u2 (Debian 12), aedes 1.2.0 on Node.js 20,
#   paho-mqtt 2.2.0 as MQTT 3.1.1.
# Why it matters: a coordinator that hears har/# with QoS 0 for a log and
#   har/plan with QoS 1 loses plans when its link is cut. On Mosquitto it is the
#   other way round: har/# with QoS 1 and one topic with 0.
set -euo pipefail
work=$(mktemp -d)
brokers=()
trap 'kill "${brokers[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
python3 -m venv v
v/bin/pip install -q paho-mqtt==2.2.0
npm init -y >/dev/null
npm install --silent aedes@1.2.0 >/dev/null
version=2.0.11-1.2+deb12u2
apt-get download -q mosquitto=$version libmosquitto1=$version libcjson1 libdlt2 \
  libwrap0 >download.log 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries="$(find "$work/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)"
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >conf
LD_LIBRARY_PATH="$libraries" root/usr/sbin/mosquitto -c conf >broker.log 2>&1 &
brokers+=($!)
cat > broker.mjs <<'JS'
import net from "node:net";
import { Aedes } from "aedes";
const broker = await Aedes.createBroker();
net.createServer(broker.handle).listen(Number(process.argv[2]), "127.0.0.1");
JS
node broker.mjs $((port + 1)) &
brokers+=($!)
sleep 2
v/bin/python - "$port" <<'PY'
import itertools
import sys
import time

import paho.mqtt.client as paho

seen = {}


def connect(port, name, got):
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv311
    )
    client.on_message = lambda _c, _u, message: got.append(message.qos)
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


for offset, broker in enumerate(("Mosquitto", "aedes")):
    port = int(sys.argv[1]) + offset
    publisher = connect(port, "p", [])
    cases = [
        order
        for filters in (
            (("har/#", 0), ("har/w", 1)),
            (("har/#", 1), ("har/w", 0)),
        )
        for order in itertools.permutations(filters)
    ]
    for number, order in enumerate(cases):
        got = []
        subscriber = connect(port, f"s{number}", got)
        for topic, qos in order:
            subscriber.subscribe(topic, qos)
            time.sleep(0.3)
        publisher.publish("har/w", b"window", qos=1).wait_for_publish(5)
        time.sleep(0.5)
        subscriber.disconnect()
        subscriber.loop_stop()
        seen[broker, order] = got
        print(f"{broker:10}{' then '.join(f'{t} QoS {q}' for t, q in order)}: {got}")
    publisher.disconnect()
    publisher.loop_stop()
for (broker, order), got in seen.items():
    expected = dict(order)["har/w"] if broker == "Mosquitto" else 0
    assert got == [expected], (broker, order, got)
PY
