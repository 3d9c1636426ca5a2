#!/usr/bin/env bash
# Guess: ormsgpack writes the values of a big-endian NumPy array, or raises, as
#   orjson (from which it comes) does.
# What is so: it writes the bytes as if they were in native order, and says
#   nothing. [1, 2] of dtype >i2 becomes [256, 512], 1.0 of dtype >f4 becomes
#   4.6e-41. orjson raises TypeError for both.
# Versions: ormsgpack 1.13.1, orjson 3.13.0, NumPy 2.4.6; x86-64.
# Why it matters: sensors and Modbus send big-endian numbers, and
#   np.frombuffer(data, ">i2") is the usual way to read them; whoever publishes
#   such an array as MessagePack sends wrong values that look like a quiet
#   sensor. Use array.astype("<i2") before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q ormsgpack==1.13.1 orjson==3.13.0 numpy==2.4.6
v/bin/python - <<'PY'
import numpy as np
import orjson
import ormsgpack

option = ormsgpack.OPT_SERIALIZE_NUMPY
seen = {}
for dtype in ("<i2", ">i2", ">u4", ">f4"):
    array = np.array([1, 2], dtype)
    seen[dtype] = ormsgpack.unpackb(ormsgpack.packb(array, option=option))
    try:
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError as error:
        text = f"TypeError: {error}"
    print(f"{dtype} [1, 2]  ormsgpack: {seen[dtype]}  orjson: {text}")
    assert dtype == "<i2" or text.startswith("TypeError"), "orjson takes big-endian arrays now"
assert seen["<i2"] == [1, 2]
assert seen[">i2"] == [256, 512], "ormsgpack swaps, or refuses, big-endian arrays now"
assert seen[">u4"] == [1 << 24, 2 << 24] and 0 < seen[">f4"][0] < 1e-40
PY
