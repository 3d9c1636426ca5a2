"""Throughput of this checkout and of another one, in turns: what a change costs, beside the noise of the machine.

    python bench/against.py CHECKOUT [--pairs 14] [--cuts 7,10]

CHECKOUT is a folder with another state of har_edge (`git worktree add ../before 7bc26fa`). Each pair runs both, the
first one alternately, with this Python: the int8 model in three stages, one message a window, one message a source of
it, and 16 windows a message. It prints medians, and median, lowest and highest of the ratios within the pairs: windows
a second, and the processor time of the stages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import psutil

HERE = Path(__file__).resolve().parent.parent
CASES = (("pipeline", 1, False), ("pipeline, 3 sensors", 1, True), ("--batch 16", 16, False))
Measured = dict[str, tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--pairs", type=int, default=14)
    parser.add_argument("--cuts", default="7,10", help="cut before these two operators")
    parser.add_argument("--once", action="store_true", help="measure CHECKOUT alone, once, and print JSON")
    args = parser.parse_args()
    cuts = [int(cut) for cut in args.cuts.split(",")]
    if args.once:
        print(json.dumps(measure(args.checkout.resolve(), cuts)))
        return
    pairs = []
    for number in range(args.pairs):
        order = [args.checkout.resolve(), HERE][:: 1 if number % 2 == 0 else -1]
        found = {root: run(root, args.cuts) for root in order}
        pairs.append((found[args.checkout.resolve()], found[HERE]))
    report(pairs)


def run(root: Path, cuts: str) -> Measured:
    """Measure a checkout in a process of its own, in which `har_edge` is that checkout's."""
    command = [sys.executable, __file__, str(root), "--once", "--cuts", cuts]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(root)}, cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(root: Path, cuts: list[int]) -> Measured:
    """Return windows a second, and microseconds of the stages' processor time a window, by case."""
    sys.path[0] = str(root / "bench")  # the rig of that checkout, and not the one beside this file
    import rig

    import har_edge

    if not Path(har_edge.__file__).is_relative_to(root):
        raise SystemExit(f"har_edge is {har_edge.__file__}; expected the one in {root}")
    found: Measured = {}
    with rig.open_rig(cuts=cuts) as opened:
        for name, batch, apart in CASES:
            staged = rig.Staged(opened)
            try:
                count, in_flight = (8000, 200) if batch == 1 else (32000, 64)
                staged.throughput(batch * 50, in_flight, batch, apart=apart)
                before = processor_s(staged)
                rate = staged.throughput(count, in_flight, batch, apart=apart)
                found[name] = (rate, 1e6 * (processor_s(staged) - before) / count)
            finally:
                staged.close()
    return found


def processor_s(staged) -> float:  # type: ignore[no-untyped-def]
    """Return the processor time that the stages have taken, user and system."""
    times = [psutil.Process(process.pid).cpu_times() for process in processes_of(staged)]
    return float(sum(one.user + one.system for one in times))


def processes_of(staged) -> list[subprocess.Popen[bytes]]:  # type: ignore[no-untyped-def]
    """Return the stages of a rig, of this checkout or of one in which local pipelines were no Cluster yet."""
    if hasattr(staged, "_local"):
        return list(staged._local._processes.values())
    return [running.process for running in staged.cluster.processes.running.values()]


def report(pairs: list[tuple[Measured, Measured]]) -> None:
    print(f"{'':<21}{'':<14}{'before':>9}{'now':>9}{'ratio':>7}{'lowest':>8}{'highest':>9}")
    for name, _, _ in CASES:
        for place, what in enumerate(("windows/s", "us a window")):
            before, now = ([pair[side][name][place] for pair in pairs] for side in (0, 1))
            ratios = [late / early for early, late in zip(before, now, strict=True)]
            print(
                f"{name:<21}{what:<14}{median(before):>9.1f}{median(now):>9.1f}"
                f"{median(ratios):>7.2f}{min(ratios):>8.2f}{max(ratios):>9.2f}"
            )


if __name__ == "__main__":
    main()
