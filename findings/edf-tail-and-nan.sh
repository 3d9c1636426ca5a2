#!/usr/bin/env bash
# Guess: a signal of 1234 samples written to EDF+ comes back as 1234 samples, a
#   missing value (NaN) raises or comes back as NaN, and 0 g comes back as 0.
# What is so: 1250 samples come back: EDF has whole records only (of 1 s here),
#   and pyEDFlib fills the last one with digital zeros, which are no 0 but half
#   a step of the range. Nothing in the file says where the recording ended. A
#   NaN becomes the least value of the range, -16 g. A rate of 33.333 Hz comes
#   back as 33.333005.
# Versions: pyEDFlib 0.1.42, NumPy 2.4.6.
# Why it matters: recordings of body sensors come as EDF+. Windows cut from the
#   end hold made-up rest, and a gap looks like a fall.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q pyedflib==0.1.42 numpy==2.4.6
v/bin/python - <<'PY'
import numpy as np
import pyedflib


def there_and_back(signal: np.ndarray, rate: float) -> tuple[np.ndarray, float]:
    """Write one accelerometer of +-16 g and read it again."""
    header = {"label": "acc", "dimension": "g", "sample_frequency": rate, "transducer": "", "prefilter": ""}
    header |= {"physical_min": -16.0, "physical_max": 16.0, "digital_min": -32768, "digital_max": 32767}
    writer = pyedflib.EdfWriter("x.edf", 1, file_type=pyedflib.FILETYPE_EDFPLUS)
    writer.setSignalHeaders([header])
    writer.writeSamples([signal])
    writer.close()
    with pyedflib.EdfReader("x.edf") as reader:
        return reader.readSignal(0), reader.getSampleFrequency(0)


signal = np.full(1234, 1.0)
signal[7] = np.nan
came, rate = there_and_back(signal, 50.0)
odd = there_and_back(signal, 33.333)[1]
print(f"1234 samples at 50 Hz: {len(came)} came, the last is {came[-1]:.6f} g, NaN came as {came[7]:.3f} g")
print(f"33.333 Hz: {odd:.6f} Hz came; 0 g: {there_and_back(np.zeros(50), 50.0)[0][0]:.6f} g")
assert rate == 50.0 and len(came) == 1250, "the length is kept now"
assert np.allclose(came[1234:], 16 / 65535), "another filling now"
assert came[7] == -16.0, "NaN comes back otherwise now"
assert abs(odd - 33.333) > 1e-6, "the rate is exact now"
PY
