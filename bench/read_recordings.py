"""Time the reading of recordings as large as the official mHealth download, against numpy.loadtxt alone.

    python bench/read_recordings.py

Writes ten logs of 121,575 lines of 24 columns (1,215,750 rows, about 215 MB) of random numbers into a temporary
folder, and reads them as text by numpy.loadtxt, by har_edge from the folder and from a zip, and from the cache.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from har_edge.data.description import load_description
from har_edge.data.files import read_recordings

FILES = 10
ROWS = 121_575


def write_logs(folder: Path) -> int:
    """Write the logs; return their size in bytes."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, 10, (1000, 23))
    lines = ["\t".join(f"{value:.5g}" for value in row) for row in block]
    text = "".join(f"{line}\t{label}\n" for line, label in zip(lines, rng.integers(0, 13, 1000), strict=True))
    content = (text * (ROWS // 1000 + 1)).splitlines(keepends=True)[:ROWS]
    for number in range(1, FILES + 1):
        (folder / f"mHealth_subject{number}.log").write_text("".join(content), "ascii")
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Print one line a way of reading."""
    description = load_description("mhealth")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        folder = Path(temporary) / "logs"
        folder.mkdir()
        size = write_logs(folder)
        archive = Path(temporary) / "logs.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            for path in folder.iterdir():
                file.write(path, path.name)
        print(f"{FILES} logs, {FILES * ROWS:,} rows, {size / 1e6:.0f} MB of text")
        begin = time.perf_counter()
        for path in sorted(folder.iterdir()):
            np.loadtxt(path, dtype=np.float32)
        print(f"numpy.loadtxt alone  {time.perf_counter() - begin:6.2f} s")
        for name, where in (("folder", folder), ("folder, cached", folder), ("zip", archive), ("zip, cached", archive)):
            begin = time.perf_counter()
            rows = sum(len(recording) for recording in read_recordings(description, where, keep_null=True))
            assert rows == FILES * ROWS
            print(f"{name:20s} {time.perf_counter() - begin:6.2f} s")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
