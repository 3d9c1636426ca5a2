#!/usr/bin/env bash
# Guess: systemd-analyze verify fails for a key that it ignores; or, if it only
#   warns, --recursive-errors=no does not make it fail; and the two start-limit
#   keys go into the same section.
# What is so: it prints "Unknown key ... ignoring" and exits 0. With
#   --recursive-errors it exits 1, whichever value is given, "no" too. In
#   [Service] StartLimitBurst= is taken (an old place for it) and
#   StartLimitIntervalSec= beside it is ignored, so the limit holds for the
#   default interval of 10 s.
# Versions: systemd 252 (Debian 12, Raspberry Pi OS 12), as installed.
# Why it matters: a check of a node's unit file in CI passes with MemroyMax=, and
#   a node with RestartSec=5 never reaches its start limit and restarts for ever.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
systemd-analyze --version | head -1
systemd-analyze --version | grep -q '^systemd 252 '
cat > node.service <<'UNIT'
[Service]
ExecStart=/bin/true
Restart=always
RestartSec=5
StartLimitBurst=3
StartLimitIntervalSec=60
MemroyMax=200M
UNIT
check() {
  local code=0
  systemd-analyze verify "$@" ./node.service >said 2>&1 || code=$?
  echo "verify $*: exit $code"
}
{
  check
  check --recursive-errors=no
  check --recursive-errors=yes
  sed 's/.*Unknown/Unknown/' said
  sed -i '/Memroy\|Interval/d' node.service
  check --recursive-errors=yes
} | tee seen
diff seen - <<'WANT'
verify : exit 0
verify --recursive-errors=no: exit 1
verify --recursive-errors=yes: exit 1
Unknown key 'StartLimitIntervalSec' in section [Service], ignoring.
Unknown key 'MemroyMax' in section [Service], ignoring.
verify --recursive-errors=yes: exit 0
WANT
