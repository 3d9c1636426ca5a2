"""Check every cut of real models, bit for bit; and time the cutting of a large one.

    python bench/cuts.py --cache DIR                 # models/*.tflite, $HAR_EDGE_MODELS/*.tflite, two Keras models
    python bench/cuts.py --cache DIR --large 500     # a made-up model of 500 MB: seconds and peak memory of one cut

The Keras models (MobileNetV2 and Xception, random weights from seed 0) need TensorFlow the first time; then they stay
in the cache. Without TensorFlow they are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_edge.errors import HarEdgeError
from har_edge.inference.segment_timing import segment_bounds
from har_edge.inference.tensor_observation import open_model
from har_edge.runtime.verify import check_cuts
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.folder import write_folder
from har_edge.tflite.slices import slice_model

REPO = Path(__file__).parents[1]
KERAS = ("MobileNetV2", "Xception")
MEGABYTE = 1_000_000

_CONVERT = """
import sys
import keras, tensorflow as tf
keras.utils.set_random_seed(0)
model = getattr(keras.applications, sys.argv[1])(weights=None)
open(sys.argv[2], "wb").write(tf.lite.TFLiteConverter.from_keras_model(model).convert())
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What checking one model gave."""

    model: str
    operators: int
    cuts: int
    refused: int
    unequal: int
    seconds: float


def main() -> int:
    """Run; 1 when any cut of any model is not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, default=os.environ.get("HAR_EDGE_MODELS") or None, help="folder of other models"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for models that are made here")
    parser.add_argument("--runs", type=int, default=2, help="random inputs for each cut (default: 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", type=int, metavar="MB", help="time the cutting of a model of this size instead")
    parser.add_argument("--cut-once", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.cut_once:
        return cut_once(*args.cut_once)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, NumPy {np.__version__}")
    if args.large:
        return large(args.cache, args.large)
    print(f"{'model':44}{'operators':>10}{'cuts':>6}{'refused':>9}{'unequal':>9}{'seconds':>9}")
    unequal = 0
    for path in find_models(args.models, args.cache):
        row = check(path, args.runs, args.threads)
        unequal += row.unequal
        print(
            f"{row.model:44}{row.operators:10}{row.cuts:6}{row.refused:9}{row.unequal:9}{row.seconds:9.1f}", flush=True
        )
    return 1 if unequal else 0


def find_models(others: Path | None, cache: Path) -> Iterator[Path]:
    """Yield every model to check."""
    yield from sorted((REPO / "models").glob("*.tflite"))
    if others is None:
        print("left out: models of others (set HAR_EDGE_MODELS or --models)")
    else:
        yield from sorted(Path(others).glob("*.tflite"))
    for name in KERAS:
        path = cache / f"{name}.tflite"
        if not path.exists():
            if importlib.util.find_spec("tensorflow") is None:
                print(f"left out: Keras {name} (needs TensorFlow: pip install -e '.[training]')")
                continue
            draft = path.with_suffix(".part")
            # In a process of its own, so that TensorFlow's memory is gone before the checks.
            subprocess.run([sys.executable, "-c", _CONVERT, name, str(draft)], check=True, capture_output=True)
            draft.replace(path)
        yield path


def check(path: Path, runs: int, threads: int) -> Row:
    """Compare every legal cut, and all of them at once, with the whole model."""
    started = time.perf_counter()
    model = open_model(path)
    cuts = list_cuts(model)
    legal = [cut.index for cut in cuts if cut.refusal is None]
    ways = [*((index,) for index in legal), tuple(segment_bounds(model)[1:-1])]
    unequal = 0
    try:
        for result in check_cuts(model, ways, runs=runs, threads=threads):
            if result.difference is not None:
                unequal += 1
                print(f"{path.name}: cuts {result.cuts}: {result.difference}")
    except HarEdgeError as error:
        print(f"{path.name}: {error}")
        unequal += 1
    seconds = time.perf_counter() - started
    return Row(path.name, len(model.main.operators), len(legal), len(cuts) - len(legal), unequal, seconds)


def large(cache: Path, megabytes: int) -> int:
    """Cut a large model in a fresh process, next to a plain copy of its file, three times each."""
    path, out = cache / f"large-{megabytes}.tflite", cache / "large-slices"
    if not path.exists():
        make_large(path, megabytes)
    size = path.stat().st_size
    print(f"{path.name}: {size / MEGABYTE:.0f} MB, cut in the middle")
    for _ in range(3):
        started = time.perf_counter()
        shutil.copyfile(path, cache / "copy")
        copied = time.perf_counter() - started
        (cache / "copy").unlink()
        command = [sys.executable, __file__, "--cache", str(cache), "--cut-once", str(path), str(out)]
        seconds, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        shutil.rmtree(out)
        print(
            f"copy {copied:5.2f} s   cut {seconds:5.2f} s   peak {peak / MEGABYTE:6.0f} MB = {peak / size:.2f} x size"
        )
    return 0


def cut_once(path: Path, out: Path) -> int:
    """Cut a model in the middle; print seconds and the peak of resident memory in bytes."""
    started = time.perf_counter()
    model = open_model(path)
    write_folder(model, slice_model(model, [len(model.main.operators) // 2]), out)
    seconds = time.perf_counter() - started
    # Not ru_maxrss: a process inherits that of its parent.
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(seconds, int(peak.split()[1]) * 1024)
    return 0


def make_large(path: Path, megabytes: int, layers: int = 8) -> None:
    """Write a model of dense layers, all weights random."""
    sys.path.insert(0, str(REPO))
    from tests.tflite.models import Draft, flatbuffers, tflite

    rng, draft = np.random.default_rng(0), Draft()
    graph = draft.graph()
    units = int((megabytes * MEGABYTE / layers / 4) ** 0.5)
    x = graph.input([1, units], "x")
    for _ in range(layers):
        weights, result = graph.const(rng.standard_normal((units, units), np.float32)), graph.tensor([1, units])
        graph.op("FULLY_CONNECTED", [x, weights, -1], [result], tflite.FullyConnectedOptionsT())
        x = result
    graph.output(x)
    builder = flatbuffers.Builder(megabytes * MEGABYTE + MEGABYTE)
    builder.Finish(draft.raw.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(memoryview(builder.Bytes)[builder.Head() :])


if __name__ == "__main__":
    sys.exit(main())
