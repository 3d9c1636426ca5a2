#!/usr/bin/env bash
# Guess: zfp with an absolute tolerance gives NaN back as NaN (or refuses).
# What is so: with a tolerance a NaN comes back as an ordinary number far from
#   its neighbours, without an error (without a tolerance, in the reversible
#   mode, it is kept).
# Versions: zfpy 1.0.1.post0, numpy 2.4.6, Python 3.11, x86-64.
# Why it matters: NaN marks lost samples in PAMAP2 and like recordings.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q zfpy==1.0.1.post0 numpy==2.4.6
v/bin/python - <<'PY'
import numpy as np
import zfpy

steps = np.random.default_rng(0).normal(size=(128, 6))
window = np.cumsum(steps, axis=0).astype(np.float32)
holed = window.copy()
holed[5, 2] = np.nan
near = zfpy.decompress_numpy(zfpy.compress_numpy(holed, tolerance=1e-3))
same = zfpy.decompress_numpy(zfpy.compress_numpy(holed))
print(f"before the gap {window[4, 2]:.3f}, lost value {window[5, 2]:.3f}")
print(f"tolerance 1e-3: {near[5, 2]:.3f} in place of NaN")
print(f"reversible:     {same[5, 2]:.3f} in place of NaN")
assert not np.isnan(near).any() and np.isnan(same[5, 2]), "NaN is kept now"
PY
