"""CPU time and bytes of every reducer on windows shaped like mHealth's, 250 samples of 9 channels, one thread.

    python bench/reducers.py                            every method that needs no file, and PCA with 16 components
    python bench/reducers.py --folder DIR ae:e.tflite   any specifications; files of fitted ones from that folder

Windows of the right arm, of every activity. Reducers take turns; the table shows medians over all rounds of the CPU
time that a window takes to be encoded, and to be restored (or, where nothing restores it, to give its features).
`error` is the root mean square of what is lost, in standard deviations of each channel. `sod` and `door` have a step
for each channel here: a tenth of its standard deviation.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.files import ReducerFiles, TensorCodec
from har_edge.codecs.reducer import Reducer
from har_edge.codecs.spec import file_names
from har_edge.data.description import load_description
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.data.synthetic import synthesize
from har_edge.data.windows import windows
from har_edge.inference.codecs import FolderFiles, hash_file

LENGTH, CHANNELS, SOURCE, HOP = 250, 9, "arm", 1500
BASIS = "fitted-here.npz"
STEPPED = ("sod", "door", "sod+zlib", "door+zlib")
SPECS = (
    *("none", "zlib", "zstd", "paa:5", "decimate:5", "stats", f"pca:{BASIS}"),
    *("q8", "q16", "q8:0.25:0", "q8+zlib", "q16+zlib", "q8+zstd", "q8+zstd:19", "q8:0.25:0+zlib"),
    *("paa:5+q8", "paa:5+q8+zlib", "decimate:5+q8", "decimate:5+q8+zlib"),
    *STEPPED,
)
Array = npt.NDArray[np.float32]


class FittedHere:
    """A basis of 16 components, fitted to the windows that are measured: for its time, not for its error."""

    def __init__(self, samples: Array) -> None:
        spread = samples.std(axis=(0, 1))
        rows = (samples / spread).reshape(len(samples), -1)
        directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:16]
        scale = np.abs((rows - rows.mean(axis=0)) @ directions.T).max(axis=0) / 127
        components = directions.reshape(-1, *samples.shape[1:])
        self._arrays = {"mean": samples.mean(axis=0), "spread": spread, "components": components, "scale": scale}

    def arrays(self, name: str) -> Mapping[str, Array]:
        """Return the basis, whatever its name."""
        return self._arrays

    def model(self, name: str) -> TensorCodec:
        """Refuse: models come from a folder."""
        raise SystemExit(f"{name}: give the folder it is in by --folder")


def main() -> None:
    """Print a row for each reducer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--folder", type=Path, help="where the files of fitted reducers are")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    samples, kind = read_windows()
    steps = ",".join(f"{step:.4g}" for step in samples.std(axis=(0, 1)) / 10)
    reducers: dict[str, Reducer] = {}
    for spec in args.specs:
        # In the table the steps, one for each channel, are too long to show.
        full = spec.replace(spec.split("+")[0], f"{spec.split('+')[0]}:{steps}") if spec in STEPPED else spec
        hashes = {name: hash_file(args.folder / name) for name in file_names(full)} if args.folder else {}
        files: ReducerFiles = FolderFiles(args.folder, hashes) if args.folder else FittedHere(samples)
        reducers[spec] = make_reducer(full, LENGTH, CHANNELS, files)
    print(
        f"{len(samples)} {kind} windows [{LENGTH}, {CHANNELS}], {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, NumPy {np.__version__}"
    )
    print(f"{'reducer':<26}{'bytes':>7}{'encode us':>11}{'restore us':>12}{'operations':>12}{'error':>8}")
    spread = samples.std(axis=(0, 1))
    for spec, (encode_us, restore_us) in measure(reducers, samples, args.rounds).items():
        reducer = reducers[spec]
        codes = [reducer.encode(window) for window in samples]
        size = np.mean([code.nbytes for code in codes])
        error = "-"
        if reducer.restores:
            lost = (np.stack([reducer.decode(code) for code in codes]) - samples) / spread
            error = f"{np.sqrt(np.mean(lost**2)):.3f}"
        print(f"{spec:<26}{size:>7.0f}{encode_us:>11.0f}{restore_us:>12.0f}{reducer.operations:>12}{error:>8}")


def read_windows() -> tuple[Array, str]:
    """Return windows float32 [n, 250, 9], and whether they are real or synthetic."""
    description = load_description("mhealth")
    data = find_data(None, description)
    recordings = read_recordings(description, data) if data else synthesize()
    found = [
        window.samples[SOURCE]
        for recording in recordings
        for window in windows(recording, LENGTH, HOP, within_activity=True)
    ]
    return np.stack(found), "real" if data else "synthetic"


def measure(reducers: Mapping[str, Reducer], samples: Array, rounds: int) -> dict[str, tuple[float, float]]:
    """Run the reducers in turns; return the median microseconds to encode and to restore a window."""
    taken: dict[str, list[tuple[float, float]]] = {spec: [] for spec in reducers}
    for number in range(rounds + 1):
        for spec, reducer in reducers.items():
            read = reducer.decode if reducer.restores else reducer.features
            started = time.process_time()
            codes = [reducer.encode(window) for window in samples]
            between = time.process_time()
            for code in codes:
                read(code)
            stopped = time.process_time()
            if number:  # the first round warms up
                taken[spec].append((between - started, stopped - between))
    return {spec: (_median_us(times, 0, samples), _median_us(times, 1, samples)) for spec, times in taken.items()}


def _median_us(times: Sequence[tuple[float, float]], which: int, samples: Array) -> float:
    return median(pair[which] for pair in times) / len(samples) * 1e6


if __name__ == "__main__":
    main()
