"""What a stage costs a small device: install size, import time, time to ready, resident memory.

    python bench/footprint.py [--repeats 5] [--no-install]

The install is `pip install .` without extras into an empty environment made without pip, measured on disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rig import Staged, describe, open_rig

from har_edge.cluster.cluster import Cluster
from har_edge.mqtt.connect import ClientLibrary

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-install", action="store_true")
    args = parser.parse_args()
    import_ms = median(import_s() for _ in range(args.repeats)) * 1000
    print(f"import of har_edge           {import_ms:8.1f} ms   (limit 100)")
    with open_rig() as rig:
        print(describe(rig))
        for client in ("native", "paho"):
            ready = median(ready_s(rig, client) for _ in range(args.repeats))
            print(f"stage start to ready, {client:<7}{ready * 1000:8.0f} ms   (limit 1000; three start at once)")
            for name, size in sorted(memory(rig, client).items()):
                print(f"{name} resident, {client:<12}{size / 2**20:8.1f} MiB  {size / 1e6:.1f} MB (limit 60 MB)")
    if not args.no_install:
        print(f"install without extras       {install_bytes() / 1e6:8.1f} MB   (limit 180)")


def import_s() -> float:
    """Return what `import har_edge` adds to the start of Python, in seconds."""
    code = "import time; t = time.perf_counter(); import har_edge; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def ready_s(rig, client: str) -> float:  # type: ignore[no-untyped-def]
    """Return how long from starting three stages until the last one says that it is ready, in seconds."""
    with Cluster(rig.pipeline, rig.broker.address, client=ClientLibrary(client)) as cluster:
        started = time.perf_counter()
        cluster.start_stages()
        return time.perf_counter() - started


def memory(rig, client: str) -> dict[str, int]:  # type: ignore[no-untyped-def]
    """Return the resident memory of each stage after 2,000 windows, in bytes."""
    pipeline = Staged(rig, client)
    try:
        pipeline.throughput(2000, 64)
        pipeline.cluster.measure_memory()
        return dict(pipeline.cluster.resident_bytes)
    finally:
        pipeline.close()


def install_bytes() -> int:
    """Return the size on disk of everything that installing the package brings."""
    with tempfile.TemporaryDirectory(prefix="har-edge-install-") as folder:
        target = Path(folder) / "site-packages"
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), str(ROOT)]
        subprocess.run(command, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        return sum(path.stat().st_blocks * 512 for path in target.rglob("*") if not path.is_symlink())


if __name__ == "__main__":
    main()
