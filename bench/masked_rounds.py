"""The cost of masked updates: bytes and seconds a round with masks, beside dense updates and float16 without.

    python bench/masked_rounds.py --data DIR --workers 3,4,8 --repeats 3 --out masked.json

Trains LeNet-5 on the samples below DIR with nodes and Mosquitto on this machine, in local mode, so that the three kinds
make the same rounds; the kinds take turns. Bytes are those that the server sends in a round, to all or to one, and
those that a worker sends, without the samples; the seconds of a round are from its begin to that of the next one. All
nodes share this machine. The first round, in which workers fetch samples, is left out. The last lines time the
cryptography of one worker alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from har_edge.cli.console import say
from har_edge.cluster.processes import Processes
from har_edge.inference.interpreter import RUNTIME
from har_edge.learning.masking.sums import MaskedDevice, MaskedSum, default_threshold
from har_edge.mqtt.broker.launcher import start_mosquitto
from har_edge.resources import find_folder

KINDS = {"dense": ("--compress", "none"), "float16": ("--compress", "float16"), "masked": ("--secure",)}
PARAMETERS = 61_706  # of LeNet-5
LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Row:
    """One run: seconds of each round but the first, and bytes of a round, of the server and of one worker."""

    workers: int
    kind: str
    seconds: tuple[float, ...]
    sent: float
    received: float
    samples: int
    exit_code: int


def main() -> int:
    """Print a row for each number of workers and kind; return 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="samples for LeNet-5")
    parser.add_argument("--workers", default="3,4,8", metavar="LIST")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps of a round (default: 10)")
    parser.add_argument("--epochs", type=int, default=1, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args()
    rows: list[Row] = []
    for workers in map(int, args.workers.split(",")):
        rows += run_kinds(args, workers)
        print_rows([row for row in rows if row.workers == workers])
    for workers in map(int, args.workers.split(",")):
        say(f"{workers:>7} workers: {1e3 * device_s(workers):.1f} ms of cryptography of one worker a round")
    if args.out:
        facts = {"machine": platform.platform(), "runtime": RUNTIME, "steps": args.steps, "data": str(args.data)}
        args.out.write_text(json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1))
    return 1 if any(row.exit_code for row in rows) else 0


def run_kinds(args: argparse.Namespace, workers: int) -> Iterator[Row]:
    """Yield the runs with so many nodes, the kinds in turn."""
    with tempfile.TemporaryDirectory(prefix="har-edge-bench-") as temporary:
        folder = Path(temporary)
        with start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder) as broker:
            url = broker.address.url
            processes = Processes(patience_s=5.0, folder=folder)
            try:
                started = []
                for number in range(workers):
                    words = ["node", "--name", f"n{number}", "--cache", str(folder / f"n{number}"), "--broker", url]
                    started.append(processes.start(f"n{number}", words, log=folder / f"n{number}.log"))
                until = time.monotonic() + LIMIT_S
                while not all("connected" in one.output for one in started):
                    if time.monotonic() > until:
                        raise SystemExit(processes.last_lines())
                    time.sleep(0.1)
                say(f"{workers} nodes on this machine; {broker.description}; {RUNTIME}")
                for repeat in range(args.repeats):
                    for kind, options in KINDS.items():
                        yield run_once(args, processes, folder, url, workers, kind, repeat, options)
            finally:
                processes.stop()


def run_once(
    args: argparse.Namespace,
    processes: Processes,
    folder: Path,
    url: str,
    workers: int,
    kind: str,
    repeat: int,
    options: tuple[str, ...],
) -> Row:
    """Train once, and read its table."""
    run = f"{kind}-{repeat}"
    words = ["train", "--on-devices", "--model", "lenet5", "--data", str(args.data), "--out", str(folder / "out")]
    words += ["--cache", str(folder / "cache"), "--workers", str(workers), "--wait", "60", "--epochs", str(args.epochs)]
    words += ["--mode", f"local:{args.steps}", "--run-name", run, "--shares", "equal", "--broker", url, *options]
    command = processes.start(run, words, log=folder / f"{run}.log")
    code = command.wait(LIMIT_S)
    if code:
        say(command.output[-2000:])
        return Row(workers, kind, (), 0.0, 0.0, 0, code)
    table = list(csv.DictReader((folder / "out" / f"{run}.csv").open()))
    at = [float(row["seconds"]) for row in table]
    rounds, first, last = len(table) - 1, table[0], table[-1]
    return Row(
        workers,
        kind,
        tuple(after - before for before, after in pairwise(at)),
        (int(last["sent_bytes"]) - int(first["sent_bytes"])) / rounds,
        (int(last["received_bytes"]) - int(first["received_bytes"])) / rounds / workers,
        sum(int(row["samples"]) for row in table),
        0,
    )


def print_rows(rows: list[Row]) -> None:
    """Print the median round of each kind, its quartiles, and the ratio to dense."""
    base = median(second for row in rows if row.kind == "dense" for second in row.seconds)
    say(f"{'workers':>7} {'updates':<8} {'s a round':>9} {'quartiles':>13} {'ratio':>5} {'kB sent':>8} {'kB back':>8}")
    for kind in KINDS:
        own = [row for row in rows if row.kind == kind and not row.exit_code]
        if not own:
            continue
        seconds = [second for row in own for second in row.seconds]
        low, middle, high = quantiles(seconds, n=4)
        say(
            f"{own[0].workers:>7} {kind:<8} {middle:>9.3f} {f'{low:.3f}-{high:.3f}':>13} {middle / base:>5.2f} "
            f"{own[0].sent / 1e3:>8.1f} {own[0].received / 1e3:>8.1f}"
        )


def device_s(workers: int) -> float:
    """Return the median seconds of all four messages of one worker, for a vector of LeNet-5's length."""
    names, threshold = [f"n{number}" for number in range(workers)], default_threshold(workers)
    values, taken = np.zeros(PARAMETERS + 3, np.uint32), []
    for turn in range(5):
        context = str(turn).encode()
        server = MaskedSum(values.size, threshold, context)
        spent, others = 0.0, {}
        for name in names:
            began = time.perf_counter()
            others[name] = MaskedDevice(name, threshold, context, secrets.token_bytes)
            server.add_keys(name, others[name].keys())
            spent += (time.perf_counter() - began) * (name == "n0")
        server.close()
        for name in names:
            began = time.perf_counter()
            shares = others[name].share(server.keys)
            spent += (time.perf_counter() - began) * (name == "n0")
            server.add_shares(name, shares)
        server.close()
        began = time.perf_counter()
        others["n0"].mask(server.sealed_for("n0"), values)
        others["n0"].unmask(names)
        taken.append(spent + time.perf_counter() - began)
    return median(taken)


if __name__ == "__main__":
    sys.exit(main())
