r"""Train LeNet-5 over emulated devices: samples a second, accuracy, bytes of updates, and faults, by worker count.

    python bench/training.py --data DIR --keep FILE --seeds 0,1,2
    python bench/training.py --data DIR --keep FILE --workers 2,4,8,11 --modes sync
    python bench/training.py --data DIR --keep FILE --workers 4 --kill 30 --slow 30:5 --seconds 120
    python bench/training.py --data DIR --keep FILE --workers 4 --modes sync --compress none,topk:0.01 \
        --measure accuracy

DIR holds MNIST's idx files (`har-edge data fetch mnist`). Two measurements of each run, a test bed of its own for each:

speed     on devices of --cpu cores and links of --link, behind a broker with --broker-link, for --seconds of training
          (and three rounds at least), then Ctrl-C. Samples a second are those of the rounds that ended.
accuracy  all epochs, on devices without limits: ten epochs at a tenth of a core would take hours. The mode is the one
          that the run before it chose (--modes auto), with the same steps a round; no round is cut short (--budget) and
          shares are equal, since devices that share two processors have no steady speed. Its times mean nothing.

Devices have the samples before the run, unless --fetch is given. With --kill the last worker is killed so many seconds
after the first round begins, with --slow the first one gets a fraction of its share of a processor; samples a second
are then told before and after, and how much of what is left that is. In each epoch that ended, every sample must have
been counted once. `--keep` holds finished runs, so that a stopped script goes on. Needs root.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median

import msgspec

from har_edge.cli.console import say
from har_edge.cluster.processes import Processes, Running
from har_edge.emulation.limits import UNLIMITED, Device, Layout, Limits, read_rate, read_size
from har_edge.emulation.testbed import Testbed
from har_edge.experiments.environment import spawn_on
from har_edge.learning.data.dataset_files import read_data

STOP_S = 20.0
READY_S = 300.0
BEGUN = "; updates "  # stands in the line that says which mode was chosen
LEAST_ROUNDS = 3
SPEED, ACCURACY = "speed", "accuracy"
# In a measurement of accuracy no worker sends less than its share because others keep it from the processor.
BUDGET_S = "300"


class Case(msgspec.Struct, frozen=True):
    """One run; `options` are all others that its figures depend on."""

    measure: str
    workers: int
    mode: str
    compress: str
    seed: int
    epochs: int
    options: str


class Outcome(msgspec.Struct, frozen=True):
    """What a run gave: `counted` are the samples of each epoch that ended, `update_bytes` those of a worker an epoch.

    `before_per_s` and `after_per_s` are samples a second before and after the first fault, 0 without one.
    """

    case: Case
    exit_code: int
    chosen: str
    samples_per_s: float
    rounds: int
    counted: list[int]
    accuracies: list[float]
    update_bytes: float
    before_per_s: float
    after_per_s: float
    lines: list[str]


class Row(msgspec.Struct, frozen=True):
    """One round of the table that the command leaves."""

    epoch: int
    seconds: float
    samples: int
    received: int
    accuracy: float | None


def main() -> None:
    """Run what has not been run, and print a row for each run, then a table."""
    args = arguments()
    devices = f"{args.cpu:g} of a core, {args.link} each way" if SPEED in args.measure else "no limits"
    say(f"devices: {devices}; broker: {args.broker_link}; batch {args.batch}, {args.epochs} epochs of MNIST (real)")
    say(f"optimizer: {args.optimizer or 'as the command chooses'}; samples {'fetched' if args.fetch else 'are there'}")
    known = {one.case: one for one in read_runs(args.keep)}
    outcomes = []
    for case in cases(args):
        found = known.get(case)
        if found is None:
            mode = case.mode
            if case.measure == ACCURACY and mode == "auto":
                mode = next((pinned(one) for one in (*known.values(), *outcomes) if is_speed_of(one.case, case)), "")
                if not mode:
                    raise SystemExit(
                        "accuracy of --modes auto: the mode is chosen on emulated devices; measure speed, too"
                    )
            found = run_case(case, mode, args)
            if found.exit_code == 0:
                keep_run(args.keep, found)
        show_run(found)
        outcomes.append(found)
    show_table(outcomes)


def cases(args: argparse.Namespace) -> list[Case]:
    """Return the runs: seeds outermost, so that a machine that changes changes all of them alike."""
    names = (
        "batch",
        "optimizer",
        "model",
        "data",
        "cpu",
        "link",
        "broker_link",
        "memory",
        "fetch",
        "kill",
        "slow",
        "seconds",
    )
    options = " ".join(f"{name}={getattr(args, name)}" for name in names)
    return [
        Case(measure, int(workers), mode, compress, int(seed), args.epochs, options)
        for seed in args.seeds.split(",")
        for mode in args.modes.split(",")
        for compress in args.compress.split(",")
        for workers in args.workers.split(",")
        for measure in args.measure.split(",")
    ]


def is_speed_of(speed: Case, accuracy: Case) -> bool:
    """Return whether a run chose the mode for another."""
    return speed == msgspec.structs.replace(accuracy, measure=SPEED)


def pinned(found: Outcome) -> str:
    """Return the mode that a run chose, as an option that chooses it again."""
    steps = re.search(r"; local, (\d+) steps? of", found.chosen)
    return f"local:{steps[1]}" if steps else "sync"


def run_case(case: Case, mode: str, args: argparse.Namespace) -> Outcome:
    """Train once on a test bed of its own."""
    limits = host = UNLIMITED
    if case.measure == SPEED:
        limits = Limits(args.cpu, read_rate(args.link), read_size(args.memory) if args.memory else None)
        host = Limits(link_bits_per_s=read_rate(args.broker_link))
    names = [f"device-{number:02}" for number in range(case.workers)]
    layout = Layout(tuple(Device(name, limits) for name in names), host)
    with tempfile.TemporaryDirectory(prefix="har-edge-bench-") as temporary, Testbed(layout) as testbed:
        folder = Path(temporary)
        processes = Processes(spawn_on(testbed, {name: name for name in names}), patience_s=STOP_S)
        url = testbed.emulation.broker_url
        try:
            for name in names:
                cache = folder / (f"cache-{name}" if args.fetch else "cache")
                words = ["node", "--name", name, "--broker", url, "--cache", str(cache)]
                processes.start(name, words, log=folder / f"{name}.log")
            wait_until(lambda: all("connected" in one.output for one in processes.running.values()), processes)
            command = processes.start("train", words_of(case, mode, args, url, folder), log=folder / "train.log")
            wait_until(lambda: BEGUN in command.output or not command.alive, processes)
            code = follow(command, actions(case, args, command, processes, testbed, names), args.timeout)
            return read_outcome(case, code, folder, command, args)
        finally:
            processes.stop()


def words_of(case: Case, mode: str, args: argparse.Namespace, url: str, folder: Path) -> list[str]:
    """Return the command."""
    words = ["train", "--on-devices", "--model", args.model, "--data", str(args.data), "--out", str(folder / "out")]
    words += ["--broker", url, "--workers", str(case.workers), "--wait", str(READY_S), "--mode", mode]
    words += ["--compress", case.compress, "--seed", str(case.seed), "--epochs", str(case.epochs)]
    words += ["--batch", str(args.batch), "--cache", str(folder / "cache"), "--run-name", "bench", "--from-scratch"]
    words += ["--optimizer", args.optimizer] if args.optimizer else []
    if case.measure == ACCURACY and args.kill is None and args.slow is None:
        words += ["--budget", BUDGET_S, "--shares", "equal"]
    return words


Action = tuple[float, Callable[[], object]]


def actions(
    case: Case,
    args: argparse.Namespace,
    command: Running,
    processes: Processes,
    testbed: Testbed,
    names: list[str],
) -> list[Action]:
    """Return what is to be done, and how many seconds after the first round begins."""
    found: list[Action] = []
    if args.kill is not None:
        found.append((args.kill, lambda: processes.kill(names[-1])))
    if args.slow is not None:
        at, factor = read_slow(args.slow)
        # Without a limit, workers share the processors of this machine.
        share = args.cpu if case.measure == SPEED else min(1.0, (os.cpu_count() or 1) / case.workers)
        found.append((at, lambda: testbed.limit_cpu(names[0], share / factor)))
    if case.measure == SPEED:
        found.append((args.seconds, lambda: end(command)))
    return sorted(found, key=lambda one: one[0])


def read_slow(text: str) -> tuple[float, float]:
    """Return when and by what factor a worker becomes slower."""
    at, _, factor = text.partition(":")
    return float(at), float(factor or "5")


def end(command: Running) -> None:
    """End a run like Ctrl-C does, once enough rounds have ended."""
    while (
        command.alive
        and max((int(one) for one in re.findall(r", round (\d+)", command.output)), default=0) < LEAST_ROUNDS
    ):
        time.sleep(0.2)
    if command.alive:
        command.send_signal(signal.SIGINT)


def follow(command: Running, due: Sequence[Action], timeout_s: float) -> int:
    """Do what is due in its time, and return the exit code of the command."""
    began = time.monotonic()
    for at, act in due:
        while command.alive and time.monotonic() - began < at:
            time.sleep(0.1)
        if not command.alive:
            break
        act()
    try:
        return command.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"it did not end in {timeout_s:.0f} s:\n{command.last_lines()}") from None


def read_outcome(case: Case, code: int, folder: Path, command: Running, args: argparse.Namespace) -> Outcome:
    """Return the outcome, from the table and the output that the command leaves."""
    rows = read_rows(folder / "out" / "bench.csv")
    output = command.output.splitlines()
    ended = {row.epoch for row in rows if row.epoch < rows[-1].epoch or code == 0}
    counted = {epoch: sum(row.samples for row in rows if row.epoch == epoch) for epoch in sorted(ended)}
    expected = 128 + signal.SIGINT if case.measure == SPEED else 0
    faults = [args.kill] if args.kill is not None else []
    faults += [read_slow(args.slow)[0]] if args.slow is not None else []
    first = min(faults, default=None)
    words = ("goes on without", "joins", "left out", "dropped")
    lines = [line for line in output if any(word in line for word in words)]
    if code not in (0, expected) or not rows:
        lines += output[-5:]
    total, samples = sum(row.samples for row in rows), len(read_data(args.data).train)
    if wrong := [one for one in counted.values() if one != samples]:
        raise SystemExit(f"epochs counted {wrong} samples; expected each of {samples} once")
    return Outcome(
        case=case,
        exit_code=0 if code in (0, expected) and rows else code or 1,
        chosen=next((line for line in output if BEGUN in line), ""),
        samples_per_s=rate(rows),
        rounds=len(rows),
        counted=list(counted.values()),
        accuracies=[row.accuracy for row in rows if row.accuracy is not None],
        update_bytes=rows[-1].received / case.workers * (samples / total) if rows else 0.0,
        before_per_s=0.0 if first is None else rate(rows, 0.0, first),
        after_per_s=0.0 if first is None else rate(rows, first),
        lines=lines,
    )


def read_rows(table: Path) -> list[Row]:
    """Return the rounds of a table."""
    if not table.exists():
        return []
    return [
        Row(
            int(one["epoch"]),
            float(one["seconds"]),
            int(one["samples"]),
            int(one["received_bytes"]),
            float(one["accuracy"]) if one["accuracy"] else None,
        )
        for one in csv.DictReader(table.open(newline=""))
    ]


def rate(rows: Sequence[Row], since: float = 0.0, until: float = float("inf")) -> float:
    """Return the samples a second of the rounds that ended after `since`, and until then."""
    before = max((row.seconds for row in rows if row.seconds <= since), default=0.0)
    some = [row for row in rows if since < row.seconds <= until]
    return sum(row.samples for row in some) / (some[-1].seconds - before) if some else 0.0


def show_run(found: Outcome) -> None:
    """Print one run, and what it said of faults."""
    case = found.case
    head = f"{case.workers:>2} workers, {case.mode}, {case.compress}, seed {case.seed}, {case.measure}:"
    if case.measure == SPEED:
        say(f"{head} {found.samples_per_s:.0f} samples/s over {found.rounds} rounds")
    else:
        reached = ", ".join(f"{one:.4f}" for one in found.accuracies)
        say(f"{head} {reached}; {found.update_bytes / 1e6:.2f} MB of updates a worker and epoch")
        say(f"        {len(found.counted)} epochs, each sample counted once in each")
    if found.before_per_s:
        say(f"        {found.before_per_s:.0f} samples/s before the fault, {found.after_per_s:.0f} after")
    for line in (found.chosen, *found.lines):
        say(f"        {line}")
    if found.exit_code:
        say(f"        exit code {found.exit_code}: this run did not end as it should")


def show_table(outcomes: Sequence[Outcome]) -> None:
    """Print medians of speeds and means of accuracies, beside one worker of the mode that is chosen."""
    good = [one for one in outcomes if not one.exit_code]
    kinds = dict.fromkeys((one.case.mode, one.case.compress, one.case.workers) for one in good)
    alone_s = [one.samples_per_s for one in good if one.case.workers == 1 and one.case.measure == SPEED]
    alone = [
        one.accuracies[-1] for one in good if one.case.workers == 1 and one.accuracies and one.case.measure == ACCURACY
    ]
    head = f"{'workers':>7} {'mode':<6} {'updates':<9} {'samples/s':>9} {'gain':>5} {'s/epoch':>7}"
    say(f"\n{head} {'accuracy':>8} {'of one':>6} {'MB up':>6}")
    for mode, compress, workers in kinds:
        some = [
            one for one in good if (one.case.mode, one.case.compress, one.case.workers) == (mode, compress, workers)
        ]
        speeds = [one.samples_per_s for one in some if one.case.measure == SPEED]
        whole = [one for one in some if one.case.measure == ACCURACY and one.accuracies]
        reached = [one.accuracies[-1] for one in whole]
        counted = [sum(one.counted) / len(one.counted) for one in whole]
        parts = [f"{workers:>7} {mode:<6} {compress:<9}"]
        parts.append(f"{median(speeds):>9.0f}" if speeds else f"{'-':>9}")
        parts.append(f"{median(speeds) / median(alone_s):>5.2f}" if speeds and alone_s else f"{'-':>5}")
        parts.append(f"{counted[0] / median(speeds):>7.1f}" if speeds and counted else f"{'-':>7}")
        parts.append(f"{mean(reached):>8.4f}" if reached else f"{'-':>8}")
        parts.append(f"{100 * (mean(reached) - mean(alone)):>+6.2f}" if reached and alone else f"{'-':>6}")
        parts.append(f"{mean(one.update_bytes for one in whole) / 1e6:>6.2f}" if whole else f"{'-':>6}")
        say(" ".join(parts))
        if len(speeds) > 1:
            say(f"        {min(speeds):.0f} to {max(speeds):.0f} samples/s in {len(speeds)} runs")
    for one in good:
        if one.before_per_s:
            say(f"        left of {one.case.workers} workers: {left(one):.2f}")


def left(found: Outcome) -> float:
    """Return samples a second after the faults, against what the workers that are left can do."""
    kill, slow = (re.search(rf"{name}=(\S+)", found.case.options) for name in ("kill", "slow"))
    assert kill is not None and slow is not None
    workers = found.case.workers - (kill[1] != "None")
    if slow[1] != "None":
        workers -= 1 - 1 / read_slow(slow[1])[1]
    return found.after_per_s / (found.before_per_s * workers / found.case.workers)


def read_runs(path: Path | None) -> list[Outcome]:
    """Return the finished runs in a file."""
    if path is None or not path.exists():
        return []
    return [msgspec.json.decode(line, type=Outcome) for line in path.read_bytes().splitlines()]


def keep_run(path: Path | None, outcome: Outcome) -> None:
    """Add a run to a file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(msgspec.json.encode(outcome) + b"\n")


def wait_until(done: Callable[[], bool], processes: Processes) -> None:
    """Wait until something is so; end the script where it takes too long."""
    until = time.monotonic() + READY_S
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"nothing came of it in {READY_S:.0f} s:\n{processes.last_lines()}")
        time.sleep(0.1)


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="MNIST's idx files")
    parser.add_argument("--model", default="lenet5", help="a .tflite, or lenet5 (default)")
    parser.add_argument("--measure", default=f"{SPEED},{ACCURACY}", metavar="WHAT,...", help="default: both")
    parser.add_argument("--workers", default="1,2,4,8,11", metavar="N,...")
    parser.add_argument("--modes", default="auto", metavar="MODE,...")
    parser.add_argument("--compress", default="auto", metavar="SPEC,...")
    parser.add_argument("--seeds", default="0", metavar="N,...")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--optimizer", metavar="SPEC")
    parser.add_argument("--kill", type=float, metavar="S", help="kill the last worker after S seconds")
    parser.add_argument("--slow", metavar="S:FACTOR", help="slow the first worker down after S seconds")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="of a measurement of speed (default: 60)"
    )
    parser.add_argument("--cpu", type=float, default=0.1, metavar="CORES")
    parser.add_argument("--link", default="94mbit")
    parser.add_argument("--broker-link", default="94mbit")
    parser.add_argument("--memory", metavar="SIZE", help="limit of each device (default: none)")
    parser.add_argument("--fetch", action="store_true", help="let devices fetch their samples in the run")
    parser.add_argument("--timeout", type=float, default=7200.0, metavar="S", help="of one run")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON lines of finished runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
