#!/usr/bin/env bash
# Guess: features of a column of int16 counts, as accelerometers give them,
#   equal those of the same numbers as float64.
# What is so: 52 of 783 features of extract_features() differ, without a
#   warning: sums of squares and products wrap around in 16 bits. abs_energy
#   comes out negative, root_mean_square a thousand times too small.
# Versions: tsfresh 0.21.2, numpy 2.4.6, pandas 3.1.1, Python 3.11, x86-64.
# Why it matters: raw counts kept as int16 are the usual way to store a
#   recording, and energy and RMS are the first features of every activity
#   classifier. Convert to float before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tsfresh==0.21.2 numpy==2.4.6 pandas==3.1.1
v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import numpy as np
import pandas as pd
from tsfresh import extract_features

steps = np.random.default_rng(0).normal(size=500) * 1200
counts = np.cumsum(steps).clip(-32000, 32000).astype(np.int16)


def features(values):
    table = pd.DataFrame({"id": 1, "time": np.arange(len(values)), "x": values})
    found = extract_features(
        table, column_id="id", column_sort="time", disable_progressbar=True, n_jobs=0
    )
    return found.iloc[0]


whole, real = features(counts), features(counts.astype(np.float64))
other = [
    name
    for name in real.index
    if not np.isclose(whole[name], real[name], rtol=1e-6, atol=0, equal_nan=True)
]
print(f"{len(other)} of {len(real)} features differ, among them:")
for name in ("abs_energy", "root_mean_square", "cid_ce__normalize_False"):
    print(f"  {name:24} int16 {whole['x__' + name]:16.6g}  ", end="")
    print(f"float64 {real['x__' + name]:16.6g}")
assert len(other) > 20, "most features agree now"
assert whole["x__abs_energy"] < 0 < real["x__abs_energy"], "energy is right now"
PY
