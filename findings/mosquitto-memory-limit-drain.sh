#!/usr/bin/env bash
# Guess: at its memory_limit Mosquitto takes no more from publishers; the
#   client for which messages wait can still come and take them, which frees
#   the memory.
# What is so: 2.0.11 closes that client's connection, too ("disconnected due to
#   out of memory"), after a message or two, each time that it connects: copies
#   for sending count against the limit. What was acknowledged to the publisher
#   comes out at one or two messages a connection. With max_queued_bytes below
#   the limit, all that is queued comes on one connection; the rest is dropped,
#   although the publisher was told "Success" for each.
# Versions: mosquitto 2.0.11-1.2+deb12u2 (Debian 12), paho-mqtt 2.1.0, Python
#   3.11, x86-64.
# Why it matters: a device that was away for a while finds its pictures or
#   activations at a broker that cannot give them, and looks broken itself.
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

cat >away.py <<'PY'
import sys
import time

import paho.mqtt.client as mqtt

port, count = int(sys.argv[1]), int(sys.argv[2])
acknowledged, came, connections = [], [], []


def client(name):
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
    made.reconnect_delay_set(1, 1)
    return made


taker = client("taker")
taker.connect("127.0.0.1", port)
taker.loop_start()
taker.subscribe("pictures", 1)
time.sleep(1)
taker.disconnect()
taker.loop_stop()

giver = client("giver")
giver.on_publish = lambda c, u, mid, reason, p: acknowledged.append(str(reason))
giver.connect("127.0.0.1", port)
giver.loop_start()
for _ in range(count):
    giver.publish("pictures", bytes(1_000_000), qos=1)
    time.sleep(0.1)
time.sleep(2)
giver.disconnect()
giver.loop_stop()

taker = client("taker")
taker.on_connect = lambda *said: connections.append(said)
taker.on_message = lambda c, u, message: came.append(len(message.payload))
taker.connect("127.0.0.1", port)
taker.loop_start()
time.sleep(4)
taker.loop_stop()
print(len(acknowledged), len(came), len(connections))
PY

try() { # options of the broker, messages of 1 MB; sets $acknowledged, $came, $connections
  port=$((20000 + RANDOM % 10000))
  printf '%b\n' "listener $port 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\n$1" >conf
  root/usr/sbin/mosquitto -c conf >broker.log 2>&1 &
  broker=$!
  sleep 1
  read -r acknowledged came connections < <(env/bin/python away.py "$port" "$2")
  printf '%s: %s acknowledged, %s came in 4 s on %s connections; out of memory %s times\n' \
    "${1//\\n/, }" "$acknowledged" "$came" "$connections" \
    "$(grep -c 'taker disconnected due to out of memory' broker.log || true)"
  kill $broker
  wait $broker || true
  broker=
}

try 'max_queued_messages 0\nmemory_limit 20000000' 30
[ "$acknowledged" -ge 10 ] && [ "$connections" -ge 3 ] && [ "$came" -le $((2 * connections)) ]
grep -q 'taker disconnected due to out of memory' broker.log
try 'max_queued_messages 0\nmax_queued_bytes 10000000\nmemory_limit 30000000' 30
[ "$acknowledged" = 30 ] && [ "$came" -ge 9 ] && [ "$came" -le 11 ] && [ "$connections" = 1 ]
