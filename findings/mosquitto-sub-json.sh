#!/usr/bin/env bash
# Guess: mosquitto_sub -F %j escapes a binary payload so that each line is valid
#   JSON with the whole payload; %J passes numbers on as they are.
# What is so: %j cuts the payload at its first zero byte (payloadlen has the
#   full length) and writes other bytes raw, so the line is no UTF-8 and no
#   JSON. %J rounds integers of 20 digits to a double and makes 1e400 null.
#   %x has all bytes.
# Versions: mosquitto, mosquitto-clients, libmosquitto1 2.0.11-1.2+deb12u2
#   (Debian 12), x86-64.
# Why it matters: a log of binary windows that is kept for later has lost them,
#   most often at the first byte; nanosecond times and ids lose digits.
set -euo pipefail
work=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
version=2.0.11-1.2+deb12u2
apt-get download -q mosquitto=$version mosquitto-clients=$version \
  libmosquitto1=$version libcjson1 libdlt2 libwrap0 >download.log 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export PATH="$work/root/usr/sbin:$work/root/usr/bin:$PATH"
LD_LIBRARY_PATH="$(find "$work/root" -name '*.so.*' -printf '%h\n' | sort -u |
  paste -sd:)"
export LD_LIBRARY_PATH
port=$((20000 + RANDOM % 10000))
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >conf
mosquitto -c conf >broker.log 2>&1 &
broker=$!
sleep 1
for format in j J x; do
  timeout 4 mosquitto_sub -p "$port" -t har/w -F "%$format" >$format 2>/dev/null &
  listener=$!
  sleep 0.5
  if [ $format = J ]; then
    for number in 12345678901234567890 1e400; do
      printf '%s' $number | mosquitto_pub -p "$port" -t har/w -s
    done
  else
    printf 'ab\0cd' | mosquitto_pub -p "$port" -t har/w -s
    printf '\377\376ab' | mosquitto_pub -p "$port" -t har/w -s
  fi
  wait $listener || true
done
python3 - <<'PY'
import json

text = {}
for name in "jJx":
    with open(name, "rb") as file:
        text[name] = [line for line in file.read().split(b"\n") if line]
cut = json.loads(text["j"][0])
print("%j of ab\\0cd: payload", repr(cut["payload"]), "length", cut["payloadlen"])
try:
    json.loads(text["j"][1])
    raised = "nothing"
except UnicodeDecodeError as error:
    raised = type(error).__name__
print("%j of ff fe 61 62: json.loads() raised", raised)
numbers = [json.loads(line)["payload"] for line in text["J"]]
print("%J of 12345678901234567890 and 1e400:", numbers)
print("%x:", text["x"])
assert cut["payload"] == "ab" and cut["payloadlen"] == 5, "the payload is whole"
assert raised == "UnicodeDecodeError", "the line is JSON now"
assert repr(numbers) == "[1.2345678901234567e+19, None]", "numbers are kept now"
assert text["x"] == [b"6162006364", b"fffe6162"]
PY
