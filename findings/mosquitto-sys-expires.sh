#!/usr/bin/env bash
# Guess: $SYS topics are retained, so a subscriber that comes two minutes after
#   the start still gets all of them, publish/messages/dropped 0 among them.
# What is so: a value that has not changed for 60 s is gone: Mosquitto retains
#   it for a minute and sends it again only when it changes. A later subscriber
#   gets the version and what changes all the time (uptime), but no count of
#   dropped messages and none of clients, and cannot tell that from a broker
#   that keeps no such counts.
# Versions: Mosquitto 2.0.11-1.2+deb12u2 (Debian 12), paho-mqtt 2.2.0.
# Why it matters: a monitor that looks now and then whether the broker drops
#   messages of a pipeline sees nothing, while the broker may have dropped some
#   an hour ago. It must stay subscribed.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
python3 -m venv v
v/bin/pip install -q paho-mqtt==2.2.0
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
v/bin/python - "$port" <<'PY'
import sys
import time

from paho.mqtt.client import CallbackAPIVersion, Client

NAMES = ("version", "uptime", "publish/messages/dropped", "clients/maximum")


def retained() -> dict[str, str]:
    """Return what a new subscriber gets at once."""
    got: dict[str, str] = {}
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda one, *_: one.subscribe("$SYS/broker/#")

    def take(_client, _user, message) -> None:
        if message.retain:
            got[message.topic.removeprefix("$SYS/broker/")] = message.payload.decode()

    client.on_message = take
    client.connect("127.0.0.1", int(sys.argv[1]))
    client.loop_start()
    time.sleep(1)
    client.disconnect()
    client.loop_stop()
    return {name: got[name] for name in NAMES if name in got}


soon = retained()
print("after 1 s:  ", soon)
time.sleep(120)
later = retained()
print("after 120 s:", later)
assert set(soon) >= {"version", "publish/messages/dropped"}, "not told at the start now"
assert "publish/messages/dropped" not in later, "told after two minutes now"
assert "version" in later and "uptime" in later, "version or uptime go too now"
PY
