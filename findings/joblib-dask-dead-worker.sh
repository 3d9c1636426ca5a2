#!/usr/bin/env bash
# Guess: of two dask workers that run joblib.Parallel one is killed: its tasks
#   run again on the other, and all 8 results come, as with client.submit.
# What is so: that depends on the size of the arguments. joblib's dask backend
#   scatters each argument above 1000 bytes. Where every task has an array of
#   its own, those on the killed worker cannot be made again: dask forgets the
#   tasks that need them, and Parallel raises FutureCancelledError ("already
#   forgotten"); the results that were done are thrown away too. With arguments
#   of 24 bytes all 8 come, and with client.submit of the same arrays as well.
# Versions: joblib 1.6.0, dask and distributed 2026.8.0, numpy 2.4.6.
# Why it matters: folds with windows of their own are large arguments. One
#   machine that is switched off costs the whole study, not its share, though
#   dask itself stands it; a test with toy data passes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q joblib==1.6.0 dask==2026.8.0 distributed==2026.8.0 numpy==2.4.6
cat >run.py <<'PY'
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import joblib
import numpy as np
from distributed import Client, LocalCluster


def mean(data, folder):
    """Leave a note that this worker works, work for a second, and answer."""
    Path(folder, f"{os.getpid()}.works").touch()
    time.sleep(1.0)
    return float(data.mean())


def kill(pid, folder):
    """Kill a worker as soon as it works."""
    while not Path(folder, f"{pid}.works").exists():
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)


def results(client, way, arrays, folder):
    if way == "submit":
        return client.gather([client.submit(mean, a, folder) for a in arrays])
    with joblib.parallel_config(backend="dask"):
        return joblib.Parallel(timeout=40)(joblib.delayed(mean)(a, folder) for a in arrays)


def main(way, size, folder):
    arrays = [np.full(size, float(number)) for number in range(8)]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        killer = threading.Thread(target=kill, args=(victim, folder), daemon=True)
        killer.start()
        try:
            right = results(client, way, arrays, folder) == [float(n) for n in range(8)]
            said = "all 8 results" if right else "wrong results"
        except CancelledError as error:
            said = type(error).__name__
        killer.join(10)
        assert not killer.is_alive(), "the worker was not killed"
    print(f"{way}, arrays of {8 * size} bytes, one of two workers killed: {said}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
PY
for case in "submit 100000" "joblib 3" "joblib 100000"; do
  # shellcheck disable=SC2086
  timeout 50 v/bin/python run.py $case "$work" 2>err.log || { tail -20 err.log; exit 1; }
done | tee seen
diff seen - <<'WANT'
submit, arrays of 800000 bytes, one of two workers killed: all 8 results
joblib, arrays of 24 bytes, one of two workers killed: all 8 results
joblib, arrays of 800000 bytes, one of two workers killed: FutureCancelledError
WANT
