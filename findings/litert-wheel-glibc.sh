#!/usr/bin/env bash
# Guess: the wheel's tag says which glibc it needs, as auditwheel sees to it:
#   manylinux_2_27 runs on glibc 2.27 and later.
# What is so: ai-edge-litert's aarch64 wheel says manylinux_2_27 and holds
#   libraries that need glibc 2.34 and GLIBCXX 3.4.30 (GCC 12). numpy's wheel
#   with the same tag keeps to it.
# Versions: ai-edge-litert 2.3.0, numpy 2.4.6 (both cp311, aarch64).
# Why it matters: on 64-bit Raspberry Pi OS 11 and Debian 11 (glibc 2.31) pip
#   chooses and installs this wheel without a word, and the loader there has no
#   GLIBC_2.34 for it (read from the files, not tried on such a device); with a
#   true tag pip would take an older release.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 \
  --platform manylinux_2_27_aarch64 -d . ai-edge-litert==2.3.0 numpy==2.4.6
python3 - <<'PY'
import glob
import re
import zipfile

greatest = {}
for path in sorted(glob.glob("*.whl")):
    needs = {b"GLIBC": (0,), b"GLIBCXX": (0,)}
    with zipfile.ZipFile(path) as wheel:
        for member in wheel.namelist():
            if ".so" not in member:
                continue
            names = re.findall(rb"(GLIBC|GLIBCXX)_([0-9.]+)\0", wheel.read(member))
            for kind, version in names:
                number = tuple(map(int, version.split(b".")))
                needs[kind] = max(needs[kind], number)
    greatest[path.split("-")[0]] = needs[b"GLIBC"]
    print(path)
    for kind, number in needs.items():
        print(f"  needs {kind.decode()} {'.'.join(map(str, number))}")
assert greatest["numpy"] <= (2, 27), greatest
assert greatest["ai_edge_litert"] > (2, 31), "the tag is true now"
PY
