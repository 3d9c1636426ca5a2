"""Train one detector on 1 and on several nodes of this machine, and compare what both say of the same pictures."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.api.model import load_model
from har_edge.cli.main import main as har_edge
from har_edge.cluster.broker import start_broker
from har_edge.cluster.processes import Processes
from har_edge.inference.anomaly import AnomalyDetector, AnomalyOutcome

READY_S = 120.0


def train_on(workers: int, data: Path, words: Sequence[str], out: Path) -> Path:
    """Return the detector that so many nodes trained."""
    with tempfile.TemporaryDirectory(prefix="har-edge-") as folder, contextlib.ExitStack() as stack:
        broker = start_broker(Path(folder))
        stack.callback(broker.stop)
        processes = Processes(folder=Path(folder))
        stack.callback(processes.stop)
        for number in range(workers):
            name = f"device-{number}"
            own = ["--name", name, "--cache", str(Path(folder) / name), "--broker", broker.address.url]
            processes.start(name, ["node", *own], log=Path(folder) / f"{name}.log")
        until = time.monotonic() + READY_S
        while not all("connected" in one.output for one in processes.running.values()):
            if time.monotonic() > until:
                raise SystemExit(processes.last_lines())
            time.sleep(0.1)
        where = ["--broker", broker.address.url, "--cache", str(Path(folder) / "cache"), "--workers", str(workers)]
        options = ["--on-devices", "--data", str(data), "--out", str(out), *where, *words]
        if code := har_edge(["train", "--task", "anomaly", *options]):
            raise SystemExit(f"har-edge train ended with {code}\n{processes.last_lines()}")
    return out / "anomaly.tflite"


def check_slices(path: Path, slices: int = 4) -> int:
    """Return into how many slices a detector was cut that give the bits of the whole; CutError for others."""
    model = load_model(path, pictures=True)
    cuts = [cut.index for cut in model.cuts]
    chosen = [cuts[len(cuts) * number // slices] for number in range(1, slices)]
    model.verify(chosen)
    return len(chosen) + 1


def compare(first: Path, other: Path, pictures: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return how far the scores and heat maps of two detectors are apart, as parts of the largest of the first."""
    one, two = (AnomalyDetector(path.read_bytes()).run(pictures) for path in (first, other))

    def apart(name: str) -> float:
        a, b = getattr(one, name), getattr(two, name)
        return float(np.abs(a - b).max() / np.abs(a).max())

    return {"scores": apart("scores"), "heat_maps": apart("heat_maps"), "same_order": _same_order(one, two)}


def _same_order(one: AnomalyOutcome, two: AnomalyOutcome) -> float:
    """Return the rank correlation of the scores (Spearman)."""
    ranks = [np.argsort(np.argsort(found.scores)) for found in (one, two)]
    return float(np.corrcoef(*ranks)[0, 1])
