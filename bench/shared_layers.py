"""Plan, cut and measure every row of the table of shared layers, each predicted figure beside the measured one.

    python bench/shared_layers.py --models ZOO --out build/shared-layers             # all; again: what is missing
    python bench/shared_layers.py --models ZOO --out DIR --only vgg16-float32-latency-1gbit
    python bench/shared_layers.py --models ZOO --out DIR --dry                       # the commands alone
    python bench/shared_layers.py --models ZOO --out DIR --plans                     # plan and cut, measure nothing
    python bench/shared_layers.py --models ZOO --out DIR --table                     # what has been measured so far

ZOO has the files of `har-edge zoo NAME --out NAME-TYPE.tflite` (a missing one is written). Each model is profiled once,
on this machine; a device has `--speed` of its speed. A session (one model, objective and rate of the broker's host)
runs in one test bed, all rows in turns with one device that holds the whole model; a row that is measured is kept in
DIR/results.json; a session that fails is named, and the others go on. `predicted` is what the plan said before; `by
pace` is the same plan on devices as fast as the one with the whole model turned out to be in that run, which leaves out
how the speed of this machine drifts. Errors are predicted / measured - 1. Needs root; profile and measure while nothing
else runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles

import shards
from planned_rows import PlannedRow, RowBuilder, Session, read_plan, table

from har_edge.cli.console import say
from har_edge.config.pipeline import load_pipeline
from har_edge.emulation.limits import Device, Layout, Limits, read_rate
from har_edge.emulation.testbed import Testbed
from har_edge.errors import HarEdgeError
from har_edge.experiments.model_under_test import make_windows

LINK = "94mbit"
ROUNDS = 4  # of finding the pace that the whole model had


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row: seconds predicted before, predicted by the pace of the whole model, and measured; and what it took."""

    key: str
    predicted_s: float
    predicted_gain: float
    by_pace_s: float
    measured_s: float
    quartiles_s: tuple[float, float]
    gain: float
    whole_s: float
    broker_mb: float
    most_mb: float

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1

    @property
    def error_by_pace(self) -> float:
        return self.by_pace_s / self.measured_s - 1

    @property
    def line(self) -> str:
        seconds = f"{self.predicted_s:8.4f} {self.by_pace_s:8.4f} {self.measured_s:8.4f}"
        gains = f"{self.predicted_gain:5.2f} {self.gain:5.2f}"
        errors = f"{self.error:+4.0%} {self.error_by_pace:+4.0%}"
        return f"{self.key}\n  {seconds}  {gains}  {errors} {self.broker_mb:7.2f} {self.most_mb:5.0f}"


def main() -> None:
    """Make, measure, and print the table."""
    args = _arguments()
    builder = RowBuilder(Path(args.models), Path(args.out), args.speed)
    known = read_results(builder.out)
    rows = [row for row in table() if not args.only or any(one in row.key for one in args.only)]
    if args.table:
        print_table([known[row.key] for row in rows if row.key in known])
        return
    failed = list[str]()
    missing = [row for row in rows if row.key not in known]
    for session, group in groupby(missing, key=lambda row: row.session):
        try:
            for outcome in run_session(builder, session, list(group), args):
                known[outcome.key] = outcome
                write_results(builder.out, known)
        except (HarEdgeError, subprocess.CalledProcessError) as error:
            failed.append(f"{session.name} was not measured: {error}")
            say(failed[-1])
    print_table([known[row.key] for row in rows if row.key in known])
    for line in failed:
        say(line)
    sys.exit(bool(failed))


def run_session(
    builder: RowBuilder, session: Session, rows: Sequence[PlannedRow], args: argparse.Namespace
) -> Iterator[Outcome]:
    """Make the folders of a session's rows, and measure them."""
    make_model(builder, session, dry=args.dry)
    for row in rows:
        builder.make(row, dry=args.dry)
        if not args.dry:
            tell_plan(builder, row)
    if not args.dry and not args.plans:
        yield from measure(builder, session, rows, args)


def make_model(builder: RowBuilder, session: Session, *, dry: bool) -> None:
    """Write the model of a session if it is not there."""
    name, dtype = session.model.rsplit("-", 1)
    if not builder.model(session).exists():
        words = ["zoo", name, "--out", str(builder.model(session)), *(["--int8"] if dtype == "int8" else [])]
        builder.run(words, dry)


def tell_plan(builder: RowBuilder, row: PlannedRow) -> None:
    """Say what a plan predicts."""
    seconds, one = builder.predict(row)
    plan = read_plan(builder.plan(row))
    say(f"{row.key}: {seconds:.4f} s, {one / seconds:.2f} of one device, on {len(plan.devices)} devices")


def measure(
    builder: RowBuilder, session: Session, rows: Sequence[PlannedRow], args: argparse.Namespace
) -> Iterator[Outcome]:
    """Run the rows of a session in turns with the whole model on one device."""
    folders = {shards.WHOLE: builder.whole(session)} | {row.name: builder.folder(row) for row in rows}
    plans = {row.name: read_plan(builder.plan(row)) for row in rows if row.turns}
    turns = {name: plan.turns for name, plan in plans.items() if not plan.is_split}
    candidates, number = [], 0
    for name, folder in folders.items():
        pipeline = load_pipeline(folder)
        count = sum(turns.get(name, ())) or len(pipeline.manifest.slices)
        hosts = [f"device-{number + k}" for k in range(count)]
        number += len(hosts)
        codes = make_windows(pipeline, shards.SAMPLES)
        own = name.endswith(shards.OWN)
        candidates.append(shards.Candidate(name, pipeline, hosts, codes, own, turns.get(name, ())))
    link, limit = read_rate(LINK), session.memory_mb * 1_000_000 or None
    devices = [
        Device(host, Limits(args.cpu, link, None if one.name == shards.WHOLE else limit))
        for one in candidates
        for host in one.hosts
    ]
    say(f"{session.name}: {len(rows)} rows on {number} devices of {args.cpu:g} of a core, {args.repeats} repeats")
    layout = Layout(tuple(devices), Limits(link_bits_per_s=read_rate(session.broker)))
    with Testbed(layout) as testbed, shards.running(testbed, candidates):
        way = shards.measure_latency if session.objective == "latency" else shards.measure_throughput
        found = {one.name: one for one in way(testbed, candidates, args)}
    for row in rows:
        yield make_outcome(builder, row, found[shards.WHOLE], found[row.name])


def make_outcome(builder: RowBuilder, row: PlannedRow, whole: shards.Row, found: shards.Row) -> Outcome:
    """Put what was predicted beside what was measured."""
    predicted, one = builder.predict(row)
    whole_s, slower = median(whole.seconds), 1.0
    for _ in range(ROUNDS):  # links do not slow down with processors
        slower *= whole_s / builder.predict(row, slower)[1]
    low, middle, high = quantiles(found.seconds, n=4)
    return Outcome(
        key=row.key,
        predicted_s=predicted,
        predicted_gain=one / predicted,
        by_pace_s=builder.predict(row, slower)[0],
        measured_s=middle,
        quartiles_s=(low, high),
        gain=found.gain,
        whole_s=whole_s,
        broker_mb=found.broker_bytes / 1e6,
        most_mb=max((*found.charged_mb, *found.resident_mb)),
    )


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Print all rows, and how far predictions are off."""
    if not outcomes:
        say("nothing has been measured")
        return
    print("row\n  predicted, by pace, measured (s); gain predicted, measured; errors; MB at the broker; MB most")
    for one in outcomes:
        print(one.line)
    for name, errors in (
        ("predicted", [abs(one.error) for one in outcomes]),
        ("by pace", [abs(one.error_by_pace) for one in outcomes]),
    ):
        say(f"{name}: off by {median(errors):.0%} in the median, {max(errors):.0%} at worst, {len(errors)} rows")


def read_results(out: Path) -> dict[str, Outcome]:
    """Return what has been measured."""
    path = out / "results.json"
    if not path.exists():
        return {}
    found = [Outcome(**{**one, "quartiles_s": tuple(one["quartiles_s"])}) for one in json.loads(path.read_text())]
    return {one.key: one for one in found}


def write_results(out: Path, known: dict[str, Outcome]) -> None:
    (out / "results.json").write_text(json.dumps([asdict(one) for one in known.values()], indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, metavar="ZOO", help="folder of the models")
    parser.add_argument("--out", required=True, metavar="DIR", help="profiles, plans, folders and results")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows with this in their key; repeatable")
    parser.add_argument("--dry", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--plans", action="store_true", help="plan and cut, measure nothing")
    parser.add_argument("--table", action="store_true", help="print what has been measured")
    parser.add_argument("--cpu", type=float, default=0.1, metavar="CORES")
    parser.add_argument("--speed", type=float, default=0.094, help="of a device, relative to this machine")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn (throughput)")
    parser.add_argument("--windows", type=int, default=8, help="at least so many in each turn (throughput)")
    parser.add_argument("--in-flight", type=int, default=3, help="samples under way a device (throughput)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
