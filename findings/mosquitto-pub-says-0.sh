#!/usr/bin/env bash
# Guess: mosquitto_pub exits with a code other than 0 when its message does not
#   go out, above all with QoS 1, where it waits for the answer.
# What is so: with MQTT 5 it exits 0 and publishes nothing when the message is
#   larger than the broker's Maximum Packet Size (nothing printed) or its QoS
#   above the broker's Maximum QoS (an error printed, still 0). With MQTT 3.1.1
#   the same QoS 1 calls exit 7: the connection was lost.
# Versions: mosquitto, mosquitto-clients, libmosquitto1 2.0.11-1.2+deb12u2
#   (Debian 12), x86-64.
# Why it matters: scripts of sensors test $? and throw the window away.
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
head -c 5000 /dev/zero | tr '\0' x >large
printf x >small

try() { # NAME, the broker's option, file: publish with both protocols
  printf 'listener %s 127.0.0.1\nallow_anonymous true\n%s\n' "$port" "$2" >conf
  mosquitto -c conf >broker.log 2>&1 &
  broker=$!
  sleep 1
  for protocol in 5 311; do
    timeout 3 mosquitto_sub -p "$port" -t har/window -q 1 -F %l >got &
    listener=$!
    sleep 0.5
    code=0
    timeout 2 mosquitto_pub -V $protocol -p "$port" -q 1 -t har/window \
      -f "$3" 2>error || code=$?
    wait $listener || true
    printf '%s, MQTT %s: exit %s, received %s, said: "%s"\n' "$1" $protocol \
      $code "$(wc -l <got)" "$(cat error)"
  done
  kill $broker
  wait $broker || true
  broker=
}

{
  try "no limit" "" large
  try "5000 bytes, max_packet_size 1000" "max_packet_size 1000" large
  try "QoS 1, max_qos 0" "max_qos 0" small
} | tee seen
diff seen - <<'WANT'
no limit, MQTT 5: exit 0, received 1, said: ""
no limit, MQTT 311: exit 0, received 1, said: ""
5000 bytes, max_packet_size 1000, MQTT 5: exit 0, received 0, said: ""
5000 bytes, max_packet_size 1000, MQTT 311: exit 7, received 0, said: "Error: The connection was lost."
QoS 1, max_qos 0, MQTT 5: exit 0, received 0, said: "Error: Message QoS not supported on broker, try a lower QoS."
QoS 1, max_qos 0, MQTT 311: exit 7, received 0, said: "Error: The connection was lost."
WANT
