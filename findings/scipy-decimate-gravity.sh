#!/usr/bin/env bash
# Guess (held, not written down before the run): decimate() leaves a constant as
#   it is, as every low-pass should; the gravity of 9.81 m/s2 in an
#   accelerometer's axis stays 9.81.
# What is so: the default filter is a Chebyshev of even order with 0.05 dB of
#   ripple, whose gain at frequency 0 is at the bottom of the ripple, and
#   zero_phase applies it twice: 9.698, 1.1% less, at every factor. With
#   ftype="fir" the middle keeps 9.81 and the ends do not (6.13, then 10.62);
#   resample_poly() with padtype="line" keeps it everywhere.
# Versions: scipy 1.17.1, numpy 2.4.6, Python 3.11, x86-64.
# Why it matters: bringing 100 Hz recordings to a model's 25 or 50 Hz moves
#   the posture (which axis carries how much gravity) between training data
#   that was decimated and a sensor that samples at the model's rate.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q scipy==1.17.1 numpy==2.4.6
v/bin/python - <<'PY'
import numpy as np
from scipy import signal

gravity = np.full(400, 9.81)
seen = {
    "decimate(x, 2)": signal.decimate(gravity, 2),
    "decimate(x, 4)": signal.decimate(gravity, 4),
    "decimate(x, 4, ftype='fir')": signal.decimate(gravity, 4, ftype="fir"),
    "resample_poly(padtype='line')": signal.resample_poly(
        gravity, 1, 4, padtype="line"
    ),
}
for name, values in seen.items():
    middle = values[len(values) // 2]
    print(f"{name:30} least {values.min():6.3f} middle {middle:6.3f} ", end="")
    print(f"greatest {values.max():6.3f}")
for name in ("decimate(x, 2)", "decimate(x, 4)"):
    assert np.allclose(seen[name], 9.81 * 10 ** (-0.1 / 20), rtol=1e-6), name
fir = seen["decimate(x, 4, ftype='fir')"]
assert abs(fir[50] - 9.81) < 0.001 and fir.min() < 7, "the FIR filter changed"
assert np.allclose(seen["resample_poly(padtype='line')"], 9.81)
PY
