"""Train LeNet-5 over emulated devices: samples a second, time by epoch, test accuracy, bytes a worker, and faults.

    python bench/training.py --data DIR --workers 1,2,4,8,11 --epochs 10 --seeds 0,1,2 --out training.json
    python bench/training.py --data DIR --workers 4 --kill 30 --slow 30:5
    python bench/training.py --data DIR --workers 11 --modes auto,sync --compress none,topk:0.01

DIR holds MNIST's idx files (`har-edge data fetch mnist`). Each run gets a test bed of its own: that many devices, and a
broker's host whose link all rounds and updates cross; the command runs beside them without limits. Samples a second are
those of the whole run, and the last column compares them with the first run of its mode. With --kill one worker is
killed so many seconds after the first round begins, with --slow another shares its device with busy loops, so that it
is so many times slower. Needs root.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from har_edge.cli.console import say
from har_edge.cluster.processes import Processes, Running
from har_edge.emulation.limits import Device, Layout, Limits, read_rate, read_size
from har_edge.emulation.testbed import Testbed
from har_edge.experiments.environment import spawn_on

STOP_S = 20.0
READY_S = 300.0
BEGUN = "; updates "  # stands in the line that says which mode was chosen


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    workers: int
    mode: str
    compress: str
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave; `epoch_s` are the seconds of each epoch, `update_bytes` those that a worker sent an epoch."""

    case: Case
    exit_code: int
    chosen: str
    samples: int
    seconds: float
    epoch_s: tuple[float, ...]
    accuracies: tuple[float, ...]
    update_bytes: float
    lines: tuple[str, ...]

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0


def main() -> None:
    """Print a row for each run."""
    args = _arguments()
    say(
        f"devices: {args.cpu:g} of a core, {args.link} each way; broker: {args.broker_link}; batch {args.batch}, "
        f"{args.optimizer or 'the default optimizer'}, {args.epochs} epochs of {args.data}"
    )
    head = f"{'workers':>7} {'mode':<10} {'updates':<10} {'seed':>4} {'samples/s':>9} {'s an epoch':>10}"
    say(f"{head} {'accuracy':>8} {'MB up':>6} {'gain':>5}")
    first: dict[tuple[str, str], float] = {}
    outcomes = []
    for case in cases(args):
        found = run_case(case, args)
        base = first.setdefault((case.mode, case.compress), found.samples_per_s)
        print_row(found, base)
        outcomes.append(found)
        if args.out:
            facts = {key: str(value) for key, value in vars(args).items()}
            args.out.write_text(json.dumps({"options": facts, "runs": [asdict(one) for one in outcomes]}, indent=1))


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield the runs: seeds outermost, so that a machine that changes changes all of them alike."""
    for seed in args.seeds.split(","):
        for mode in args.modes.split(","):
            for compress in args.compress.split(","):
                for workers in args.workers.split(","):
                    yield Case(int(workers), mode, compress, int(seed))


def print_row(found: Outcome, base: float) -> None:
    """Print one run, and what it said of faults."""
    case = found.case
    epoch_s = found.seconds / max(1, len(found.epoch_s))
    accuracy = f"{found.accuracies[-1]:.4f}" if found.accuracies else "-"
    gain = found.samples_per_s / base if base else 0.0
    say(
        f"{case.workers:>7} {case.mode:<10} {case.compress:<10} {case.seed:>4} {found.samples_per_s:>9.0f} "
        f"{epoch_s:>10.1f} {accuracy:>8} {found.update_bytes / 1e6:>6.1f} {gain:>5.2f}"
    )
    for line in (found.chosen, *found.lines):
        say(f"        {line}")
    if found.exit_code:
        say(f"        exit code {found.exit_code}: this run did not end as it should")


def run_case(case: Case, args: argparse.Namespace) -> Outcome:
    """Train once on a test bed of its own."""
    limits = Limits(args.cpu, read_rate(args.link), read_size(args.memory) if args.memory else None)
    names = [f"device-{number}" for number in range(case.workers)]
    layout = Layout(tuple(Device(name, limits) for name in names), Limits(link_bits_per_s=read_rate(args.broker_link)))
    with tempfile.TemporaryDirectory(prefix="har-edge-bench-") as temporary, Testbed(layout) as testbed:
        folder = Path(temporary)
        processes = Processes(spawn_on(testbed, {name: name for name in names}), patience_s=STOP_S)
        url = testbed.emulation.broker_url
        try:
            for name in names:
                words = ["node", "--name", name, "--broker", url, "--cache", str(folder / f"cache-{name}")]
                processes.start(name, words, log=folder / f"{name}.log")
            _until(lambda: all("connected" in one.output for one in processes.running.values()), READY_S, processes)
            command = processes.start("train", _words(case, args, url, folder), log=folder / "train.log")
            loops = _inject(command, processes, testbed, names, args)
            code = command.wait(args.timeout)
            for loop in loops:
                loop.kill()
            return _read(case, code, folder, command)
        finally:
            processes.stop()


def _words(case: Case, args: argparse.Namespace, url: str, folder: Path) -> list[str]:
    words = ["train", "--on-devices", "--model", args.model, "--data", str(args.data), "--out", str(folder / "out")]
    words += ["--broker", url, "--workers", str(case.workers), "--wait", str(READY_S), "--mode", case.mode]
    words += ["--compress", case.compress, "--seed", str(case.seed), "--epochs", str(args.epochs)]
    words += ["--batch", str(args.batch), "--cache", str(folder / "cache"), "--run-name", "bench", "--from-scratch"]
    words += ["--optimizer", args.optimizer] if args.optimizer else []
    return words


def _inject(
    command: Running, processes: Processes, testbed: Testbed, names: list[str], args: argparse.Namespace
) -> list[subprocess.Popen[bytes]]:
    """Kill the last worker and slow the first one down, when it is time; return the busy loops."""
    if args.kill is None and args.slow is None:
        return []
    _until(lambda: BEGUN in command.output, READY_S, processes)
    began, loops = time.monotonic(), list[subprocess.Popen[bytes]]()
    slow_at, _, factor = (args.slow or "inf:1").partition(":")
    due = sorted([(float(args.kill or "inf"), "kill"), (float(slow_at), "slow")])
    for seconds, what in due:
        if seconds == float("inf"):
            continue
        while command.alive and time.monotonic() - began < seconds:
            time.sleep(0.1)
        if not command.alive:
            break
        if what == "kill":
            processes.kill(names[-1])
        else:
            spin = [sys.executable, "-c", "while True: pass"]
            loops += [testbed.run(names[0], spin) for _ in range(round(float(factor)) - 1)]
    return loops


def _read(case: Case, code: int, folder: Path, command: Running) -> Outcome:
    """Return the outcome, from the table and the output that the command leaves."""
    table = folder / "out" / "bench.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    ends = {int(row["epoch"]): float(row["seconds"]) for row in rows}
    starts = [0.0, *ends.values()]
    epochs = tuple(round(end - start, 3) for start, end in zip(starts, ends.values(), strict=False))
    output = command.output.splitlines()
    chosen = next((line for line in output if BEGUN in line), "")
    faults = tuple(line for line in output if "goes on without" in line or "joins" in line or "left out" in line)
    received = float(rows[-1]["received_bytes"]) if rows else 0.0
    return Outcome(
        case,
        code,
        chosen,
        sum(int(row["samples"]) for row in rows),
        float(rows[-1]["seconds"]) if rows else 0.0,
        epochs,
        tuple(float(row["accuracy"]) for row in rows if row["accuracy"]),
        received / case.workers / max(1, len(ends)),
        faults if code == 0 else (*faults, *output[-5:]),
    )


def _until(done: Callable[[], bool], timeout_s: float, processes: Processes) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"nothing came of it in {timeout_s:.0f} s:\n{processes.last_lines()}")
        time.sleep(0.1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="MNIST's idx files")
    parser.add_argument("--model", default="lenet5", help="a .tflite, or lenet5 (default)")
    parser.add_argument("--workers", default="1,2,4,8,11", metavar="N,...")
    parser.add_argument("--modes", default="auto", metavar="MODE,...")
    parser.add_argument("--compress", default="auto", metavar="SPEC,...")
    parser.add_argument("--seeds", default="0", metavar="N,...")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--optimizer", metavar="SPEC")
    parser.add_argument("--kill", type=float, metavar="S", help="kill the last worker after S seconds")
    parser.add_argument("--slow", metavar="S:FACTOR", help="slow the first worker down after S seconds")
    parser.add_argument("--cpu", type=float, default=0.1, metavar="CORES")
    parser.add_argument("--link", default="94mbit")
    parser.add_argument("--broker-link", default="94mbit")
    parser.add_argument("--memory", metavar="SIZE", help="limit of each device (default: none)")
    parser.add_argument("--timeout", type=float, default=7200.0, metavar="S", help="of one run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
